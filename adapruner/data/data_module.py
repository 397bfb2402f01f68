"""Every set of a pruning run in one Lightning data module: calibration, search, recovery, evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from adapruner.data.leaks import SHORT_CHARACTERS, check_disjoint
from adapruner.data.sources import Document, TextSource, check_source, draw_documents, read_documents
from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows
from adapruner.errors import ConfigurationError, DataError

#: Samples are drawn from a random part of a large source, so that it is not tokenised whole: so many characters for
#: each token wanted, which at 4 characters a token is eight times the text.
_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class CalibrationData:
    """The pool whose statistics score the units; the search weights its sources."""

    sources: list[TextSource]
    """Where samples come from; the order is that of the source weights."""
    samples_per_source: int = 64
    """Windows (instruction rows) from each source."""
    seq_len: int = 128
    """Tokens in a sample."""


@dataclass(frozen=True)
class SearchData:
    """What the search's objective is measured on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts."""
    samples: int = 64
    """Windows in all."""
    seq_len: int = 256
    """Tokens in a sample."""


@dataclass(frozen=True)
class RecoveryData:
    """What the pruned model is tuned on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts when ``samples`` is given."""
    samples: int | None = None
    """Windows (instruction rows) in all; null for everything the sources have."""
    seq_len: int = 256
    """Tokens in a sample."""


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out text whose perplexity is reported."""

    name: str
    """The name in tables."""
    source: TextSource
    """Where the text comes from."""
    windows: list[int] = field(default_factory=lambda: [128])
    """Window lengths in tokens; the set is measured once with each."""
    limit: int | None = None
    """Keep only the first so many windows of each length; null for all."""


class PruningDataModule(LightningDataModule):
    """Builds every set once, in :meth:`setup`, and refuses text that is in two of them.

    After ``setup``: ``calibration_windows`` (``source_index`` counts ``calibration.sources``), ``search_windows``
    (shuffled, so that any first part is a fair sample), ``recovery_windows`` and ``evaluation_windows`` by
    ``(name, window)``. Without a Trainer set ``tokenizer_object`` before ``setup``.

    Args:
        calibration: the calibration pool.
        search: the objective's text; also what ``val_dataloader`` serves.
        recovery: training text, or null when nothing is trained.
        evaluation: held-out sets, or null.
        batch_size: windows in a batch.
        num_workers: processes per loader; the windows are in memory, so 0 is usually best.
        seed: decides which windows are drawn, and their order in training.
        tokenizer: name or folder; null takes the ``tokenizer`` of the Trainer's module.
        allow_leak: let sets share documents.

    Raises:
        ConfigurationError: if a number is out of range or a name stands twice.
        DataError: if a source cannot be read, or sets share documents.
    """

    calibration_windows: TextWindows
    search_windows: TextWindows
    recovery_windows: TextWindows | None
    evaluation_windows: dict[tuple[str, int], TextWindows]

    def __init__(
        self,
        calibration: CalibrationData,
        search: SearchData,
        recovery: RecoveryData | None = None,
        evaluation: list[EvaluationSet] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        tokenizer: str | None = None,
        allow_leak: bool = False,
    ) -> None:
        super().__init__()
        self.calibration, self.search, self.recovery = calibration, search, recovery
        self.evaluation = list(evaluation or [])
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.tokenizer_name, self.allow_leak = tokenizer, allow_leak
        self.tokenizer_object: Any = None
        self._ready = False
        self._short: set[str] = set()
        self._check()

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every window of every set; after ``setup``."""
        sets = [self.calibration_windows, self.search_windows, self.recovery_windows, *self.evaluation_windows.values()]
        record = " ".join("none" if windows is None else windows.fingerprint for windows in sets)
        names = " ".join(f"{name}/{window}" for name, window in self.evaluation_windows)
        return hashlib.sha256(f"{record} {names}".encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Downloads (on one process only) what ``setup`` then reads on all: the first document pulls the whole set."""
        for source in self._all_sources():
            if not source.streaming:
                next(read_documents(source))

    def setup(self, stage: str | None = None) -> None:
        """Builds all sets, whatever the stage; a second call does nothing."""
        if self._ready:
            return
        tokenizer = self._find_tokenizer()
        c, s, r = self.calibration, self.search, self.recovery
        pools = [self._draw("calibration", source, tokenizer, c.seq_len, c.samples_per_source) for source in c.sources]
        self.calibration_windows = TextWindows.concatenate(pools)
        searched = self._draw_evenly("search", s.sources, tokenizer, s.seq_len, s.samples)
        order = torch.randperm(len(searched), generator=torch.Generator().manual_seed(self._seed_of("search", "order")))
        self.search_windows = searched.select(order)
        self.recovery_windows = None if r is None else self._draw_evenly("recovery", r.sources, tokenizer, r.seq_len, r.samples)
        self.evaluation_windows = {}
        for item in self.evaluation:
            documents = list(self._note_short(read_documents(item.source)))
            for window in item.windows:
                self.evaluation_windows[item.name, window] = _named(item.name, joined_windows, documents, tokenizer, window, item.limit)
        if not self.allow_leak:
            self._check_leaks()
        self._ready = True

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Recovery windows, shuffled by ``seed``: ``input_ids``, ``attention_mask``, ``labels``, each ``[batch, seq_len]``.

        Raises:
            ConfigurationError: if there is no recovery data.
        """
        if self.recovery_windows is None:
            raise ConfigurationError("data.recovery: expected data to train on, got null; give recovery sources or do not fit")
        return self._loader(self.recovery_windows, generator=torch.Generator().manual_seed(self.seed))

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The search split, in order."""
        return self._loader(self.search_windows)

    def test_dataloader(self) -> list[DataLoader[dict[str, torch.Tensor]]]:
        """One loader per entry of ``evaluation_windows``, in its order."""
        return [self._loader(windows) for windows in self.evaluation_windows.values()]

    def _loader(self, windows: TextWindows, generator: torch.Generator | None = None) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(
            cast("Dataset[dict[str, torch.Tensor]]", windows),
            batch_size=self.batch_size,
            shuffle=generator is not None,
            generator=generator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _find_tokenizer(self) -> Any:
        if self.tokenizer_object is None and self.tokenizer_name is not None:
            from transformers import AutoTokenizer

            try:
                self.tokenizer_object = AutoTokenizer.from_pretrained(self.tokenizer_name)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(
                    f"data.tokenizer: expected a tokenizer in {self.tokenizer_name!r}, got: {reason}; correct the name"
                ) from error
        if self.tokenizer_object is None and self.trainer is not None:
            self.tokenizer_object = getattr(self.trainer.lightning_module, "tokenizer", None)
        if self.tokenizer_object is None:
            raise ConfigurationError("data.tokenizer: expected a name or a module with a tokenizer, got neither; set data.tokenizer")
        return self.tokenizer_object

    def _note_short(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < SHORT_CHARACTERS:
                self._short.add(document.hash)
            yield document

    def _seed_of(self, role: str, name: str) -> int:
        """A source draws the same whatever other sources there are, and differently in each role."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{role}/{name}".encode()).digest()[:7], "big")

    def _draw(self, role: str, source: TextSource, tokenizer: Any, seq_len: int, count: int | None) -> TextWindows:
        seed, documents, pool = self._seed_of(role, source.name), read_documents(source), None
        if source.streaming:
            pool = count  # read only as far as needed
        elif count is not None:
            documents = iter(draw_documents(documents, count * seq_len * _CHARACTERS_PER_TOKEN, seed))
        documents = self._note_short(documents)
        label = f"{role}, source {source.name!r}"
        if source.instruction:
            return _named(label, pad_instructions, documents, tokenizer, seq_len, count, seed, pool=pool)
        return _named(label, sample_windows, documents, tokenizer, seq_len, count, seed, pool=pool)

    def _draw_evenly(self, role: str, sources: Sequence[TextSource], tokenizer: Any, seq_len: int, count: int | None) -> TextWindows:
        share, rest = divmod(count or 0, len(sources))
        counts = [None if count is None else share + (i < rest) for i in range(len(sources))]
        drawn = [self._draw(role, source, tokenizer, seq_len, n) for source, n in zip(sources, counts, strict=True)]
        return TextWindows.concatenate(drawn)

    def _check_leaks(self) -> None:
        seen = {"calibration": self.calibration_windows.documents, "search": self.search_windows.documents}
        if self.recovery_windows is not None:
            seen["recovery"] = self.recovery_windows.documents
        held_out: dict[str, set[str]] = {}
        for (name, _), windows in self.evaluation_windows.items():
            held_out[f"evaluation {name!r}"] = windows.documents
        check_disjoint(seen, held_out, self._short)
        check_disjoint({"calibration": seen["calibration"]}, {"search": seen["search"]}, self._short)

    def _all_sources(self) -> list[TextSource]:
        recovery = self.recovery.sources if self.recovery else []
        return [*self.calibration.sources, *self.search.sources, *recovery, *(item.source for item in self.evaluation)]

    def _check(self) -> None:
        c, s, r = self.calibration, self.search, self.recovery
        sizes: list[tuple[str, int | None, int]] = [
            ("calibration.samples_per_source", c.samples_per_source, 1),
            ("calibration.seq_len", c.seq_len, 2),
            ("search.samples", s.samples, max(1, len(s.sources))),
            ("search.seq_len", s.seq_len, 2),
            ("batch_size", self.batch_size, 1),
            ("num_workers", self.num_workers, 0),
            ("seed", self.seed, 0),
        ]
        if r is not None:
            sizes += [("recovery.samples", r.samples, max(1, len(r.sources))), ("recovery.seq_len", r.seq_len, 2)]
        for item in self.evaluation:
            sizes += [(f"evaluation.{item.name}.windows", window, 2) for window in item.windows]
            sizes.append((f"evaluation.{item.name}.limit", item.limit, 1))
        for name, value, least in sizes:
            if value is not None and (type(value) is not int or value < least):
                raise ConfigurationError(f"data.{name}: expected a whole number >= {least}, got {value!r}; correct it")
        roles: list[tuple[str, list[TextSource]]] = [("calibration", c.sources), ("search", s.sources)]
        roles += [("recovery", r.sources)] if r is not None else []
        for role, sources in roles:
            _check_names(f"data.{role}.sources", [source.name for source in sources])
        if self.evaluation:
            _check_names("data.evaluation", [item.name for item in self.evaluation])
        for item in self.evaluation:
            _check_names(f"data.evaluation.{item.name}.windows", [str(window) for window in item.windows])
        self._check_streams()
        for source in self._all_sources():
            check_source(source)

    def _check_streams(self) -> None:
        """A stream may have no end: something must say how much of it to read."""
        unbounded = [("evaluation", item.source) for item in self.evaluation]
        unbounded += [("recovery", source) for source in (self.recovery.sources if self.recovery and self.recovery.samples is None else [])]
        for role, source in unbounded:
            if source.streaming and source.documents is None:
                remedy = "set documents" if role == "evaluation" else "set documents or recovery.samples"
                raise ConfigurationError(f"data.{role}: expected a limit for the streamed source {source.name!r}, got none; {remedy}")


def _check_names(argument: str, names: list[str]) -> None:
    if not names or len(set(names)) != len(names):
        got = "none" if not names else ", ".join(names)
        raise ConfigurationError(f"{argument}: expected one or more entries, each once, got {got}; correct the list")


def _named(label: str, build: Any, *arguments: Any, **options: Any) -> TextWindows:
    """Calls a window builder; its errors say which set they are about."""
    try:
        return cast("TextWindows", build(*arguments, **options))
    except DataError as error:
        raise DataError(f"data, {label}: {error}") from error
