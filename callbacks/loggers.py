"""The numbers of a run for the Trainer's loggers: TensorBoard, CSV and W&B get what ``report.json`` gets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from adapruner.errors import ConfigurationError
from adapruner.files.folder_lock import check_files
from adapruner.report.answer import OWN_METHOD
from adapruner.search.trials import TrialRecord


def log_report(loggers: Iterable[Logger], report: Mapping[str, Any], step: int = 0) -> None:
    """Logs :func:`metrics_of` a report.

    Args:
        step: of the optimizer, at the end of the run.
    """
    metrics = metrics_of(report)
    for logger in loggers:
        logger.log_metrics(metrics, step=step)


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """A report's numbers by name; what is not finite is left out.

    Perplexities are ``perplexity/DATASET/WINDOW/STAGE``, those of compared methods with ``/METHOD`` behind; zero-shot
    scores ``zero_shot/TASK/METRIC/STAGE``; costs ``cost/dense/latency_ms`` and the like; the
    search's result ``search/best_value`` and the like (each trial is logged by the search itself); the model's size
    ``model/parameters_pruned`` and the like.
    """
    found: dict[str, Any] = {}
    for row in report.get("perplexity") or ():
        method = "" if row["method"] in (OWN_METHOD, "dense") else f"/{row['method']}"
        found[f"perplexity/{row['dataset']}/{row['window']}/{row['stage']}{method}"] = row["value"]
    for row in (report.get("zero_shot") or {}).get("rows", ()):
        found[f"zero_shot/{row['task']}/{row['metric']}/{row['stage']}"] = row["value"]
    for which in ("dense", "pruned"):
        cost = (report.get("cost") or {}).get(which) or {}
        found |= {f"cost/{which}/{name}": value for name, value in cost.items()}
    recovery = report.get("recovery") or {}
    for section, values in (
        ("model", report["model"]),
        ("search", report.get("search")),
        *((f"recovery/{part}", recovery.get(part)) for part in ("reconstruction", "lora")),
    ):
        found |= {f"{section}/{name}": value for name, value in (values or {}).items()}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def logger_of_command(logger: Logger, command: str) -> Logger:
    """The logger of ``validate`` or ``test``: in a folder of its own where it would delete what ``fit`` logged."""
    if not isinstance(logger, CSVLogger):
        return logger
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return CSVLogger(logger.save_dir, name=logger.name, version=str(Path(version) / command))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def log_trial(loggers: Iterable[Logger], record: TrialRecord, best: TrialRecord | None) -> None:
    """Logs a finished trial of the search, and the best value so far."""
    values = {"search/value": record.value, "search/best": None if best is None else best.value, "search/seconds": record.seconds}
    for logger in loggers:
        logger.log_metrics({k: v for k, v in values.items() if v is not None}, step=record.trial)


class LateLoggers:
    """Opens a Trainer's loggers once a run is accepted: Lightning's own way to do it, before any callback is asked, deletes what they
    logged before."""

    def __init__(self) -> None:
        self.waiting: list[Logger] = []

    @contextmanager
    def put_off(self, trainer: Trainer) -> Iterator[None]:
        """A ``fit`` inside the block has no loggers before :meth:`open`."""
        self.waiting, trainer.loggers = trainer.loggers, []
        try:
            yield
        finally:
            self._bring_back(trainer)

    def open(self, trainer: Trainer) -> None:
        """As Lightning does at the start of a ``fit``; what an earlier attempt logged stays."""
        self._bring_back(trainer)
        keep_earlier_metrics(trainer.loggers)
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)

    def _bring_back(self, trainer: Trainer) -> None:
        if self.waiting:
            trainer.loggers, self.waiting = self.waiting, []


def check_log_files(loggers: Iterable[Logger]) -> None:
    """Whether CSV loggers can write where an earlier run, or somebody else, may have left something.

    Raises:
        ConfigurationError: if a folder or a link that leads nowhere is in the place of their files, or a file in that of their folder.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            folder = Path(logger.log_dir)
            at = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
            if not at.is_dir():
                raise ConfigurationError(f"trainer.logger: expected a folder at {at}, got something else; move it away")
            check_files(folder)


@rank_zero_only
def keep_earlier_metrics(loggers: Iterable[Logger]) -> None:
    """Moves ``metrics.csv`` of an earlier attempt to ``metrics-1.csv`` and so on: Lightning's logger would delete it."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        file = Path(logger.log_dir) / "metrics.csv"
        if file.is_file() and logger._experiment is None:  # else this attempt is writing it
            number = next(n for n in count(1) if not file.with_name(f"metrics-{n}.csv").exists())
            file.replace(file.with_name(f"metrics-{number}.csv"))
