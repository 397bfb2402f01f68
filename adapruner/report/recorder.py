"""Measures a run while it goes on: the dense, pruned, reconstructed and recovered model, other methods beside them, cost and text.

:meth:`ReportRecorder.to_report` is the record that ``report.json`` holds.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from torch import nn

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import MOST_NEW_TOKENS, encode_prompt
from adapruner.evaluation.perplexity import describe_protocol, evaluate_nll
from adapruner.importance.metrics import METRICS, find_metric
from adapruner.progress import announce, progress_bar
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.depth_and_width import depth_and_width_removed
from adapruner.pruning.fixed_recipe import BEST_FIXED, IN_WORDS
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import ReconstructionConfig, strength_of
from adapruner.recovery.judged_refit import JudgedRefit
from adapruner.recovery.post_pruning import PostPruning, pruned_only, recipe_of, refit_config
from adapruner.recovery.streams import SharedStream
from adapruner.report.measured_before import MeasuredBefore, Values
from adapruner.report.regular_widths import at_any_width, time_widths
from adapruner.report.run_sections import (
    EvaluatedText,
    calibration_section,
    command_line,
    cost_section,
    hardware_in_words,
    metric_sentences,
    model_section,
    package_versions,
    refit_seconds,
    search_section,
    took_section,
)
from adapruner.report.schema import ANY_WIDTH
from adapruner.report.text_samples import TextSamples
from adapruner.search.find_plan import FoundPlan
from adapruner.search.score import ScoredModel
from adapruner.search.split import split_windows
from adapruner.stage_times import running_times
from adapruner.stage_times import stage as timed

METHOD = "adapruner"
#: Timed rounds of regular widths beside any: each cuts the model anew.
_MOST_ROUNDS = 5
Recover = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class ReportConfig:
    """What a report compares and measures.

    Raises:
        ConfigurationError: if a number is out of range, or a metric or an allocation is unknown.

    >>> ReportConfig(compare=["l2"], prompts=["The capital of France is"]).compare
    ['l2']
    """

    compare: list[str] = field(default_factory=list)
    """Metrics to prune with alone, at the same budget; the best fixed recipe that the search tried is then compared too."""
    compare_recovered: bool = False
    """Recover each compared method too, with the run's own data and optimizer (a Trainer's needs ``max_steps``). Costs one short training
    each and a copy of the pruned model."""
    compare_any_width: bool = True
    """Where FFN widths are regular, compare the same recipe at any width: what they cost in perplexity and gain in time."""
    batch_size: int = 8
    """Windows in one forward pass of an evaluation."""
    prompts: list[str] | None = None
    """Texts that the dense, the pruned and the final model continue; by default three passages of held-out text, by a few tokens.
    An empty list for none."""
    latency_seq_len: int = 128
    """Tokens in the timed forward pass."""
    latency_repeats: int = 20
    """Timed rounds."""
    speed_batches: list[int] = field(default_factory=list)
    """Batch sizes at which dense and pruned model are timed side by side, prefill and decoding; empty for none."""
    speed_seq_lens: list[int] = field(default_factory=list)
    """Lengths in tokens of these, each with each batch size; ``latency_seq_len`` when empty."""

    def sequence_lengths(self) -> dict[str, int]:
        """Option -> tokens of the timed sequences."""
        swept = max(self.speed_seq_lens, default=0) if self.speed_batches else 0
        return {"report.latency_seq_len": self.latency_seq_len, **({"report.speed_seq_lens": swept} if swept else {})}

    def check_prompts(self, model: Any, tokenizer: Any) -> None:
        """Whether the model can continue every prompt.

        Raises:
            DataError, ConfigurationError: as :func:`adapruner.evaluation.generation.encode_prompt`.
        """
        for prompt in self.prompts or () if tokenizer is not None else ():
            encode_prompt(model, tokenizer, prompt, MOST_NEW_TOKENS)

    def __post_init__(self) -> None:
        check_fields(self, "report.")
        sizes = [("batch_size", self.batch_size, 1), ("latency_seq_len", self.latency_seq_len, 2)]
        sizes += [("latency_repeats", self.latency_repeats, 1), *(("speed_batches", b, 1) for b in self.speed_batches)]
        for argument, value, least in (*sizes, *(("speed_seq_lens", n, 2) for n in self.speed_seq_lens)):
            if value < least:
                raise ConfigurationError(f"report.{argument}: expected {least} or more, got {value}; give a larger number")
        for metric in self.compare:
            find_metric(metric, "report.compare")


class ReportRecorder:
    """Collects the measurements of one run, stage by stage, on the process that writes the report.

    Args:
        config: what is compared and measured.
        scored: the model, still dense; perplexity is measured on the ``evaluation_windows`` of its data.
        found: the plan.
        tokenizer: continues the prompts; needed for them alone.
        before: what an earlier attempt at the same run measured.
    """

    def __init__(
        self, config: ReportConfig, scored: ScoredModel, found: FoundPlan, tokenizer: Any = None, before: MeasuredBefore | None = None
    ) -> None:
        self.config, self.scored, self.found, self.data, self.tokenizer = config, scored, found, scored.data, tokenizer
        self.before = MeasuredBefore() if before is None else before
        self.perplexity: list[dict[str, Any]] = []
        self.protocols: list[str] = []
        self.texts: dict[tuple[str, int], EvaluatedText] = {}
        prompts, windows = config.prompts, scored.data.evaluation_windows
        self.samples = TextSamples(prompts, None if prompts == [] else tokenizer, windows)
        self.stage = "dense"
        self.judged: JudgedRefit | None = None
        self.dense_config = copy.deepcopy(scored.model.config)
        self.dense_search_nll: float | None = None
        self.cost: dict[str, Any] | None = None
        self.widths: dict[str, Any] | None = None
        self.times = running_times()

    @timed("measuring")
    def measure_dense(self, recover: Recover | None = None) -> None:
        """The dense model, and every compared method through its stages; the model is dense again afterwards.

        Args:
            recover: the run's own recovery as a function of a model, where methods are compared after it too.
        """
        model = self.scored.model
        trials_see, _ = split_windows(self.data.search_windows, self.scored.options.search)
        self.dense_search_nll = evaluate_nll(model, trials_see, self.config.batch_size).nll
        self._add("dense", "dense", self._measure(model, "perplexity, dense"))  # again in each attempt: it gives the protocols, too
        self.samples.take("dense", model)
        with depth_and_width_removed(model, self.scored.stage.cut):  # plan and problem are for what is left of layers and hidden channels
            self._measure_methods(model, recover)
        self.scored = self.scored.after_pruning()  # no method will be compared any more

    @timed("measuring")
    def measure_stage(self, stage: str, model: nn.Module, judged: JudgedRefit | None = None) -> None:
        """The run's own model at a stage: ``pruned`` or ``reconstructed``.

        Args:
            judged: what the refit did to the loss on the search split, where this process refitted and asked.
        """
        self.judged = self.before.judged(judged)
        self._add(METHOD, stage, self.before.measure(METHOD, stage, lambda: self._measure(model, f"perplexity, {stage}")))
        self.stage = stage
        if stage == "pruned":
            self.samples.take(stage, model)

    @timed("measuring")
    def measure_final(self, model: Any, recovered: bool) -> None:
        """The model as it leaves the run: perplexity where it was recovered, text, and what it costs beside the dense one."""
        if recovered:
            self.perplexity = [row for row in self.perplexity if (row["method"], row["stage"]) != (METHOD, "recovered")]  # of a fit before
            self._add(METHOD, "recovered", self._measure(model, "perplexity, recovered"))
            self.stage = "recovered"
        self.samples.take("final", model)
        announce("times the dense and the pruned model in turns")
        config = self.config
        lengths = config.speed_seq_lens or [config.latency_seq_len]
        timed = config.latency_seq_len, config.latency_repeats, config.speed_batches, lengths
        self.cost = {**cost_section(self.dense_config, model, *timed, self.scored.structure), "widths": self.widths}

    def knows_stage(self, stage: str) -> bool:
        """Whether an earlier attempt measured the plan at this stage, so that the model need not be brought there again."""
        return self.before.recall(METHOD, stage) is not None

    def _measure_methods(self, model: Any, recover: Recover | None) -> None:
        found, problem, reconstruction = self.found, self.scored.problem, self.scored.options.reconstruction
        if reconstruction is not None:  # else the stage after the surgery is this one
            with pruned_only(model, problem, found.remaining):
                self.measure_stage("pruned", model)
        post_pruning = PostPruning.of_data(self.data, reconstruction, recover, SharedStream())
        recipes = {metric: Recipe({metric: 1.0}, allocation=Allocation("uniform")) for metric in self.config.compare}
        of_dense = self.scored.options.rounds == 1  # a later round's is for a model that is smaller already
        if of_dense and found.outcome is not None and found.outcome.best_fixed is not None and recipes:
            trial, recipe = found.outcome.best_fixed
            recipes[BEST_FIXED] = recipe
            self.protocols.append(f"Best fixed: {trial.name}, {IN_WORDS}.")
        loose = at_any_width(self.scored, found) if self.config.compare_any_width and self.data.evaluation_windows else None
        if loose is not None:
            recipes[ANY_WIDTH] = loose
            tokens, repeats = self.config.latency_seq_len, min(self.config.latency_repeats, _MOST_ROUNDS)
            self.widths = time_widths(model, problem, found.remaining, loose, tokens, repeats)
        with progress_bar("comparison", len(post_pruning.stages) * len(recipes)) as advance:
            measured = self.before.compare(model, problem, recipes, post_pruning, self._measure)
            for done, (method, stage, values) in enumerate(measured, start=1):
                if stage == "skipped":
                    announce(f"comparison: {method} cannot meet this budget with its widths, left out")
                self._add(method, stage, values)
                advance(done, f"{method}: {stage}")

    def _measure(self, model: nn.Module, title: str = "") -> Values:
        """Of every evaluation set, with a bar where there is a title."""
        sets = self.data.evaluation_windows
        with progress_bar(title, sum(len(w.input_ids) for w in sets.values())) if title and sets else nullcontext() as advance:
            return self._measure_sets(model, advance)

    def _measure_sets(self, model: nn.Module, advance: Callable[..., None] | None) -> Values:
        values, before = {}, 0
        for (name, window), windows in self.data.evaluation_windows.items():
            progress = None if advance is None else partial(_count_on, advance, before)
            result = evaluate_nll(model, windows, self.config.batch_size, progress)
            before += len(windows.input_ids)
            values[name, window] = result.perplexity
            protocol = describe_protocol(name, window, len(windows.input_ids), result.tokens, getattr(windows, "begins_with", None))
            self.texts[name, window] = EvaluatedText(protocol, result.tokens, result.text_bytes)
            if protocol not in self.protocols:
                self.protocols.append(protocol)
        return values

    def _add(self, method: str, stage: str, values: Values) -> None:
        for (name, window), value in values.items():
            bits = self.texts[name, window].bits_per_byte(value)
            row = {"stage": stage, "method": method, "dataset": name, "window": window, "value": value}
            self.perplexity.append(row if bits is None else {**row, "bits_per_byte": bits})

    def to_report(
        self,
        *,
        name: str,
        model: nn.Module,
        processes: int = 1,
        recovery: Mapping[str, Any] | None = None,
        reconstruction_seconds: float = 0.0,
        recovery_seed: int | None = None,
        zero_shot: Mapping[str, Any] | None = None,
        export: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The dictionary that ``report.json`` holds; see :mod:`adapruner.report.schema`.

        Args:
            name: of the run.
            model: the final model, for the device.
            processes: in which it was made.
            recovery: ``r``, ``alpha``, ``steps``, ``seconds`` and ``history`` of the LoRA recovery; ``None`` where there was none.
            zero_shot: the section on zero-shot tasks.
            export: the section on the export.
        """
        scored, found = self.scored, self.found
        refit = scored.options.reconstruction
        seeds = {"search": scored.options.search.seed, "data": scored.data.seed, "recovery": recovery_seed}
        return {
            "name": name,
            "seed": scored.options.search.seed,
            "command": command_line(sys.argv),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
            "hardware": hardware_in_words(next(model.parameters()).device, processes),
            "model": model_section(scored, found),
            "perplexity": self.perplexity,
            "protocol": "; ".join(p.rstrip(".") for p in self.protocols),
            "protocols": [{"dataset": name, "window": window, "words": text.protocol} for (name, window), text in self.texts.items()],
            "data": scored.data.card,
            "seeds": {name: seed for name, seed in seeds.items() if seed is not None},
            "zero_shot": zero_shot,
            "search": search_section(scored, found, self.dense_search_nll),
            "calibration": calibration_section(scored, found),
            "recovery": {
                "reconstruction": None if refit is None else self._refit(refit, reconstruction_seconds),
                "lora": recovery,
            },
            "cost": self.cost,
            "export": export,
            **self._generations(),
            "metrics": metric_sentences([*self.config.compare, *_metrics_of(scored, found)]),
            "took": took_section(next(model.parameters()).device, self.times),
        }

    def _refit(self, refit: ReconstructionConfig, seconds: float) -> dict[str, Any]:
        figures = {} if self.judged is None else {**asdict(self.judged), "left_out": self.judged.left_out}
        return {**strength_of(refit_config(refit, self.found.remaining)), "seconds": refit_seconds(seconds), **figures}

    def _generations(self) -> dict[str, Any]:
        rows = self.samples.to_report(self.stage)
        return {} if rows is None else {"generations": rows, "generation_protocol": self.samples.protocol()}


def _metrics_of(scored: ScoredModel, found: FoundPlan) -> Iterable[str]:
    """Those that the search could mix, or those of the recipe that was given."""
    if found.outcome is not None:
        return scored.options.search.space.metrics
    return [name for name in recipe_of(found.plan).coefficients if name in METRICS]


def _count_on(advance: Callable[..., None], before: int, done: int, total: int) -> None:
    """Windows of one set, after those of the sets before it."""
    advance(before + done)
