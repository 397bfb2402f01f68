"""Parts of the report's schema that a measurement fills: perplexity, zero-shot tasks, cost; see :mod:`adapruner.report.schema`."""

from __future__ import annotations

from typing import Literal, TypedDict

Stage = Literal["dense", "pruned", "reconstructed", "recovered"]


class _PerplexityDetails(TypedDict, total=False):
    """What a report of an older release lacks."""

    bits_per_byte: float | None
    """Of the same text: what compares models with different tokenizers. ``None`` where the tokenizer does not tell its offsets."""


class Perplexity(_PerplexityDetails):
    """One measurement. ``None`` stands for a value that was not finite."""

    stage: Stage
    method: str
    dataset: str
    window: int
    """Tokens per window."""
    value: float | None


class TextProtocol(TypedDict):
    """How perplexity was measured on one data set at one window, in a sentence."""

    dataset: str
    window: int
    words: str


class TextSet(TypedDict):
    """One set of text at one window length."""

    role: str
    """``calibration``, ``search``, ``recovery`` or ``evaluation``."""
    name: str
    sources: list[str]
    """Where each part is from, with split and revision, in words."""
    windows: int
    seq_len: int
    """Tokens per window."""
    documents: int
    hash: str
    """Of the token ids, 16 hex digits."""


class DataCard(TypedDict):
    """What text everything was found and measured on."""

    sets: list[TextSet]
    leaks: str
    """What was checked, in words."""
    seed: int
    """Of the draws."""


class TaskScore(TypedDict):
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


class ZeroShot(TypedDict):
    """Zero-shot tasks; ``protocol`` says with what and how they were scored."""

    rows: list[TaskScore]
    protocol: str


class _ModelCostDetails(TypedDict, total=False):
    """What a report of an older release lacks; ``None`` where the device does not tell."""

    decode_ms: float | None
    """One more token with a cache, batch 1."""
    peak_memory_gib: float | None
    """Weights and what a forward needs beside them."""
    prefill_energy_j: float | None
    """Joules of one forward on the whole card."""


class ModelCost(_ModelCostDetails):
    """Cost of one model; ``None`` where it was not measured."""

    parameters: int
    macs: float | None
    latency_ms: float | None
    weight_memory_gib: float | None


class Speed(TypedDict):
    """One model at one batch size and length: medians and interquartile ranges."""

    prefill_ms: float
    prefill_iqr_ms: float
    prefill_tokens_per_s: float
    decode_ms: float
    decode_iqr_ms: float
    decode_tokens_per_s: float
    peak_memory_gib: float | None
    prefill_energy_j: float | None


class SpeedRow(TypedDict):
    """Both models at one batch size and length; ``None`` where one did not fit into memory."""

    batch: int
    seq_len: int
    dense: Speed | None
    pruned: Speed | None
    ideal: float
    """The pruned model's MACs over the dense model's: the ratio that times would have if nothing but these counted."""


class Sweep(TypedDict):
    """Speed over batch sizes and lengths."""

    rows: list[SpeedRow]
    protocol: str


class _CostDetails(TypedDict, total=False):
    sweep: Sweep | None


class Cost(_CostDetails):
    """Cost before and after, measured under the same protocol."""

    dense: ModelCost
    pruned: ModelCost
    protocol: str
