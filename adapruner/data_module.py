"""Every set of a pruning run for a Lightning Trainer: calibration, search, reconstruction, recovery, evaluation."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from adapruner.argument_checks import check_type
from adapruner.data.options import check_size
from adapruner.data.padding_rows import share_out
from adapruner.data.prompts import prompt_loader, read_prompts
from adapruner.data.resumable import training_loader
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import read_documents
from adapruner.data.too_little_text import TooLittleTextError
from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, DataError
from adapruner.hub_names import hub_fault
from adapruner.models.loading import leave_out_warnings_of_widths
from adapruner.progress import announce


class PruningDataModule(LightningDataModule):
    """Builds every set once, in :meth:`setup`, and refuses text that is in two of them.

    After ``setup`` it has every set of :class:`adapruner.data.run_data.RunData`, by the same names, and thus offers what
    :class:`adapruner.data.run_data.PruningData` asks of any data module. ``source_index`` of the calibration windows counts
    ``calibration.sources``, or the sources of a given set; the search windows are shuffled, so that any first part is a fair sample.
    Without a Trainer set ``tokenizer_object`` before ``setup``.

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
        bos: which windows begin with the tokenizer's begin-of-text token: ``auto``, every one where the tokenizer puts one before a
            text; ``every``; ``first``, at the start of a text only, as LLM-Pruner measures; ``none``.
        prompts: for ``predict``: a file with one prompt a line, or .jsonl with ``prompt`` in each row.
        take_fewer: where a source has less text than asked for, take what there is, down to a few windows, and say so; else it is an
            error.
        reconstruction: what the refit sees, or null where that is the calibration pool.

    Raises:
        ConfigurationError: if a number is out of range, a name stands twice, or calibration has both sources and a given set.
        DataError: if a source or a given set cannot be read, or sets share documents.

    >>> from adapruner.data.sets import CalibrationData, SearchData
    >>> from adapruner.data.text_source import TextSource
    >>> from adapruner.models.loading import load_tokenizer
    >>> pool = CalibrationData([TextSource("torch", demo="torch", split="calibration")], samples_per_source=4, seq_len=64)
    >>> held_out = SearchData([TextSource("stdlib", demo="stdlib", split="search")], samples=4, seq_len=64)
    >>> data = PruningDataModule(pool, held_out)
    >>> data.tokenizer_object = load_tokenizer("demo")  # a Trainer takes its module's
    >>> data.setup()
    >>> data.calibration_windows.input_ids.shape
    torch.Size([4, 64])
    """

    calibration_windows: TextWindows
    calibration_windows_at: dict[int, TextWindows]
    calibration_sample_weights: torch.Tensor | None
    calibration_fingerprint: str
    search_windows: TextWindows
    reconstruction_windows: TextWindows | None
    recovery_windows: TextWindows | None
    evaluation_windows: dict[tuple[str, int], TextWindows]
    fingerprint: str | None
    run_data: RunData | None = None
    """All of the above as one record, after ``setup``."""

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
        bos: str = "auto",
        take_fewer: bool = False,
        reconstruction: ReconstructionData | None = None,
    ) -> None:
        super().__init__()
        for argument, value, hint in (
            ("calibration", calibration, CalibrationData),
            ("search", search, SearchData),
            ("reconstruction", reconstruction, ReconstructionData | None),
            ("recovery", recovery, RecoveryData | None),
            ("evaluation", evaluation, list[EvaluationSet] | None),
            ("tokenizer", tokenizer, str | None),
            ("allow_leak", allow_leak, bool),
            ("take_fewer", take_fewer, bool),
            ("prompts", prompts, str | Path | None),
        ):
            check_type(f"data.{argument}", value, hint)
        self.calibration, self.search, self.recovery = calibration, search, recovery
        self.evaluation = list(evaluation or [])
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.tokenizer_name: str | None = tokenizer
        self.tokenizer_object: Any = None
        self.prompts = None if prompts is None else read_prompts(prompts)
        text = {"reconstruction": reconstruction, "allow_leak": allow_leak, "bos": bos, "take_fewer": take_fewer}
        self.sets = TextSets(calibration, search, recovery, self.evaluation, seed, **text)  # type: ignore[arg-type]
        self.sets.check(partial(check_size, "data.batch_size", batch_size, 1), partial(check_size, "data.num_workers", num_workers, 0, 256))

    def card(self) -> dict[str, Any] | None:
        """What text every set holds, with hashes (:attr:`adapruner.data.run_data.RunData.card`); ``None`` before ``setup``."""
        return None if self.run_data is None or self.run_data.card is None else dict(self.run_data.card)

    def prepare_data(self) -> None:
        """Downloads (on one process only) what ``setup`` then reads on all: the first document pulls the whole set."""
        for source in self.sets.sources:
            if not source.streaming:
                with suppress(TooLittleTextError):  # setup says which set it is too little for
                    next(read_documents(source))

    def setup(self, stage: str | None = None) -> None:
        """Builds all sets, whatever the stage; a second call does nothing."""
        if self.run_data is not None or stage == "predict":  # prompts are all that it needs
            return
        if self.trainer is not None:
            announce("reads the text and cuts it into windows of tokens")
        data = self.run_data = self.sets.build(self._find_tokenizer())
        self.calibration_windows, self.calibration_windows_at = data.calibration_windows, dict(data.calibration_windows_at)
        self.calibration_sample_weights, self.calibration_fingerprint = data.calibration_sample_weights, data.calibration_fingerprint
        self.search_windows, self.recovery_windows = data.search_windows, data.recovery_windows
        self.reconstruction_windows = data.reconstruction_windows
        self.evaluation_windows, self.fingerprint = dict(data.evaluation_windows), data.fingerprint

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Recovery windows, shuffled by ``seed``: ``input_ids``, ``attention_mask``, ``labels``, each ``[batch, seq_len]``.

        ``batch_size`` is that of one rank. The loader's state is kept in checkpoints: a resumed run goes on with the next batch.

        Raises:
            ConfigurationError: if there is no recovery data.
        """
        if self.recovery_windows is None:
            raise ConfigurationError("data.recovery: expected data to train on, got null; give recovery sources or do not fit")
        ranks, rank = self._place()
        return training_loader(self.recovery_windows, self.batch_size, self.seed, ranks=ranks, rank=rank, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The search windows, in order; each of several ranks serves its share (:mod:`adapruner.data.padding_rows`)."""
        return self._served(self.search_windows)

    def test_dataloader(self) -> list[DataLoader[dict[str, torch.Tensor]]]:
        """One loader per entry of ``evaluation_windows``, in its order; shared out as by :meth:`val_dataloader`."""
        return [self._served(windows) for windows in self.evaluation_windows.values()]

    def predict_dataloader(self) -> DataLoader[str]:
        """The prompts, one at a time; none where there are none."""
        return prompt_loader(self.prompts or [])

    def _place(self) -> tuple[int, int]:
        """Number of ranks that see different data, and which of them this process is."""
        strategy: Any = None if self.trainer is None else self.trainer.strategy
        place = getattr(strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return place["num_replicas"], place["rank"]

    def _served(self, windows: TextWindows) -> DataLoader[dict[str, torch.Tensor]]:
        """This rank's share, in order."""
        own, order = share_out(windows, *self._place())
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(own, self.batch_size, sampler=order, **workers)  # type: ignore[arg-type]

    def _find_tokenizer(self) -> Any:
        if self.tokenizer_object is None and self.tokenizer_name is not None:
            from transformers import AutoTokenizer

            fault = None if Path(self.tokenizer_name).exists() else hub_fault(self.tokenizer_name)
            if fault is not None:
                raise DataError(
                    f"data.tokenizer: expected a tokenizer's folder or hub name, got {self.tokenizer_name!r}: {fault}; correct it"
                )
            try:
                leave_out_warnings_of_widths()
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
