"""The sets of a run from what a Python program has at hand: texts, a data set of ``datasets``, or token windows made elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapruner.data.card import sources_in_words
from adapruner.data.documents import Document
from adapruner.data.draw_windows import WindowDrawer, shares
from adapruner.data.files import in_pieces
from adapruner.data.options import check_size
from adapruner.data.run_data import RunData
from adapruner.data.sets import EvaluationSet
from adapruner.data.text_sets import check_leaks, joined_sets
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.windows import IGNORED, TextWindows
from adapruner.errors import ConfigurationError, DataError, check_all
from adapruner.progress import announce

#: Where no text is given for the search, it gets the documents whose hashes fall behind this, and the calibration pool the others.
HELD_OUT_FROM = 0.75
#: Name of a source that has none.
SOURCE_NAME = "texts"
#: With fewer windows neither statistics nor an objective mean anything.
LEAST_WINDOWS = 4

Given = dict[str, TextSource | TextWindows]
"""Name of a source -> where its windows come from, or the windows themselves."""


def data_from_texts(
    calibration: Any,
    tokenizer: Any,
    *,
    search: Any = None,
    recovery: Any = None,
    evaluation: Any = None,
    seq_len: int = 128,
    samples_per_source: int = 64,
    search_samples: int = 64,
    search_seq_len: int = 256,
    recovery_seq_len: int = 256,
    window: int = 128,
    seed: int = 0,
) -> RunData:
    """Token windows of every set of a run, the same as :class:`adapruner.PruningDataModule` draws from files with these texts.

    Each of the four sets is a list of texts (one source, named ``texts``), a ``datasets.Dataset`` with a column ``text``, token windows,
    or a mapping of source names to any of these, such as a ``DatasetDict``. Token windows are an int64 tensor ``[n, seq_len]``, or an
    object or mapping with ``input_ids`` and, if it likes, ``attention_mask`` and ``labels`` of the same shape; they are taken whole.

    Where there is less text than asked for, all of it is taken, and one line says so.

    Args:
        calibration: the pool whose statistics score the units.
        tokenizer: a Hugging Face tokenizer; token windows need none.
        search: what the search's objective is measured on. ``None`` holds out the documents of ``calibration`` that fall into
            ``part: [0.75, 1.0]`` of each source, and leaves the pool ``part: [0.0, 0.75]``; of token windows the last quarter.
        recovery: what the pruned model is trained on, or ``None``.
        evaluation: held-out text whose perplexity is reported, or ``None``; a source is a set.
        seq_len: tokens in a calibration window.
        samples_per_source: calibration windows from each source.
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
    if calibration is None:
        raise DataError(
            "calibration: expected a list of texts, a datasets.Dataset, token windows or a mapping of these, got None; give one"
        )
    pool_from, search_from = _given("calibration", calibration), _given("search", search)
    train_from, held_from = _given("recovery", recovery), _given("evaluation", evaluation)
    lengths = {"seq_len": seq_len, "search_seq_len": search_seq_len, "recovery_seq_len": recovery_seq_len, "window": window}
    check_all(
        *(partial(check_size, name, value, 2) for name, value in lengths.items()),
        partial(check_size, "samples_per_source", samples_per_source, 1),
        partial(check_size, "search_samples", search_samples, len(search_from or pool_from)),
        partial(check_size, "seed", seed, 0),
    )
    for given in (pool_from, search_from, train_from, held_from):
        _check_tokenizer(given, tokenizer)
    held_out = not search_from
    if held_out:
        pool_from, search_from = _hold_out(pool_from)
    drawer = _GreedyDrawer(tokenizer, seed)
    pool = drawer.windows("calibration", pool_from, seq_len, [samples_per_source] * len(pool_from), LEAST_WINDOWS)
    search_counts = shares(search_samples, len(search_from))
    try:
        searched = drawer.windows("search", search_from, search_seq_len, search_counts, -(-LEAST_WINDOWS // len(search_from)), skip=True)
    except DataError as error:
        own = "; or give the search texts of its own: now it has a quarter of the calibration texts"
        raise DataError(f"{error}{own if held_out else ''}") from error
    searched = drawer.shuffled("search", searched)
    trained = drawer.windows("recovery", train_from, recovery_seq_len, [None] * len(train_from), 1) if train_from else None
    tested = {key: windows for name, item in held_from.items() for key, windows in drawer.evaluation(name, item, window).items()}
    check_leaks({pool.seq_len: pool}, searched, trained, tested, drawer.short_documents)
    if drawer.short_of:
        announce(f"less text than asked for: {', '.join(drawer.short_of)}")
    words = {"calibration": _in_words(pool_from), "search": _in_words(search_from), "recovery": _in_words(train_from)}
    words |= {f"evaluation {name!r}": _in_words({name: item}) for name, item in held_from.items()}
    return joined_sets({pool.seq_len: pool}, searched, trained, tested, words, seed)


def windows_from_texts(texts: Any, tokenizer: Any, *, role: str = "recovery", seq_len: int = 256, seed: int = 0) -> TextWindows:
    """All windows ``[n, seq_len]`` of one set, in the forms that :func:`data_from_texts` takes.

    Raises:
        ConfigurationError: if there are texts but no tokenizer.
        DataError: if nothing is given, or it is neither text nor windows.
    """
    given = _given("texts", texts)
    if not given:
        raise DataError("texts: expected a list of texts, a datasets.Dataset, token windows or a mapping of these, got None; give one")
    _check_tokenizer(given, tokenizer)
    return _GreedyDrawer(tokenizer, seed).windows(role, given, seq_len, [None] * len(given), 1)


def evaluation_from_texts(texts: Any, tokenizer: Any, *, windows: Sequence[int] = (128,)) -> dict[tuple[str, int], TextWindows]:
    """(name of the source, window in tokens) -> windows that do not overlap, in the forms that :func:`data_from_texts` takes.

    Raises:
        ConfigurationError: if there are texts but no tokenizer, or a window is shorter than 2 tokens.
        DataError: if nothing is given, it is neither text nor windows, or a text is shorter than a window.
    """
    given = _given("texts", texts)
    if not given:
        raise DataError("texts: expected a list of texts, a datasets.Dataset, token windows or a mapping of these, got None; give one")
    check_all(*(partial(check_size, "window", window, 2) for window in windows))
    _check_tokenizer(given, tokenizer)
    drawer = _GreedyDrawer(tokenizer, 0)
    return {key: found for name, item in given.items() for n in windows for key, found in drawer.evaluation(name, item, n).items()}


def _check_tokenizer(given: Given, tokenizer: Any) -> None:
    if tokenizer is None and any(isinstance(item, TextSource) for item in given.values()):
        raise ConfigurationError("tokenizer: expected a tokenizer for the texts, got none; give one, or token windows instead of texts")


class _GreedyDrawer(WindowDrawer):
    """Takes what there is where that is less than asked for, and windows as they are."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.short_of: list[str] = []
        """``calibration 'wiki' 12 of 64 windows``, for every source with too little text."""

    def windows(self, role: str, given: Given, seq_len: int, counts: Sequence[int | None], least: int, skip: bool = False) -> TextWindows:
        """Windows of every source, ``least`` or more of each where there is a count.

        Args:
            skip: leave out a source that has fewer, as long as another has enough.
        """
        parts, refused = [], None
        for (name, item), count in zip(given.items(), counts, strict=True):
            try:
                windows = item if isinstance(item, TextWindows) else self.draw(role, item, seq_len, count, min(least, count or least))
            except DataError as error:
                if not skip:
                    raise
                refused = error
                self.short_of.append(f"{role} {name!r} none of {count} windows")
                continue
            if isinstance(item, TextSource) and count is not None and len(windows) < count:
                self.short_of.append(f"{role} {name!r} {len(windows)} of {count} windows")
            parts.append(windows)
        if refused is not None and not parts:
            raise refused
        return TextWindows.concatenate(parts)

    def evaluation(self, name: str, item: TextSource | TextWindows, window: int) -> dict[tuple[str, int], TextWindows]:
        return {(name, item.seq_len): item} if isinstance(item, TextWindows) else self.joined(EvaluationSet(name, item, [window]))


def _given(argument: str, value: Any) -> Given:
    """What was given for one set, by source; empty for ``None``."""
    if value is None:
        return {}
    if isinstance(value, Mapping) and "input_ids" not in value:
        if not value:
            raise DataError(f"{argument}: expected one source or more, got an empty mapping; give texts under a name")
        return {str(name): _source(f"{argument}[{name!r}]", str(name), texts) for name, texts in value.items()}
    return {SOURCE_NAME: _source(argument, SOURCE_NAME, value)}


def _source(argument: str, name: str, value: Any) -> TextSource | TextWindows:
    if isinstance(value, TextWindows):
        return value
    if isinstance(value, Tensor) or hasattr(value, "input_ids") or (isinstance(value, Mapping) and "input_ids" in value):
        return _token_windows(argument, name, value)
    columns = getattr(value, "column_names", None)
    if columns is not None:  # a datasets.Dataset
        if "text" not in columns:
            raise DataError(f"{argument}: expected a data set with a column 'text', got {', '.join(columns)}; rename_column it")
        value = value["text"]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        got = "one string" if isinstance(value, str) else type(value).__name__
        raise DataError(
            f"{argument}: expected a list of texts, a datasets.Dataset, token windows or a mapping of these, got {got}; give one"
        )
    source = TextSource(name, texts=list(value))
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


def _hold_out(given: Given) -> tuple[Given, Given]:
    """A quarter of every source for the search, and the rest."""
    pool: Given = {}
    search: Given = {}
    for name, item in given.items():
        if isinstance(item, TextSource):
            texts = item.texts or []
            if not _on_both_sides(texts):  # few long ones: cut into pieces as text files are
                texts = [piece for text in texts for piece in in_pieces(text.splitlines(keepends=True))]
            if not _on_both_sides(texts):
                raise DataError(
                    f"calibration: expected texts in {name!r} of which a quarter can be held out for the search, got {len(texts)} pieces, "
                    "all on one side; give more text, or give the search texts of its own"
                )
            pool[name] = TextSource(name, texts=texts, part=[0.0, HELD_OUT_FROM])
            search[name] = TextSource(name, texts=texts, part=[HELD_OUT_FROM, 1.0])
        else:
            pool[name], search[name] = _hold_out_rows(item)
    return pool, search


def _on_both_sides(texts: Sequence[str]) -> bool:
    """Whether some text falls to the pool and some to the search."""
    return len({Document("", "", text).position < HELD_OUT_FROM for text in texts if text.strip()}) == 2


def _hold_out_rows(windows: TextWindows) -> tuple[TextWindows, TextWindows]:
    """The first three quarters of each source's windows, and the last quarter."""
    kept: list[int] = []
    held: list[int] = []
    for source in range(len(windows.source_names)):
        rows = (windows.source_index == source).nonzero().flatten().tolist()
        cut = len(rows) - max(1, len(rows) // 4)
        kept, held = kept + rows[:cut], held + rows[cut:]
    if not kept:
        raise DataError(f"calibration: expected 2 windows or more, one to hold out for the search, got {len(held)}; give more")
    windows = replace(windows, document_hashes=_row_hashes(windows.input_ids))  # windows of one document may well be on both sides
    return windows.select(kept), windows.select(held)


def _row_hashes(ids: Tensor) -> list[str]:
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in ids]


def _in_words(given: Given) -> list[str]:
    kinds = ((name, item) for name, item in given.items())
    return [f"{n}: {len(x):,} windows in memory" if isinstance(x, TextWindows) else sources_in_words([x])[0] for n, x in kinds]
