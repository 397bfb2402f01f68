"""Measures the dense, pruned, reconstructed and recovered model, and other methods at the same budget; writes the report."""

from __future__ import annotations

import copy
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback, short_recovery
from adapruner.callbacks.loggers import log_report
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.report_memory import ReportMemory
from adapruner.callbacks.report_sections import (
    EvaluatedText,
    calibration_section,
    cost_section,
    hardware_in_words,
    model_section,
    package_versions,
    search_section,
    seeds_section,
)
from adapruner.callbacks.zero_shot_evaluation import ZeroShotEvaluationCallback
from adapruner.errors import ConfigurationError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.importance.metrics import find_metric
from adapruner.progress import announce, progress_bar
from adapruner.pruning.depth_and_width import depth_and_width_removed
from adapruner.recovery.post_pruning import PostPruning, pruned_only
from adapruner.report.comparison import baseline_recipes
from adapruner.search.split import split_windows

METHOD = "adapruner"


class CompressionReportCallback(Callback):
    """Writes ``report.json`` and ``report.html`` and prints the answer.

    Needs a :class:`PruningSearchCallback` in the same Trainer, and a data module with ``evaluation_windows``.

    Args:
        compare: metrics to prune with alone, at the same budget; empty for none. The best fixed recipe that the search tried
            (a metric, a source, one global ranking) is compared too.
        compare_allocations: ``uniform`` (every layer loses the same), ``global`` (one ranking of score per parameter).
        compare_recovered: (needs trainer.max_steps) recover each compared method too, with the run's own data and optimizer. Costs
            one short training each and a copy of the pruned model.
        batch_size: windows in one forward pass of an evaluation.
        prompts: texts that the dense and the final model continue, for the page.
        latency_seq_len: tokens in the timed forward pass.
        latency_repeats: timed rounds.
        speed_batches: batch sizes at which dense and pruned model are timed side by side, prefill and decoding; empty for none.
        speed_seq_lens: lengths in tokens of these, each with each batch size; ``latency_seq_len`` when empty.
        name: of the run; the run folder's name when empty.
        folder: where the report goes; the search's folder when empty.
    """

    def __init__(
        self,
        compare: list[str] | None = None,
        compare_allocations: list[str] | None = None,
        compare_recovered: bool = False,
        batch_size: int = 8,
        prompts: list[str] | None = None,
        latency_seq_len: int = 128,
        latency_repeats: int = 20,
        speed_batches: list[int] | None = None,
        speed_seq_lens: list[int] | None = None,
        name: str | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        sizes = [("batch_size", batch_size, 1), ("latency_seq_len", latency_seq_len, 1), ("latency_repeats", latency_repeats, 1)]
        swept = [*(("speed_batches", b, 1) for b in speed_batches or ()), *(("speed_seq_lens", n, 2) for n in speed_seq_lens or ())]
        for argument, value, least in (*sizes, *swept):
            if value < least:
                raise ConfigurationError(f"report.{argument}: expected {least} or more, got {value}; give a larger number")
        self.compared_metrics = list(compare or [])  # the search collects what these need, too
        for metric in self.compared_metrics:
            find_metric(metric)
        self.recipes = baseline_recipes(self.compared_metrics, list(compare_allocations or ["uniform"]))
        self.compare_recovered, self.batch_size, self.prompts = compare_recovered, batch_size, list(prompts or [])
        self.latency_seq_len, self.latency_repeats = latency_seq_len, latency_repeats
        self.speed_batches, self.speed_seq_lens = list(speed_batches or []), list(speed_seq_lens or [latency_seq_len])
        self.name, self.folder_name = name, folder
        self.perplexity: list[dict[str, Any]] = []
        self.protocols: list[str] = []
        self.texts: dict[tuple[str, int], EvaluatedText] = {}
        self.generations: list[dict[str, str]] = []
        self.dense_config: Any = None
        self.dense_search_nll: float | None = None
        self.cost: dict[str, Any] | None = None
        self._pruning: PruningSearchCallback | None = None
        self._memory = ReportMemory()
        self._complete = False

    # ------------------------------------------------------------------------------------------------------ measuring
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer without a search."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit" and not any(isinstance(c, PruningSearchCallback) for c in callbacks):
            raise ConfigurationError(
                "trainer.callbacks: expected a PruningSearchCallback beside CompressionReportCallback, got none; add one"
            )

    def check_before_search(self, trainer: Trainer) -> None:
        """Called by the search before any work: what a comparison after recovery needs."""
        if not self.compare_recovered or self._lora(trainer) is None:
            return
        if trainer.max_steps < 1 or trainer.accumulate_grad_batches != 1 or not hasattr(trainer.lightning_module, "build_optimizer"):
            raise ConfigurationError(
                "report.compare_recovered: expected trainer.max_steps, no gradient accumulation and a module with build_optimizer, got "
                f"max_steps {trainer.max_steps}, accumulate_grad_batches {trainer.accumulate_grad_batches} and "
                f"{type(trainer.lightning_module).__name__}; set trainer.max_steps or compare_recovered: false"
            )

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
        """Called by the search: at ``dense``, with the plan known, and after the surgery."""
        self._pruning = pruning
        if not trainer.is_global_zero:
            return
        model = pruning.language_model(pl_module)
        with isolate_rng():
            if stage == "dense":
                depends_on = {"batch size": self.batch_size, "recovered too": self.compare_recovered}
                self._memory = ReportMemory.of_run(trainer, pruning, depends_on)
                self._measure_dense(trainer, pl_module, model, pruning)
            else:
                self._add(METHOD, stage, self._memory.measure(METHOD, stage, lambda: self._measure(trainer, model)))

    def knows_stage(self, trainer: Trainer, stage: str) -> bool:
        """Whether an earlier attempt measured the plan at this stage, so that the model need not be brought there again."""
        return self._memory.recall(METHOD, stage) is not None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the final model; the export follows, then :meth:`teardown` writes."""
        if self._pruning is None or self._pruning.plan is None or not trainer.is_global_zero:
            return
        model = getattr(pl_module, self._pruning.model_attribute)
        with isolate_rng():
            if self._lora(trainer) is not None:
                announce("evaluates the recovered model")
                self._add(METHOD, "recovered", self._measure(trainer, model))
            if self.prompts and self.generations:
                for row, text in zip(self.generations, self._generate(pl_module, model), strict=True):
                    row["recovered"] = text
            if self.dense_config is not None:
                announce("times the dense and the pruned model in turns")
                swept = (self.speed_batches, self.speed_seq_lens)
                self.cost = cost_section(self.dense_config, model, self.latency_seq_len, self.latency_repeats, *swept)
        self._complete = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the report of a run that came to its end."""
        if stage != "fit" or not self._complete or not trainer.is_global_zero:
            return
        from adapruner.report.record import write_report
        from adapruner.report.table import print_report

        assert self._pruning is not None
        folder = Path(self.folder_name or self._pruning.folder)
        record = self.to_report(trainer, pl_module)
        write_report(record, folder)
        log_report(trainer.loggers, record, trainer.global_step)
        print_report(record)
        announce(f"report: {folder / 'report.html'}")
        self._complete = False

    def _measure_dense(self, trainer: Trainer, pl_module: LightningModule, model: Any, pruning: PruningSearchCallback) -> None:
        problem, plan, start = pruning.problem, pruning.plan_within, pruning.start
        assert problem is not None
        assert plan is not None
        assert start is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.dense_config = copy.deepcopy(model.config)
        seen, _ = split_windows(data.search_windows, pruning.search)
        self.dense_search_nll = evaluate_nll(model, seen, self.batch_size).nll
        self._add("dense", "dense", self._measure(trainer, model))  # again in each attempt: it gives the protocols, too
        if self.prompts:
            texts = self._generate(pl_module, model)
            self.generations = [{"prompt": p, "dense": t, "recovered": ""} for p, t in zip(self.prompts, texts, strict=True)]
        with depth_and_width_removed(model, stage.cut):  # plan and problem are about what is left of layers and hidden channels
            self._measure_others(trainer, pl_module, model, pruning, problem, plan)

    def _measure_others(
        self, trainer: Trainer, pl_module: LightningModule, model: Any, pruning: PruningSearchCallback, problem: Any, plan: Any
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if pruning.reconstruction is not None:  # else the stage after the surgery is this one
            with pruned_only(model, problem, plan):
                self._add(METHOD, "pruned", self._memory.measure(METHOD, "pruned", lambda: self._measure(trainer, model)))
        post_pruning = PostPruning.of_windows(data.calibration_windows, pruning.reconstruction, self._recovery(trainer, pl_module))
        stages = 1 + (post_pruning.reconstruction is not None) + (post_pruning.recover is not None)
        recipes = dict(self.recipes)
        if pruning.outcome is not None and pruning.outcome.best_fixed is not None and recipes:
            trial, recipe = pruning.outcome.best_fixed
            recipes["best fixed"] = recipe
            self.protocols.append(f"Best fixed: the best recipe tried before the search, {trial.name}, in one global ranking.")
        with progress_bar("comparison", stages * len(recipes)) as advance:
            measured = self._memory.compare(model, problem, recipes, post_pruning, lambda m: self._measure(trainer, m))
            for done, (method, stage, values) in enumerate(measured, start=1):
                if stage == "skipped":
                    announce(f"comparison: {method} cannot meet this budget with its widths, left out")
                self._add(method, stage, values)
                advance(done, f"{method}: {stage}")

    def _measure(self, trainer: Trainer, model: nn.Module) -> dict[tuple[str, int], float]:
        from adapruner.evaluation.perplexity import describe_protocol

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        values = {}
        for (name, window), windows in getattr(data, "evaluation_windows", {}).items():
            result = evaluate_nll(model, windows, self.batch_size)
            values[name, window] = result.perplexity
            protocol = describe_protocol(name, window, len(windows.input_ids), result.tokens)
            self.texts[name, window] = EvaluatedText(protocol, result.tokens, result.text_bytes)
            if protocol not in self.protocols:
                self.protocols.append(protocol)
        return values

    def _add(self, method: str, stage: str, values: dict[tuple[str, int], float]) -> None:
        for (name, window), value in values.items():
            bits = self.texts[name, window].bits_per_byte(value)
            row = {"stage": stage, "method": method, "dataset": name, "window": window, "value": value}
            self.perplexity.append(row if bits is None else {**row, "bits_per_byte": bits})

    def _recovery(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """The run's own recovery as a function of a model; ``None`` where methods are not compared after it."""
        return short_recovery(trainer, pl_module, trainer.max_steps) if self.compare_recovered else None

    def _generate(self, pl_module: LightningModule, model: nn.Module) -> list[str]:
        from adapruner.evaluation.generation import generate_text

        return generate_text(model, pl_module.tokenizer, self.prompts)

    # ---------------------------------------------------------------------------------------------------- the record
    def to_report(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The dictionary that ``report.json`` holds; see :mod:`adapruner.report.schema`."""
        pruning, data = self._pruning, trainer.datamodule  # type: ignore[attr-defined]
        assert pruning is not None
        return {
            "name": self.name or Path(trainer.default_root_dir).name,
            "seed": pruning.search.seed,
            "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
            "hardware": hardware_in_words(trainer),
            "model": model_section(pruning),
            "perplexity": self.perplexity,
            "protocol": "; ".join(p.rstrip(".") for p in self.protocols),
            "protocols": [{"dataset": name, "window": window, "words": text.protocol} for (name, window), text in self.texts.items()],
            "data": data.card() if hasattr(data, "card") else None,
            "seeds": seeds_section(pruning, data, self._lora(trainer)),
            "zero_shot": next((c.to_report() for c in _callbacks(trainer) if isinstance(c, ZeroShotEvaluationCallback)), None),
            "search": search_section(pruning, self.dense_search_nll),
            "calibration": calibration_section(pruning, data),
            "recovery": self._recovery_section(trainer, pruning),
            "cost": self.cost,
            "export": next((c.to_report() for c in _callbacks(trainer) if isinstance(c, PrunedExportCallback)), None),
            "generations": self.generations or None,
        }

    def _lora(self, trainer: Trainer) -> LoRARecoveryCallback | None:
        return next((c for c in _callbacks(trainer) if isinstance(c, LoRARecoveryCallback)), None)

    def _recovery_section(self, trainer: Trainer, pruning: PruningSearchCallback) -> dict[str, Any]:
        lora, refit = self._lora(trainer), pruning.reconstruction
        return {
            "reconstruction": None if refit is None else {"ridge": refit.ridge, "seconds": pruning.seconds.get("reconstruction", 0.0)},
            "lora": None
            if lora is None
            else {
                "r": lora.lora.r,
                "alpha": lora.lora.alpha,
                "steps": trainer.global_step,
                "seconds": lora.seconds,
                "history": lora.history,
            },
        }


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]
