"""Inside a run that will be killed: says through a pipe where it is. Nothing of what the run does is changed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

#: What a run goes through, in this order; ``start`` is everything before the first of them.
STAGES = ("scoring", "search", "surgery", "recovery", "evaluation", "export")


def watch(pipe: int) -> None:
    """Wraps the entrances of the stages, so that each writes one line: ``stage NAME``, ``trial``, ``step N`` or ``scored``."""
    from adapruner.callbacks import compression_report, lora_recovery, pruned_export, pruning_search
    from adapruner.search import find_plan, prepare_problem, study

    def say(line: str) -> None:
        os.write(pipe, f"{line}\n".encode())

    report, export = compression_report.CompressionReportCallback, pruned_export.PrunedExportCallback
    recovery: Any = lora_recovery.LoRARecoveryCallback
    for owner, name, stage in (
        (prepare_problem.ProblemBuilder, "build", "scoring"),
        (find_plan, "run_search", "search"),
        (pruning_search, "reconstruct", "surgery"),
        (recovery, "on_train_start", "recovery"),
        (report, "on_pruning_stage", "evaluation"),
        (report, "on_fit_end", "evaluation"),
        (export, "on_fit_end", "export"),
    ):
        _wrap(owner, name, functools.partial(say, f"stage {stage}"))
    _wrap(study, "_evaluate", functools.partial(say, "trial"))
    _wrap_scoring(prepare_problem, say)
    _wrap_step(recovery, say)


def _wrap(owner: Any, name: str, before: Callable[[], None]) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*arguments: Any, **options: Any) -> Any:
        before()
        return inner(*arguments, **options)

    setattr(owner, name, outer)


def _wrap_scoring(prepare_problem: Any, say: Callable[[str], None]) -> None:
    """Only where nothing on disk serves is the pool scored."""
    inner = prepare_problem.read_or_collect

    def outer(file: Any, key: str, collect: Callable[[], Any], write: bool) -> Any:
        def collect_and_say() -> Any:
            say("scored")
            return collect()

        return inner(file, key, collect_and_say if file.name.startswith("statistics") else collect, write)

    prepare_problem.read_or_collect = outer


def _wrap_step(recovery: Any, say: Callable[[str], None]) -> None:
    inner = recovery.on_train_batch_end

    @functools.wraps(inner)
    def outer(self: Any, trainer: Any, *arguments: Any, **options: Any) -> Any:
        say(f"step {trainer.global_step}")
        return inner(self, trainer, *arguments, **options)

    recovery.on_train_batch_end = outer
