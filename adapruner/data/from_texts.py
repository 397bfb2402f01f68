"""The sets of a run from what a Python program has at hand: texts, a data set of ``datasets``, or token windows made elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapruner.argument_checks import typed
from adapruner.data.documents import CHAT_COLUMN
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.files import PIECE_CHARACTERS, in_pieces
from adapruner.data.leaks import shared_documents
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.too_little_text import TooLittleTextError, fewest_documents
from adapruner.data.windows import IGNORED, TextWindows
from adapruner.errors import ConfigurationError, DataError, is_shortened

#: Where no text is given for the search, it gets the documents whose hashes fall behind this, and the calibration pool the others.
HELD_OUT_FROM = 0.75
#: In the place of the recovery's text: that of the pool, without what is held out of it.
POOL = "as the pool"
#: Name of a source that has none.
SOURCE_NAME = "texts"
_OR_ITS_OWN = ", or give the search texts of its own"


@typed
def data_from_texts(
    calibration: Any,
    tokenizer: Any,
    *,
    search: Any = None,
    reconstruction: Any = None,
    recovery: Any = None,
    evaluation: Any = None,
    seq_len: int = 128,
    samples_per_source: int = 64,
    reconstruction_samples: int = 0,
    search_samples: int = 64,
    search_seq_len: int = 256,
    recovery_seq_len: int = 256,
    window: int = 128,
    seed: int = 0,
) -> RunData:
    """Token windows of every set of a run, the same as :class:`adapruner.PruningDataModule` draws from files with these texts.

    Each of the five sets is a list of texts (one source, named ``texts``) or of conversations (lists of ``{"role", "content"}``, which
    the tokenizer's chat template writes, and of which only the answers are counted), a ``datasets.Dataset`` with a column ``text`` or
    ``messages``, token windows, or a mapping of source names to any of these, such as a ``DatasetDict``. Token windows are an int64
    tensor ``[n, seq_len]``, or an object or mapping with ``input_ids`` and, if it likes, ``attention_mask`` and ``labels`` of the same
    shape; they are taken whole, and texts beside them in a set are cut to their length.

    Where there is less text than asked for, all of it is taken, and one line says so; a source with too little for the search is left
    out of it, as long as another has enough.

    Args:
        calibration: the pool whose statistics score the units.
        tokenizer: a Hugging Face tokenizer; token windows need none.
        search: what the search's objective is measured on. ``None`` holds out the documents of ``calibration`` that fall into
            ``part: [0.75, 1.0]`` of each source, and leaves the pool ``part: [0.0, 0.75]``; of token windows the last quarter.
        reconstruction: what the refit sees; ``None`` for the sources of the pool.
        recovery: what the pruned model is trained on, or ``None``; :data:`POOL` for the sources of the pool.
        evaluation: held-out text whose perplexity is reported, or ``None``; a source is a set.
        seq_len: tokens in a calibration window.
        samples_per_source: calibration windows from each source.
        reconstruction_samples: windows for the refit from each source; with 0 and no text of its own it sees the pool.
        search_samples: search windows in all.
        search_seq_len: tokens in a search window.
        recovery_seq_len: tokens in a training window.
        window: tokens in an evaluation window.
        seed: decides which windows are drawn.

    Raises:
        ConfigurationError: if a number is out of range, or there are texts but no tokenizer.
        DataError: if something given is neither text nor windows, there is too little of it, or two sets share documents.

    >>> ids = torch.arange(32).view(8, 4)
    >>> data = data_from_texts(ids, tokenizer=None)
    >>> data.calibration_windows.input_ids.shape, data.search_windows.input_ids.shape
    (torch.Size([6, 4]), torch.Size([2, 4]))
    """
    pool = _sources("calibration", calibration) or [_source("calibration", SOURCE_NAME, None)]  # which refuses it
    from_pool = isinstance(recovery, str) and recovery == POOL
    own, train = _sources("search", search), [] if from_pool else _sources("recovery", recovery)
    held, refit = _sources("evaluation", evaluation), _sources("reconstruction", reconstruction)
    _check_tokenizer([*pool, *own, *refit, *train, *held], tokenizer)
    _check_whole_texts(pool, held)
    pool, searched = (pool, own) if own else _hold_out(pool)
    train = pool if from_pool else train
    sets = TextSets(
        CalibrationData(pool, samples_per_source, _length_of(pool, seq_len)),
        SearchData(searched, search_samples, _length_of(searched, search_seq_len)),
        RecoveryData(train, seq_len=_length_of(train, recovery_seq_len)) if train else None,
        [EvaluationSet(source.name, source, [window]) for source in held],
        seed=seed,
        reconstruction=_refit(refit, reconstruction_samples or samples_per_source, seq_len) if refit or reconstruction_samples else None,
        take_fewer=True,
    )
    sets.check()
    try:
        return sets.build(tokenizer)
    except TooLittleTextError as error:
        held_out = not own and not is_shortened("data") and error.role in ("calibration", "search")
        own_text = "; or give the search texts of its own: now it has a quarter of the calibration texts" if held_out else ""
        raise DataError(f"{error}{own_text}") from error


def check_forms(calibration: Any, **others: Any) -> None:
    """Refuses what is neither text nor windows, before there is a tokenizer.

    Args:
        calibration: as of :func:`data_from_texts`.
        others: further sets by their arguments' names; ``None`` passes.

    Raises:
        DataError: naming the argument.
    """
    for argument, value in {"calibration": calibration, **others}.items():
        if _can_be_read_once(value):
            continue
        if not _sources(argument, value) and argument == "calibration":
            _source(argument, SOURCE_NAME, None)  # which refuses it


def _check_whole_texts(pool: Sequence[TextSource], held: Sequence[TextSource]) -> None:
    """Long texts, which are cut to be held out in part, and then are no longer known in another set."""
    cut = {text.strip() for source in pool for text in source.texts or () if isinstance(text, str) and len(text) > PIECE_CHARACTERS}
    for source in held:
        shared = sum(isinstance(text, str) and text.strip() in cut for text in source.texts or ())
        if shared:
            raise shared_documents("calibration", f"evaluation {source.name!r}", shared)


def _can_be_read_once(value: Any) -> bool:
    """Whether looking at texts would use them up."""
    return any(isinstance(texts, Iterator) for texts in (value.values() if isinstance(value, Mapping) else [value]))


def _refit(sources: list[TextSource], samples: int, seq_len: int) -> ReconstructionData:
    return ReconstructionData(sources, samples, _length_of(sources, seq_len) if sources else None)


def windows_from_texts(
    texts: Any, tokenizer: Any, *, role: str = "recovery", seq_len: int = 256, seed: int = 0, argument: str = "texts"
) -> TextWindows:
    """All windows ``[n, seq_len]`` of one set, in the forms that :func:`data_from_texts` takes.

    Args:
        argument: what the texts are called in a refusal.

    Raises:
        ConfigurationError: if there are texts but no tokenizer.
        DataError: if nothing is given, or it is neither text nor windows.
    """
    sources = _some_sources(texts, tokenizer, argument)
    return WindowDrawer(tokenizer, seed).evenly(role, sources, _length_of(sources, seq_len), None)


def evaluation_from_texts(texts: Any, tokenizer: Any, *, windows: Sequence[int] = (128,)) -> dict[tuple[str, int], TextWindows]:
    """(name of the source, window in tokens) -> windows that do not overlap, in the forms that :func:`data_from_texts` takes.

    Raises:
        ConfigurationError: if there are texts but no tokenizer, or a window is shorter than 2 tokens.
        DataError: if nothing is given, it is neither text nor windows, or a text is shorter than a window.
    """
    drawer = WindowDrawer(tokenizer, seed=0)
    sets = [EvaluationSet(source.name, source, list(windows)) for source in _some_sources(texts, tokenizer)]
    return {key: found for item in sets for key, found in drawer.joined(item).items()}


def _sources(argument: str, value: Any) -> list[TextSource]:
    """The sources of one set; none for ``None``."""
    if value is None:
        return []
    if isinstance(value, Mapping) and "input_ids" not in value:
        if not value:
            raise DataError(f"{argument}: expected one source or more, got an empty mapping; give texts under a name")
        return [_source(f"{argument}[{name!r}]", str(name), texts) for name, texts in value.items()]
    return [_source(argument, SOURCE_NAME, value)]


def _some_sources(texts: Any, tokenizer: Any, argument: str = "texts") -> list[TextSource]:
    sources = _sources(argument, texts) or [_source(argument, SOURCE_NAME, None)]  # which refuses it
    _check_tokenizer(sources, tokenizer)
    return sources


def _source(argument: str, name: str, value: Any) -> TextSource:
    if isinstance(value, TextWindows):
        return _of_windows(name, value)
    if isinstance(value, Tensor) or hasattr(value, "input_ids") or (isinstance(value, Mapping) and "input_ids" in value):
        return _of_windows(name, _token_windows(argument, name, value))
    columns = getattr(value, "column_names", None)
    if columns is not None:  # a datasets.Dataset
        column = next((name for name in ("text", CHAT_COLUMN) if name in columns), None)
        if column is None:
            raise DataError(
                f"{argument}: expected a data set with a column 'text' or '{CHAT_COLUMN}', got {', '.join(columns)}; rename_column it"
            )
        value = value[column]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        got = "one string" if isinstance(value, str) else type(value).__name__
        raise DataError(
            f"{argument}: expected a list of texts, a datasets.Dataset, token windows or a mapping of these, got {got}; give one"
        )
    texts = list(value)
    source = TextSource(name, texts=texts, chat=bool(texts) and isinstance(texts[0], list))
    if not source.texts:
        raise DataError(f"{argument}: expected one text or more, got an empty list; give texts")
    read_documents(source)  # refuses what is no text
    return source


def _token_windows(argument: str, name: str, value: Any) -> TextWindows:
    """Windows made elsewhere. The tokens of a window stand in for its document: equal windows in two sets are a leak."""
    names = ("input_ids", "attention_mask", "labels", "source_names", "source_index")
    given = {"input_ids": value} if isinstance(value, Tensor) else value
    parts = given if isinstance(given, Mapping) else {part: getattr(given, part) for part in names if hasattr(given, part)}
    try:
        ids = torch.as_tensor(parts["input_ids"]).cpu()
    except (TypeError, ValueError):  # rows of several lengths
        raise DataError(f"{argument}.input_ids: expected token ids [n, seq_len], got rows of several lengths; pad or cut them") from None
    if ids.ndim != 2 or ids.is_floating_point() or len(ids) == 0 or ids.shape[1] < 2:
        raise DataError(f"{argument}: expected whole numbers [n, seq_len], got {ids.dtype} {list(ids.shape)}; give the ids of tokens")
    ids = ids.long()
    mask = torch.as_tensor(parts.get("attention_mask", torch.ones_like(ids))).cpu().long()
    labels = torch.as_tensor(parts.get("labels", ids.masked_fill(mask == 0, IGNORED))).cpu().long()
    sources, index = parts.get("source_names", [name]), parts.get("source_index", torch.zeros(len(ids), dtype=torch.long))
    return TextWindows(ids, labels, mask, list(sources), index, _row_hashes(ids))


def _hold_out(sources: Sequence[TextSource]) -> tuple[list[TextSource], list[TextSource]]:
    """Three quarters of every source for the pool, and a quarter for the search."""
    pairs = [_split_windows(source) if source.texts is None else _split_texts(source) for source in sources]
    return [pool for pool, _ in pairs], [search for _, search in pairs]


def _split_texts(source: TextSource) -> tuple[TextSource, TextSource]:
    texts: list[Any] = source.texts or []
    if not _on_both_sides(source) and not source.chat:  # few long ones: cut into pieces as text files are
        texts = [piece for text in texts for piece in in_pieces(text.splitlines(keepends=True))]
    source = replace(source, texts=texts)
    if not _on_both_sides(source):
        characters, few = sum(len(document.text) for document in source.reader.read()), fewest_documents(1 - HELD_OUT_FROM)
        one = "" if source.chat else f", or one of {2 * few * PIECE_CHARACTERS:,} characters"  # without blank lines
        raise DataError(
            f"calibration: expected texts in {source.name!r} of which a quarter can be held out for the search, got {len(texts)} of "
            f"{characters:,} characters in all; give {few} texts or more{one}{_OR_ITS_OWN if not is_shortened('data') else ''}"
        )
    return replace(source, part=[0.0, HELD_OUT_FROM]), replace(source, part=[HELD_OUT_FROM, 1.0])


def _on_both_sides(source: TextSource) -> bool:
    """Whether some text falls to the pool and some to the search."""
    return len({d.position < HELD_OUT_FROM for d in source.reader.read() if d.text.strip()}) == 2


def _split_windows(source: TextSource) -> tuple[TextSource, TextSource]:
    """The first three quarters of the windows of each source that they come from, and the last quarter."""
    windows: TextWindows = source.options["windows"]
    kept: list[int] = []
    held: list[int] = []
    for number in range(len(windows.source_names)):
        rows = (windows.source_index == number).nonzero().flatten().tolist()
        cut = len(rows) - max(1, len(rows) // 4)
        kept, held = kept + rows[:cut], held + rows[cut:]
    if not kept:
        raise DataError(f"calibration: expected 2 windows or more, one to hold out for the search, got {len(held)}; give more")
    windows = replace(windows, document_hashes=_row_hashes(windows.input_ids))  # windows of one document may well be on both sides
    return _of_windows(source.name, windows.select(kept)), _of_windows(source.name, windows.select(held))


def _of_windows(name: str, windows: TextWindows) -> TextSource:
    return TextSource(name, kind="windows", options={"windows": windows})


def _length_of(sources: Sequence[TextSource], otherwise: int) -> int:
    """Tokens in a window of the first source of token windows, where there is one."""
    return next((source.options["windows"].seq_len for source in sources if source.texts is None), otherwise)


def _row_hashes(ids: Tensor) -> list[str]:
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in ids]


def _check_tokenizer(sources: Sequence[TextSource], tokenizer: Any) -> None:
    if tokenizer is None and any(source.texts is not None for source in sources):
        raise ConfigurationError("tokenizer: expected a tokenizer for the texts, got none; give one, or token windows instead of texts")
