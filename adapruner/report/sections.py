"""The sections of ``report.json``; :mod:`adapruner.report.schema` puts them together and validates them.

A number that is not finite is ``None``, because JSON has none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["dense", "pruned", "reconstructed", "recovered"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Record(BaseModel):
    """Types are taken as they are: the text "3" is no number, ``true`` is no integer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class UnitCounts(Record):
    """Units of one kind, one number per layer."""

    dense: list[int]
    kept: list[int]

    @model_validator(mode="after")
    def _check(self) -> UnitCounts:
        if len(self.dense) != len(self.kept):
            raise ValueError(f"expected as many kept as dense layers ({len(self.dense)}), got {len(self.kept)}")
        if any(not 0 <= kept <= dense for dense, kept in zip(self.dense, self.kept, strict=True)):
            raise ValueError(f"expected every kept count between 0 and the dense count, got {self.kept}")
        return self


class GatesLearned(Record):
    """What learned gates made of the search's units; losses in nats per token, on the search split."""

    steps: int
    best_step: int
    """The look whose units are the plan; 0: those of the search."""
    first: float
    """Loss of the search's units."""
    best: float
    exchanged: int
    """Units that stay and would not by the search."""


class Model(Record):
    """What was pruned, and by how much."""

    name: str
    model_type: str
    layers: int
    parameters_dense: int
    parameters_pruned: int
    pruned_fraction_target: float
    """What was asked for, in [0, 1)."""
    pruned_fraction: Fraction
    """What was reached, of what ``budget_of`` counts."""
    budget_of: str
    """``block``, ``all``, ``macs``, ``memory``, ``latency``, or a unit of the user's own."""
    block_parameters_dense: int
    block_parameters_pruned: int
    plan_hash: str
    uniform: bool
    """Whether every layer keeps the same number of units of each kind."""
    units: dict[str, UnitCounts]
    """``attention`` and ``ffn``."""
    gates: GatesLearned | None = None


class Perplexity(Record):
    """One perplexity. ``None`` stands for a value that was not finite."""

    stage: Stage
    method: str
    dataset: str
    window: int
    """Tokens per window."""
    value: float | None
    bits_per_byte: float | None = None
    """Comparable between models with different tokenizers; ``None`` where the tokenizer gives no offsets."""


class TextProtocol(Record):
    """How perplexity was measured on one data set at one window, in a sentence."""

    dataset: str
    window: int
    words: str


class TextSet(Record):
    """One set of text at one window length."""

    role: str
    """``calibration``, ``search``, ``recovery`` or ``evaluation``."""
    name: str
    sources: list[str]
    """Where each part is from, with split and revision."""
    windows: int
    seq_len: int
    """Tokens per window."""
    documents: int
    hash: str
    """A digest of the token ids, 16 hex digits."""


class DataCard(Record):
    """The text that everything was found and measured on."""

    sets: list[TextSet]
    leaks: str
    """What was checked, in words."""
    seed: int
    """The seed of the draws."""


class TaskScore(Record):
    """One metric of one zero-shot task at one stage."""

    stage: Stage
    task: str
    metric: str
    """``acc``, ``acc_norm``, or what else the task defines."""
    value: float | None
    """In [0, 1] for accuracies."""
    stderr: float | None
    documents: int
    shots: int
    """Solved examples before each question."""


class ZeroShot(Record):
    """Zero-shot tasks; ``protocol`` says with what and how they were scored."""

    rows: list[TaskScore]
    protocol: str


class Trial(Record):
    """One trial of the search. ``name`` is ``searched``, or the fixed recipe that was tried."""

    trial: int
    name: str
    value: float | None
    """NLL in nats per token on the search split; of a stopped trial the last value it reported."""
    state: Literal["complete", "pruned", "failed"]
    seconds: float | None


class Candidate(Record):
    """One of the best few trials at the later stages; values as the search's. ``None``: not measured there."""

    trial: int
    name: str
    searched: float | None
    reconstructed: float | None
    recovered: float | None


class Search(Record):
    """The study; every value is in nats per token on the search split."""

    trials: int
    completed: int
    stopped_early: int
    resumed: int | None = None
    """Trials that an earlier attempt had made."""
    world_size: int | None = None
    """Ranks in lockstep: another number asks other trials. ``None``: machines shared the study through a storage."""
    seconds_total: float
    seconds_statistics: float
    judged: str = "NLL of the pruned model"
    """What a trial's value is, in words."""
    best_value: float | None
    best_trial: int | None
    best_fixed_value: float | None
    fixed_recipe: str | None = None
    """Name of the fixed recipe that the chosen plan is; ``None`` where the search found its own."""
    dense_value: float | None
    recipe: dict[str, Any]
    history: list[Trial]
    importance: dict[str, float]
    """Search dimension -> share of the variance it explains, in [0, 1]."""
    candidates: list[Candidate] = []
    """The best few evaluated again, the winner first."""
    front: list[dict[str, Any]] = []
    """Trials that no other beats in both value and cost, of a search for a Pareto front."""
    rounds: int = 1
    """Of pruning; all else is of the last one."""

    @property
    def sampled(self) -> int:
        """Completed trials that the sampler asked for."""
        return sum(trial.name == "searched" and trial.state == "complete" for trial in self.history)


class Source(Record):
    """One calibration source, or one cluster."""

    samples: int
    weight: float


class Spread(Record):
    """The same recipe on random sets of ``size`` samples; values are NLL in nats per token on the search split."""

    size: int
    values: Annotated[list[float | None], Field(min_length=1)]
    """One for each random set."""
    mean: float | None
    std: float | None
    """The standard deviation between sets, with n - 1 in the denominator."""
    chosen: float | None
    """The value of the chosen weights."""


class WeightedSample(Record):
    """A calibration sample of the winning set."""

    id: int
    """Its position in the pool."""
    source: str
    weight: float
    """Its share of the whole pool, which sums to 1."""
    alike: int
    """Samples of its source that have this weight, itself counted."""
    text: str
    """The beginning of the text."""


class Calibration(Record):
    """The calibration pool: ``samples`` windows of ``seq_len`` tokens."""

    samples: int
    seq_len: int
    sources: dict[str, Source]
    clusters: dict[str, Source] | None = None
    effective_samples: float | None = None
    """(sum w)^2 / sum w^2 of the sample weights."""
    set_file: str | None = None
    """The winning set, for another run or model."""
    heaviest: list[WeightedSample] = []
    """Samples of that set, by falling weight."""
    spread: Spread | None = None


class Reconstruction(Record):
    """Closed-form reconstruction of the output projections."""

    ridge: float | None = None
    candidates: list[float] = []
    """Ridges that each projection chose among, where there was not one for all."""
    seconds: float
    pruned: float | None = None
    """Nats per token on the search split before it, and behind it; ``None`` where it was not judged."""
    refitted: float | None = None
    left_out: bool = False
    """Whether the kept weights came back, since the model was better with them."""


class Distillation(Record):
    """Share of the divergence from the dense model in the loss, and how its distributions were kept."""

    weight: float
    temperature: float
    top_k: int


class EarlyStop(Record):
    """Looks at held-out text during a recovery: pairs of step and nats per token; the weights of the best step are the result."""

    every_n_steps: int
    patience: int
    least_gain: float
    windows: int
    looks: list[tuple[int, float | None]]
    best_step: int | None


class Lora(Record):
    """Recovery by training; ``full`` has no use for ``r`` and ``alpha``; ``history`` holds pairs of step and loss (nats per token)."""

    form: str = "lora"
    r: int
    alpha: float
    steps: int
    seconds: float
    history: list[tuple[int, float | None]]
    distillation: Distillation | None = None
    tokens: int | None = None
    """Predictions that it trained on, over all steps and ranks; ``None`` where batches do not say."""
    time_budget: float | None = None
    """Seconds that it was given; ``None`` where its steps decided."""
    ended_by: str | None = None
    """``steps``, ``passes`` over its text, ``time budget`` or ``early stop``; ``None`` where somebody else ended it."""
    early_stop: EarlyStop | None = None
    """``None`` where it was not judged."""


class Recovery(Record):
    """What was done after the surgery; ``None`` where a part was off."""

    reconstruction: Reconstruction | None
    lora: Lora | None


class ModelCost(Record):
    """Cost of one model: the rows of :data:`adapruner.evaluation.cost_table.COST_ROWS`, those below always.

    ``None`` where a row was not measured or the device does not tell.
    """

    __pydantic_extra__: dict[str, float | None]

    parameters: int
    macs: float | None
    latency_ms: float | None
    weight_memory_gib: float | None


class Speed(Record):
    """One model at one batch size and length: medians and interquartile ranges."""

    prefill_ms: float
    prefill_iqr_ms: float
    prefill_tokens_per_s: float
    decode_ms: float
    decode_iqr_ms: float
    decode_tokens_per_s: float
    peak_memory_gib: float | None
    prefill_energy_j: float | None


class SpeedRow(Record):
    """Both models at one batch size and length; ``None`` where one did not fit into memory."""

    batch: int
    seq_len: int
    dense: Speed | None
    pruned: Speed | None
    ideal: float
    """The pruned model's MACs over the dense model's: the ratio that times would have if nothing but these counted."""


class Sweep(Record):
    """Speed over batch sizes and lengths."""

    rows: list[SpeedRow]
    protocol: str


class Widths(Record):
    """One forward of the model as pruned, at regular FFN widths and at any, by the same recipe; medians, in turns."""

    multiple: int
    """What the regular widths are multiples of."""
    regular_ms: float
    any_ms: float


class Cost(Record):
    """Cost before and after, measured under the same protocol."""

    dense: ModelCost
    pruned: ModelCost
    protocol: str
    sweep: Sweep | None = None
    widths: Widths | None = None
    """``None`` where widths are any, or the recipe comes to regular ones by itself."""


class Took(Record):
    """What the run took, over all processes that worked at it one after the other."""

    seconds: float
    """Time in all, without that between two processes."""
    peak_gib: float
    """The most memory that a process held; of several ranks, the first one's."""
    processes: int = 1
    """A run that was killed and went on has several."""
    stages: dict[str, float] = {}
    """Stage -> seconds, which add up to all of it."""
    device_peak_gib: float | None = None
    """The most that tensors held on its GPU, where there is one."""


class GgufFile(Record):
    """The file for llama.cpp."""

    path: str
    architecture: str
    """By its name in llama.cpp."""
    dtype: str
    """The matrices'."""
    bytes: int
    notes: list[str]


class Export(Record):
    """The exported folder."""

    path: str
    class_name: str = Field(alias="class")
    stock: bool
    """Whether it loads with a class that transformers ships."""
    max_abs_logit_difference: float | None
    """The largest difference between the logits before the export and after loading it again."""
    dtype: str | None = None
    """Of the weights, in which logits and perplexity were compared; None where they were not."""
    perplexity_before: float | None = None
    """Of a few windows of the search split, by the model in this dtype, before it was written."""
    perplexity_served: float | None = None
    """The same by the export, loaded in a fresh process."""
    perplexity_own: float | None = None
    """The same by the model in its own dtype, where that is another."""
    notes: list[str]
    gguf: GgufFile | None = None
    """What was written of it for llama.cpp."""


class Generation(Record):
    """The continuation of one prompt by the model at its stages."""

    prompt: str
    dense: str
    pruned: str | None = None
    """Right after the surgery; ``None`` where the final model is that one."""
    recovered: str
    """By the final model, whatever became of it after the surgery."""
