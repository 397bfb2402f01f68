"""Every set of a pruning run in one Lightning data module: calibration, search, recovery, evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from adapruner.data.calibration_set import CalibrationSet, read_set
from adapruner.data.card import describe_data
from adapruner.data.leaks import SHORT_CHARACTERS, check_disjoint
from adapruner.data.options import check_sets, sources_of
from adapruner.data.padding_rows import share_out
from adapruner.data.prompts import prompt_loader, read_prompts
from adapruner.data.resumable import ResumableLoader, SharedOrder
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.sources import Document, TextSource, draw_documents, read_documents
from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows
from adapruner.errors import ConfigurationError, DataError

__all__ = ["CalibrationData", "EvaluationSet", "PruningDataModule", "RecoveryData", "SearchData"]

#: Samples are drawn from a random part of a large source, so that it is not tokenised whole: so many characters for
#: each token wanted, which at 4 characters a token is eight times the text.
_CHARACTERS_PER_TOKEN = 32


class PruningDataModule(LightningDataModule):
    """Builds every set once, in :meth:`setup`, and refuses text that is in two of them.

    After ``setup``: ``calibration_windows`` (``source_index`` counts ``calibration.sources``, or the sources of a given set),
    ``calibration_windows_at`` (the same by length in tokens, with every other length), ``calibration_sample_weights`` (of a given
    set, else ``None``), ``search_windows`` (shuffled, so that any first part is a fair sample), ``recovery_windows`` and
    ``evaluation_windows`` by ``(name, window)``. Without a Trainer set ``tokenizer_object`` before ``setup``.

    Args:
        calibration: the calibration pool.
        search: the objective's text; also what ``val_dataloader`` serves.
        recovery: training text, or null when nothing is trained.
        evaluation: held-out sets, or null.
        batch_size: windows in a batch, of one rank.
        num_workers: processes per loader; the windows are in memory, so 0 is usually best.
        seed: decides which windows are drawn, and their order in training.
        tokenizer: name or folder; null takes the ``tokenizer`` of the Trainer's module.
        allow_leak: let sets share documents.
        prompts: for ``predict``: a file with one prompt a line, or .jsonl with ``prompt`` in each row.

    Raises:
        ConfigurationError: if a number is out of range, a name stands twice, or calibration has both sources and a given set.
        DataError: if a source or a given set cannot be read, or sets share documents.
    """

    calibration_windows: TextWindows
    calibration_windows_at: dict[int, TextWindows]
    """Length in tokens -> the pool at that length; the first is ``calibration_windows``."""
    calibration_sample_weights: torch.Tensor | None
    """``[n]`` float32 with sum 1, the weights of a given set; ``None`` where all samples start alike."""
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
        prompts: str | None = None,
    ) -> None:
        super().__init__()
        self.calibration, self.search, self.recovery = calibration, search, recovery
        self.evaluation = list(evaluation or [])
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.tokenizer_name, self.allow_leak = tokenizer, allow_leak
        self.tokenizer_object: Any = None
        self.prompts = None if prompts is None else read_prompts(prompts)
        self._ready = False
        self._short: set[str] = set()
        check_sets(calibration, search, recovery, self.evaluation, batch_size, num_workers, seed)
        self.given_set: CalibrationSet | None = None if calibration.given_set is None else read_set(calibration.given_set)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every window of every set, and the weights of a given one; after ``setup``."""
        sets = [self.search_windows, self.recovery_windows, *self.evaluation_windows.values()]
        record = " ".join([self.calibration_fingerprint, *("none" if windows is None else windows.fingerprint for windows in sets)])
        names = " ".join(f"{name}/{window}" for name, window in self.evaluation_windows)
        return hashlib.sha256(f"{record} {names}".encode()).hexdigest()[:16]

    @property
    def calibration_fingerprint(self) -> str:
        """16 hex digits over everything that a sample's weight may be searched over; after ``setup``.

        That of ``calibration_windows`` where there is nothing beside them: one length, no clusters, no given set.
        """
        parts = [windows.fingerprint for windows in self.calibration_windows_at.values()]
        if self.calibration.clusters:
            parts.append(f"{self.calibration.clusters} clusters")
        if self.calibration_sample_weights is not None:
            parts.append(" ".join(f"{weight:.6g}" for weight in self.calibration_sample_weights.tolist()))
        return parts[0] if len(parts) == 1 else hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]

    def card(self) -> dict[str, Any]:
        """What text every set holds, with hashes (:func:`adapruner.data.card.describe_data`); after ``setup``."""
        return describe_data(self)

    def prepare_data(self) -> None:
        """Downloads (on one process only) what ``setup`` then reads on all: the first document pulls the whole set."""
        for source in self._all_sources():
            if not source.streaming:
                next(read_documents(source))

    def setup(self, stage: str | None = None) -> None:
        """Builds all sets, whatever the stage; a second call does nothing."""
        if self._ready or stage == "predict":  # prompts are all that it needs
            return
        tokenizer = self._find_tokenizer()
        s, r = self.search, self.recovery
        self._build_calibration(tokenizer)
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

        ``batch_size`` is that of one rank. The loader's state is kept in checkpoints: a resumed run goes on with the next batch.

        Raises:
            ConfigurationError: if there is no recovery data.
        """
        if self.recovery_windows is None:
            raise ConfigurationError("data.recovery: expected data to train on, got null; give recovery sources or do not fit")
        order = SharedOrder(self.recovery_windows, self.batch_size, self.seed, *self._place())
        return self._loader(self.recovery_windows, order)

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The search split, in order; of several ranks each serves its share, filled up with rows that count nothing."""
        return self._loader(*share_out(self.search_windows, *self._place()))

    def test_dataloader(self) -> list[DataLoader[dict[str, torch.Tensor]]]:
        """One loader per entry of ``evaluation_windows``, in its order; shared out as by :meth:`val_dataloader`."""
        return [self._loader(*share_out(windows, *self._place())) for windows in self.evaluation_windows.values()]

    def predict_dataloader(self) -> DataLoader[str]:
        """The prompts, one at a time; none where there are none."""
        return prompt_loader(self.prompts or [])

    def _place(self) -> tuple[int, int]:
        """Number of ranks, and this one: of those that see different data."""
        strategy: Any = None if self.trainer is None else self.trainer.strategy
        place = getattr(strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return place["num_replicas"], place["rank"]

    def _loader(self, windows: TextWindows, order: DistributedSampler[Any] | None = None) -> DataLoader[dict[str, torch.Tensor]]:
        shuffled = isinstance(order, SharedOrder)
        kind: Any = ResumableLoader if shuffled else DataLoader
        loader: DataLoader[dict[str, torch.Tensor]] = kind(
            windows,
            batch_size=self.batch_size,
            sampler=order,
            generator=torch.Generator().manual_seed(self.seed) if shuffled else None,  # without one it would draw from everyone's
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
        return loader

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

    def _build_calibration(self, tokenizer: Any) -> None:
        """The pool at every length. Each has as many samples of a source, not as many tokens: a sample is what gets a weight."""
        c = self.calibration
        self.calibration_sample_weights = None
        if self.given_set is not None:
            windows, self.calibration_sample_weights = self.given_set.to_windows(tokenizer, c.seq_len)
            self.calibration_windows_at = {c.seq_len: windows}
        else:
            self.calibration_windows_at = {
                length: TextWindows.concatenate([self._draw("calibration", x, tokenizer, length, c.samples_per_source) for x in c.sources])
                for length in (c.seq_len, *c.other_seq_lens)
            }
        self.calibration_windows = self.calibration_windows_at[c.seq_len]
        samples = len(self.calibration_windows)
        if c.clusters > samples:
            raise ConfigurationError(
                f"data.calibration.clusters: expected at most one per sample ({samples}), got {c.clusters}; give fewer clusters"
            )

    def _draw_evenly(self, role: str, sources: Sequence[TextSource], tokenizer: Any, seq_len: int, count: int | None) -> TextWindows:
        share, rest = divmod(count or 0, len(sources))
        counts = [None if count is None else share + (i < rest) for i in range(len(sources))]
        drawn = [self._draw(role, source, tokenizer, seq_len, n) for source, n in zip(sources, counts, strict=True)]
        return TextWindows.concatenate(drawn)

    def _check_leaks(self) -> None:
        calibration = set().union(*(windows.documents for windows in self.calibration_windows_at.values()))
        seen = {"calibration": calibration, "search": self.search_windows.documents}
        if self.recovery_windows is not None:
            seen["recovery"] = self.recovery_windows.documents
        held_out: dict[str, set[str]] = {}
        for (name, _), windows in self.evaluation_windows.items():
            held_out[f"evaluation {name!r}"] = windows.documents
        check_disjoint(seen, held_out, self._short)
        check_disjoint({"calibration": seen["calibration"]}, {"search": seen["search"]}, self._short)

    def _all_sources(self) -> list[TextSource]:
        return sources_of(self.calibration, self.search, self.recovery, self.evaluation)


def _named(label: str, build: Any, *arguments: Any, **options: Any) -> TextWindows:
    """Calls a window builder; its errors say which set they are about."""
    try:
        return cast("TextWindows", build(*arguments, **options))
    except DataError as error:
        raise DataError(f"data, {label}: {error}") from error
