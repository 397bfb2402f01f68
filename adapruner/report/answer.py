"""What a report says, in sentences, and its perplexities method by method."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapruner.pruning.fixed_recipe import BEST_FIXED, IN_WORDS, SEARCHED, plain_recipe_sentence
from adapruner.recovery.configuration import strength_in_words
from adapruner.recovery.training_bar import ENDINGS
from adapruner.report.formats import (
    MISSING,
    NOT_FINITE,
    duration_text,
    nll_text,
    perplexity_text,
    ratio_text,
    signed_percent_text,
)
from adapruner.report.schema import ANY_WIDTH, OWN_METHOD, SECTIONS, STAGES, Report
from adapruner.report.sections import Calibration, Cost, DataCard, Export, Lora, Reconstruction, Search


@dataclass(frozen=True)
class Row:
    """One method: stage -> perplexity. A stage that was not measured is absent; a value that is not finite is infinity."""

    method: str
    values: dict[str, float]

    @property
    def final(self) -> float:
        """Perplexity at the last stage that was measured."""
        return self.values[[stage for stage in STAGES if stage in self.values][-1]]


@dataclass(frozen=True)
class Comparison:
    """Every method on one dataset at one window."""

    dataset: str
    window: int
    """Tokens."""
    dense: float | None
    rows: tuple[Row, ...]
    """Sorted by the perplexity at the last stage that all of them have: equal beside equal."""
    notes: tuple[str, ...] = ()
    """Bits per byte of the report's own method, and how the perplexities were measured."""

    @property
    def title(self) -> str:
        """``wikitext, window of 512 tokens``."""
        return f"{self.dataset}, window of {self.window:,} tokens"

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages after ``dense`` that at least one method has."""
        return tuple(s for s in STAGES[1:] if any(s in row.values for row in self.rows))

    @property
    def common(self) -> str | None:
        """The last stage that every row has."""
        return _last_common(self.rows)

    @property
    def own(self) -> Row | None:
        """The row the report is about: adapruner's, else the method with the most stages, else the best."""
        if not self.rows:
            return None
        return next((r for r in self.rows if r.method == OWN_METHOD), max(self.rows, key=lambda r: len(r.values)))

    def best(self, stage: str) -> float | None:
        """Lowest finite perplexity of a stage."""
        values = [r.values[stage] for r in self.rows if stage in r.values and math.isfinite(r.values[stage])]
        return min(values, default=None)


def comparisons(report: Report) -> list[Comparison]:
    """One comparison per dataset and window, in the order of the report."""
    dense: dict[tuple[str, int], float | None] = {}
    methods: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in report.perplexity or ():
        of, value = (row.dataset, row.window), math.inf if row.value is None else row.value
        methods.setdefault(of, {})
        if row.stage == "dense":
            dense[of] = value
        else:
            methods[of].setdefault(row.method, {})[row.stage] = value
    return [
        Comparison(*of, dense.get(of), _in_order([Row(m, v) for m, v in rows.items()]), _notes(report, *of)) for of, rows in methods.items()
    ]


def _in_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    stage = _last_common(rows)
    return tuple(sorted(rows, key=lambda row: (row.final if stage is None else row.values[stage], row.final, row.method)))


def _last_common(rows: Sequence[Row]) -> str | None:
    return next((stage for stage in reversed(STAGES[1:]) if rows and all(stage in row.values for row in rows)), None)


def _notes(report: Report, dataset: str, window: int) -> tuple[str, ...]:
    rows = [r for r in report.perplexity or () if (r.dataset, r.window) == (dataset, window) and r.method in ("dense", OWN_METHOD)]
    known = sorted((r for r in rows if r.bits_per_byte is not None), key=lambda r: STAGES.index(r.stage))
    bits = [f"Bits per byte: {', '.join(f'{r.stage} {r.bits_per_byte:.4f}' for r in known)}."] if known else []
    fixed = [f"{BEST_FIXED}: {best_fixed_words(report.search)}."] if any(r.method == BEST_FIXED for r in report.perplexity or ()) else []
    return (*fixed, *bits, *(p.words for p in report.protocols or () if (p.dataset, p.window) == (dataset, window)))


#: What a budget counts, in words: after "of the" and alone.
COUNTED = {
    "block": ("block parameters", "the block parameters"),
    "all": ("model's parameters", "all parameters"),
    "macs": ("multiply-accumulates", "the multiply-accumulates"),
    "memory": ("weights' memory", "the weights' memory"),
    "latency": ("modelled latency", "the modelled latency"),
}


def counted(report: Report) -> tuple[str, str]:
    """:data:`COUNTED` of the report's budget; a unit of the user's own is called by its name."""
    of = report.model.budget_of
    return COUNTED.get(of, (of, of))


def stages_in_words(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What pruning did to the run's own model, a line for each set at each window: ``on wiki, windows of 128 tokens: 28.10 dense, ...``.

    Args:
        rows: of ``method``, ``stage``, ``dataset``, ``window`` and ``value``, stage by stage.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        if row["method"] in ("dense", OWN_METHOD):
            found.setdefault((row["dataset"], row["window"]), []).append(f"{perplexity_text(row['value'])} {row['stage']}")
    return [f"on {name}, windows of {window:,} tokens: {', '.join(values)}" for (name, window), values in found.items()]


def worse_sentences(report: Report) -> list[str]:
    """A stage after which the run's own model was worse than before it, on any set: it is meant to make it better. First, a refit that was
    taken back for it."""
    left_out = left_out_sentence(report)
    found = [left_out] if left_out else []
    for comparison in comparisons(report):
        values = comparison.own.values if comparison.own and comparison.own.method == OWN_METHOD else {}
        stages = [stage for stage in STAGES if stage in values]
        for before, after in pairwise(stages):
            if values[after] > values[before] * 1.001:
                change = f"{perplexity_text(values[before])} to {perplexity_text(values[after])}"
                found.append(f"Worse {after} than {before}, on {comparison.title}: perplexity {change}.")
    return found


def left_out_sentence(report: Report) -> str | None:
    """That the refit was taken back, and what to do about it; ``None`` where it was not."""
    refit = report.recovery.reconstruction if report.recovery else None
    if refit is None or not refit.left_out:
        return None
    change = f"{nll_text(refit.pruned)} to {nll_text(refit.refitted)} nats per token"
    return f"The refit was left out: it made the search split worse, {change}. More text for it (--data.reconstruction.sources) may help."


def ridge_words(refit: Reconstruction) -> str:
    """How the refit was held near the kept weights."""
    return strength_in_words(refit.ridge, refit.candidates)


def ending_words(training: Lora) -> str:
    """What ended the recovery."""
    return ENDINGS.get(training.ended_by or "", training.ended_by or "")


def held_out_sentence(training: Lora) -> str | None:
    """Where the recovery was best on held-out text; ``None`` where it was not judged."""
    seen = training.early_stop
    if seen is None or seen.best_step is None:
        return None
    found = dict(seen.looks)
    last, first = seen.looks[-1][0], seen.looks[0][0]
    stays = "the last" if seen.best_step == last else f"its weights stay; {nll_text(found[last])} behind the last, {last:,}"
    before = f" ({nll_text(found[first])} before the first)" if first == 0 else ""
    best = f"behind step {seen.best_step:,}: {nll_text(found[seen.best_step])} nats per token{before}"
    return f"On {seen.windows:,} held-out windows best {best}, {stays}."


def below_dense_sentence(report: Report) -> str | None:
    """What a model below the dense one says, and what it does not; ``None`` where none is."""
    for comparison in comparisons(report):
        values = comparison.own.values if comparison.own and comparison.own.method == OWN_METHOD else {}
        if comparison.dense is not None and values.get("recovered", math.inf) < comparison.dense:
            return (
                f"Below the dense model on {comparison.title}: recovery has trained on text, and the dense model has not. What pruning "
                "cost is the distance from a dense model after the same training."
            )
    return None


def seed_sentence(report: Report) -> str | None:
    """That these are numbers of one seed, and what gives their spread; ``None`` where no perplexity was measured."""
    if not report.perplexity:
        return None
    return f"One run of seed {report.seed}: how far chance goes is not in these numbers; adapruner compare runs several seeds for it."


def gates_sentence(report: Report) -> str | None:
    """What learned gates changed; ``None`` without them."""
    gates = report.model.gates
    if gates is None:
        return None
    change = f"{nll_text(gates.first)} to {nll_text(gates.best)} nats per token on the search split"
    return f"Learned gates exchanged {gates.exchanged:,} units in {gates.best_step:,} of {gates.steps:,} steps: {change}."


def took_sentence(report: Report) -> str | None:
    """Time and memory of the run, over its processes; ``None`` where nobody measured them."""
    if report.took is None:
        return None
    device = "" if report.took.device_peak_gib is None else f", {report.took.device_peak_gib:.1f} GiB on its GPU"
    several = f", in {report.took.processes} processes, since it was resumed," if report.took.processes > 1 else ""
    return f"The run took {duration_text(report.took.seconds)}{several} and {report.took.peak_gib:.1f} GiB{device}."


def loading_code(export: Export) -> str:
    """Python that loads the export, and generates."""
    trusting = "" if export.stock else ", trust_remote_code=True"
    path = json.dumps(export.path, ensure_ascii=False)  # a Windows path has backslashes
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {path}\n"
        f"model = AutoModelForCausalLM.from_pretrained(folder{trusting})\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)"
    )


def checked_sentence(export: Export) -> str:
    """What the export computed when it was loaded again, beside the model before; in which precision."""
    difference, before, served = export.max_abs_logit_difference, export.perplexity_before, export.perplexity_served
    if difference is None:
        return "not compared"
    logits = "the same logits" if difference == 0 else f"logits differ by at most {difference:.1e}"
    if before is None or served is None:
        return logits
    own = "" if export.perplexity_own is None else f", {export.perplexity_own:.4f} before it was rounded to {export.dtype}"
    return f"{logits}; perplexity of a few windows of the search text {served:.4f}, before the export {before:.4f}{own}"


def search_sentence(search: Search) -> str:
    """How many trials the search made, and in which time."""
    took, statistics = duration_text(search.seconds_total), duration_text(search.seconds_statistics)
    if statistics != duration_text(0.0):  # else they were read from the run folder
        took += f", of which {statistics} for the statistics"
    where = f" in the last of {search.rounds} rounds" if search.rounds > 1 else ""
    return f"{search.trials} trials{where} in {took}: {search.completed} completed, {search.stopped_early} stopped early."


def best_fixed_words(search: Search | None) -> str:
    """Which recipe *best fixed* is, and what it is: the best of those that were tried before the sampler's."""
    tried = [t for t in search.history if t.name != SEARCHED and t.state == "complete" and t.value is not None] if search else []
    best = min(tried, key=lambda trial: (trial.value, trial.trial), default=None)
    return f"{best.name}, {IN_WORDS}" if best else IN_WORDS


def plain_recipe_words(report: Report) -> str | None:
    """That the chosen plan is a fixed recipe; ``None`` where the search found its own, or there was none."""
    name = report.search.fixed_recipe if report.search else None
    return None if name is None else plain_recipe_sentence(name)


def calibration_sentences(calibration: Calibration | None) -> list[str]:
    """The effective number of samples, where the winning set is, and how much the choice matters; empty where nothing is known."""
    if calibration is None:
        return []
    parts = []
    if calibration.effective_samples is not None:
        parts.append(f"the weights amount to {calibration.effective_samples:.1f} of {calibration.samples:,} samples")
    if calibration.set_file:
        parts.append(f"the set is in {calibration.set_file}")
    text = "; ".join(parts)
    return [s for s in (f"{text[0].upper()}{text[1:]}." if text else None, spread_sentence(calibration)) if s]


def spread_sentence(calibration: Calibration) -> str | None:
    """How much the choice of samples matters, beside random sets of the same size; ``None`` where that was not measured."""
    spread = calibration.spread
    if spread is None:
        return None
    finite = [value for value in spread.values if value is not None]
    count, lost = len(spread.values), len(spread.values) - len(finite)
    sets = f"{count} random set{'s' if count > 1 else ''} of {spread.size:,} sample{'s' if spread.size > 1 else ''}"
    deviation = f" ± {nll_text(spread.std)}" if len(finite) > 1 else ""
    values = f"{nll_text(spread.mean)}{deviation} nats per token" if finite else NOT_FINITE
    said = f"Same recipe with {sets}: {values}{f' ({lost} not finite)' if finite and lost else ''}; the chosen weights: "
    if spread.chosen is None:
        return f"{said}{NOT_FINITE}."
    above = count - sum(value <= spread.chosen for value in finite)
    return f"{said}{nll_text(spread.chosen)}, lower than {'none' if not above else 'all' if above == count else above} of them."


def ideal_sentence(cost: Cost) -> str | None:
    """The latency that MACs alone would give beside the measured one; ``None`` where either was not measured."""
    ideal, real = ratio_text(cost.dense.macs, cost.pruned.macs), ratio_text(cost.dense.latency_ms, cost.pruned.latency_ms)
    return None if MISSING in (ideal, real) else f"Latency {real}; if nothing but MACs counted, {ideal}."


def widths_sentence(report: Report) -> str | None:
    """What regular FFN widths cost and gain beside the same recipe at any width; ``None`` where that was not measured."""
    cost = report.cost
    widths = cost.widths if cost else None
    if cost is None or widths is None:
        return None
    time = f"a forward takes {ratio_text(widths.any_ms, widths.regular_ms)} of the time"
    if abs(widths.any_ms - widths.regular_ms) <= (cost.pruned.__pydantic_extra__.get("latency_iqr_ms") or 0.0):
        time = "a forward takes as long, as far as this timing can tell"
    said = f"FFN widths are multiples of {widths.multiple}. Beside the same recipe at any width {time}"
    for stage in reversed(STAGES):
        change = _change_of_perplexity(report, stage, OWN_METHOD, ANY_WIDTH)
        if change is not None:
            text = signed_percent_text(change)
            changed = f"changes by {text}" if text[0] in "+-" else "stays the same"
            return f"{said}, and perplexity ({stage}) {changed}."
    return f"{said}."


def _change_of_perplexity(report: Report, stage: str, method: str, other: str) -> float | None:
    """A fraction, the geometric mean over data sets and windows; ``None`` where none has both methods at this stage."""
    logs: dict[str, dict[tuple[str, int], float]] = {method: {}, other: {}}
    for row in report.perplexity or ():
        if row.stage == stage and row.method in logs and row.value is not None and math.isfinite(row.value):
            logs[row.method][row.dataset, row.window] = math.log(row.value)
    both = logs[method].keys() & logs[other].keys()
    if not both:
        return None
    return math.expm1(sum(logs[method][where] - logs[other][where] for where in both) / len(both))


def provenance_lines(report: Report) -> list[str]:
    """What a table of several runs needs beside its numbers: held-out text with hashes, leak check, hardware, versions."""
    lines = text_lines(report.data, "evaluation") if report.data else []
    return [*lines, f"hardware: {report.hardware}", f"versions: {listed(report.versions)}"]


def text_lines(card: DataCard, role: str) -> list[str]:
    """What the sets of a role hold, with hashes, and the leak check."""
    held = (row for row in card.sets if row.role == role)
    return [
        *(
            f"{row.name or role}, window {row.seq_len:,}: {'; '.join(row.sources)}; {row.documents:,} documents, hash {row.hash}"
            for row in held
        ),
        f"leaks: {card.leaks}",
    ]


def final_words(report: Report) -> str:
    """What became of the model after the surgery: ``pruned``, ``after the refit``, ``after recovery``."""
    done = report.recovery
    return "after recovery" if done and done.lora else "after the refit" if done and done.reconstruction else "pruned"


def listed(values: dict[str, str] | dict[str, int]) -> str:
    """``torch 2.7.0, optuna 5.0.0``."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


#: What a report may lack -> its name in words, and how the next run has it: options of the command line, and arguments in Python.
LEFT_OUT = {
    "perplexity": ("perplexity", "held-out text by --data.evaluation; evaluation= in Python"),
    "zero_shot": ("zero-shot tasks", "--zero_shot.tasks '[seven]', with pip install 'adapruner[eval]'"),
    "search": ("search", "skipped where --pruning.plan or --pruning.recipe says what goes"),
    "recovery": ("recovery", "off; without --pruning.reconstruction null a refit, by --trainer.max_steps 200 LoRA; recovery=200 in Python"),
    "export": ("export", "without --export null; result.save in Python"),
    "generations": ("generated text", "without --report.prompts '[]', where there are held-out text and a tokenizer"),
    "reconstruction": ("reconstruction", "without --pruning.reconstruction null"),
    "LoRA recovery": ("LoRA recovery", "by --trainer.max_steps 200; recovery=200 in Python"),
}


def left_out(report: Report) -> list[str]:
    """What this report does not hold, and how to get it, in the words that the terminal and the page use."""
    missing = [section for section in SECTIONS if not getattr(report, section)]
    if report.recovery:
        parts = (("reconstruction", report.recovery.reconstruction), ("LoRA recovery", report.recovery.lora))
        missing += [name for name, part in parts if part is None]
    return [f"{LEFT_OUT[name][0]} ({LEFT_OUT[name][1]})" if name in LEFT_OUT else name for name in missing]
