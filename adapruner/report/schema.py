"""The schema of ``report.json``: one dictionary from which the table and the page are drawn.

``name`` to ``model`` are always there. Every later section may be missing or ``None`` (no search, recovery off, ...);
the table and the page leave it out and say so. Unknown keys are kept in the file and not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from adapruner.errors import ConfigurationError
from adapruner.report.measured import Cost, DataCard, Perplexity, Stage, TextProtocol, ZeroShot

STAGES: tuple[Stage, ...] = ("dense", "pruned", "reconstructed", "recovered")
SECTIONS = ("perplexity", "zero_shot", "search", "calibration", "recovery", "cost", "export", "generations")
"""Sections that a report may lack and that are then named as left out."""


class UnitCounts(TypedDict):
    """Units of one kind, one number per layer."""

    dense: list[int]
    kept: list[int]


class Model(TypedDict):
    """What was pruned, and by how much."""

    name: str
    model_type: str
    layers: int
    parameters_dense: int
    parameters_pruned: int
    pruned_fraction_target: float
    """What was asked for, in [0, 1)."""
    pruned_fraction: float
    """What was reached, of what ``budget_of`` counts, in [0, 1)."""
    budget_of: Literal["block", "all", "macs", "memory", "latency"]
    block_parameters_dense: int
    block_parameters_pruned: int
    plan_hash: str
    uniform: bool
    """Whether every layer keeps the same number of units of each kind."""
    units: dict[str, UnitCounts]
    """``attention`` and ``ffn``."""


class Trial(TypedDict):
    """One trial of the search. ``name`` is ``searched``, or the fixed recipe that was tried."""

    trial: int
    name: str
    value: float | None
    """NLL in nats per token on the search split; of a stopped trial the last value it reported."""
    state: Literal["complete", "pruned", "failed"]
    seconds: float | None


class Candidate(TypedDict):
    """One of the best few trials at the later stages; values as the search's. ``None``: not measured there."""

    trial: int
    name: str
    searched: float | None
    reconstructed: float | None
    recovered: float | None


class _SearchDetails(TypedDict, total=False):
    """What a search of an older release lacks."""

    judged: str
    """What a trial's value is, in words."""
    candidates: list[Candidate]
    """The second look at the best few, the winner first."""
    world_size: int | None
    """Ranks in lockstep: another number asks other trials. ``None``: machines shared the study through a storage."""


class Search(_SearchDetails):
    """The study; every value is NLL (or what ``judged`` says) in nats per token on the search split."""

    trials: int
    completed: int
    stopped_early: int
    seconds_total: float
    seconds_statistics: float
    best_value: float | None
    best_trial: int | None
    best_fixed_value: float | None
    dense_value: float | None
    recipe: dict[str, Any]
    history: list[Trial]
    importance: dict[str, float]
    """Search dimension -> share of the variance it explains, in [0, 1]."""


class Source(TypedDict):
    """One calibration source, or one cluster."""

    samples: int
    weight: float


class Spread(TypedDict):
    """The same recipe on random sets of ``size`` samples; values are NLL in nats per token on the search split."""

    size: int
    values: list[float | None]
    """One for each random set."""
    mean: float | None
    std: float | None
    """Between sets, n - 1 in the denominator."""
    chosen: float | None
    """Of the chosen weights."""


class WeightedSample(TypedDict):
    """A calibration sample of the winning set."""

    id: int
    """Its position in the pool."""
    source: str
    weight: float
    """Of 1 over the whole pool."""
    alike: int
    """Samples of its source that have this weight, itself counted."""
    text: str
    """How it begins."""


class _CalibrationDetails(TypedDict, total=False):
    """What a report may lack: clusters were not asked for, the file was not written, nothing was compared."""

    clusters: dict[str, Source] | None
    effective_samples: float | None
    """(sum w)^2 / sum w^2 of the sample weights."""
    set_file: str | None
    """The winning set, for another run or model."""
    heaviest: list[WeightedSample]
    """Of that set, by falling weight."""
    spread: Spread | None


class Calibration(_CalibrationDetails):
    """The calibration pool: ``samples`` windows of ``seq_len`` tokens."""

    samples: int
    seq_len: int
    sources: dict[str, Source]


class Reconstruction(TypedDict):
    """Closed-form reconstruction of the output projections."""

    ridge: float
    seconds: float


class Lora(TypedDict):
    """LoRA recovery; ``history`` holds pairs of step and loss (nats per token)."""

    r: int
    alpha: float
    steps: int
    seconds: float
    history: list[tuple[int, float | None]]


class Recovery(TypedDict):
    """What was done after the surgery; ``None`` where a part was off."""

    reconstruction: Reconstruction | None
    lora: Lora | None


Export = TypedDict(  # "class" is a key of the file and a keyword of Python, so this one is written as a call.
    "Export",
    {"path": str, "class": str, "stock": bool, "max_abs_logit_difference": float | None, "notes": list[str]},
)
"""The exported folder. ``stock``: it loads with a class that transformers ships. The difference is the largest one
between the logits before the export and after loading it again."""


class Generation(TypedDict):
    """The continuation of one prompt by the dense and by the final model."""

    prompt: str
    dense: str
    recovered: str


class _Later(TypedDict, total=False):
    """The sections that may be missing."""

    perplexity: list[Perplexity] | None
    protocol: str | None
    """How perplexity was measured, all sets in one text."""
    protocols: list[TextProtocol] | None
    """The same for each set, to stand beside its numbers."""
    data: DataCard | None
    """What text everything was found and measured on."""
    seeds: dict[str, int] | None
    """By what draws from it."""
    zero_shot: ZeroShot | None
    search: Search | None
    calibration: Calibration | None
    recovery: Recovery | None
    cost: Cost | None
    export: Export | None
    generations: list[Generation] | None


class Report(_Later):
    """``report.json``."""

    name: str
    seed: int
    command: str
    created: str
    """ISO 8601."""
    versions: dict[str, str]
    hardware: str
    model: Model


def validate_report(report: Mapping[str, Any]) -> None:
    """Refuses a dictionary that is not a report.

    Raises:
        ConfigurationError: one line that names the first missing key or wrong value.
    """
    _check(report, Report, "report")
    fraction = report["model"]["pruned_fraction"]
    if not 0.0 <= fraction < 1.0:
        raise _wrong("report.model.pruned_fraction", "a number in [0, 1)", fraction)
    for kind, units in report["model"]["units"].items():
        where = f"report.model.units.{kind}"
        if len(units["dense"]) != len(units["kept"]):
            raise _wrong(where, f"as many kept as dense layers ({len(units['dense'])})", len(units["kept"]))
        if any(not 0 <= kept <= dense for dense, kept in zip(units["dense"], units["kept"], strict=True)):
            raise _wrong(where, "every kept count between 0 and the dense count", units["kept"])
    spread = (report.get("calibration") or {}).get("spread")
    if spread and not spread["values"]:
        raise _wrong("report.calibration.spread.values", "one value or more", spread["values"])
    seen: set[tuple[Any, ...]] = set()
    for row in report.get("perplexity") or ():
        key = (row["stage"], row["method"], row["dataset"], row["window"])
        if key in seen:
            raise _wrong("report.perplexity", "one value per stage, method, dataset and window", f"two for {key}")
        seen.add(key)
    scores = [(row["stage"], row["task"], row["metric"]) for row in (report.get("zero_shot") or {}).get("rows", ())]
    twice = next((score for score in scores if scores.count(score) > 1), None)
    if twice is not None:
        raise _wrong("report.zero_shot.rows", "one value per stage, task and metric", f"two for {twice}")


_WORDS: dict[Any, tuple[Any, str]] = {
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
}


def _check(value: Any, kind: Any, where: str) -> None:
    """Walks a value along its type hint; ``where`` is the dotted path for the message."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):
        if value is not None:
            _check(value, next(a for a in arguments if a is not NoneType), where)
    elif origin is Literal:
        if value not in arguments:
            raise _wrong(where, f"one of {', '.join(arguments)}", value)
    elif is_typeddict(kind):
        _check_keys(value, kind, where)
    elif origin is dict:
        for key, item in _mapping(value, where).items():
            _check(item, arguments[1], f"{where}.{key}")
    elif origin in (list, tuple):
        _check_items(value, origin, arguments, where)
    else:
        accepted, word = _WORDS[kind]
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise _wrong(where, word, value)


def _check_keys(value: Any, kind: Any, where: str) -> None:
    record = _mapping(value, where)
    for key, hint in get_type_hints(kind).items():
        if key in record:
            _check(record[key], hint, f"{where}.{key}")
        elif key in kind.__required_keys__:
            raise ConfigurationError(f"{where}: expected the key {key!r}, got none; add it (adapruner.report.schema lists all keys)")


def _check_items(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong(where, "a list", value)
    if origin is tuple and len(value) != len(arguments):
        raise _wrong(where, f"{len(arguments)} items", len(value))
    for number, item in enumerate(value):
        _check(item, arguments[number if origin is tuple else 0], f"{where}[{number}]")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    return value


def _wrong(where: str, expected: str, got: Any) -> ConfigurationError:
    return ConfigurationError(f"{where}: expected {expected}, got {got!r:.80}; correct it (adapruner.report.schema lists all keys)")
