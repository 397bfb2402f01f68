"""The schema of ``report.json``: what a run writes, what is validated, and what readers get.

``name`` to ``model`` are always there. Every later section may be missing or ``None`` (no search, recovery off, ...); the table and
the page leave it out and say so. Unknown keys are kept in the file and not shown.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

from pydantic import ValidationError, model_validator

from adapruner.errors import ConfigurationError
from adapruner.report.sections import (
    Calibration,
    Cost,
    DataCard,
    Export,
    Generation,
    Model,
    Perplexity,
    Record,
    Recovery,
    Search,
    Stage,
    TextProtocol,
    Took,
    ZeroShot,
)

STAGES: tuple[Stage, ...] = get_args(Stage)
SECTIONS = ("perplexity", "zero_shot", "search", "calibration", "recovery", "cost", "export", "generations")
"""Sections that a report may lack and that are then named as left out."""
OWN_METHOD = "adapruner"
"""The method that the report is about, among the methods that it compares."""
ANY_WIDTH = "any FFN width"
"""The same recipe without regular FFN widths, among these methods."""


class Report(Record):
    """``report.json``."""

    name: str
    seed: int
    command: str
    created: str
    """ISO 8601."""
    versions: dict[str, str]
    hardware: str
    model: Model
    perplexity: list[Perplexity] | None = None
    protocol: str | None = None
    """How perplexity was measured, all sets in one text."""
    protocols: list[TextProtocol] | None = None
    """The same for each set, to stand beside its numbers."""
    data: DataCard | None = None
    seeds: dict[str, int] | None = None
    """Seeds by the part of the run that draws from them."""
    zero_shot: ZeroShot | None = None
    search: Search | None = None
    calibration: Calibration | None = None
    recovery: Recovery | None = None
    cost: Cost | None = None
    export: Export | None = None
    metrics: dict[str, str] | None = None
    """What each metric that the run names is, in a sentence."""
    took: Took | None = None
    generations: list[Generation] | None = None
    generation_protocol: str | None = None
    """Which prompts, and how they were continued."""

    @model_validator(mode="after")
    def _check(self) -> Report:
        cells = ((row.stage, row.method, row.dataset, row.window) for row in self.perplexity or ())
        _refuse_repeats(cells, "perplexity: expected one value per stage, method, dataset and window")
        scores = ((row.stage, row.task, row.metric) for row in (self.zero_shot.rows if self.zero_shot else ()))
        _refuse_repeats(scores, "zero_shot.rows: expected one value per stage, task and metric")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON types, as in the file: what was not given is not there."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def validate_report(record: Mapping[str, Any] | Report) -> Report:
    """The report that a dictionary describes; NumPy scalars, tuples and paths in it are taken as what they mean.

    Raises:
        ConfigurationError: one line that names the first missing key or wrong value.
    """
    if isinstance(record, Report):
        return record
    try:
        return Report.model_validate_json(json.dumps(_plain(record, "report")))
    except ValidationError as error:
        raise _refusal(error) from None


def _refuse_repeats(keys: Iterable[tuple[Any, ...]], expected: str) -> None:
    key, count = next(iter(Counter(keys).most_common(1)), (None, 0))
    if count > 1:
        raise ValueError(f"{expected}, got two for {key}")


def _refusal(error: ValidationError) -> ConfigurationError:
    """The first of pydantic's errors in our one line."""
    remedy = "(adapruner.report.schema lists all keys)"
    first = error.errors(include_url=False)[0]
    place, got = first["loc"], f"got {first['input']!r:.80}; correct it {remedy}"
    if first["type"] == "missing":
        return ConfigurationError(f"{_path(place[:-1])}: expected the key {place[-1]!r}, got none; add it {remedy}")
    if first["type"] == "value_error":  # of this file's own checks
        where, said = _path(place), str(first["ctx"]["error"])
        return ConfigurationError(f"{where}{': ' if place else '.'}{said}; correct it {remedy}")
    said = first["msg"].partition(" should ")[2]  # of "Input should be ..." or "List should have ..."
    expected = said.removeprefix("be ") if said.startswith("be ") else f"to {said}"
    return ConfigurationError(f"{_path(place)}: expected {expected}, {got}")


def _path(place: Sequence[str | int]) -> str:
    return "report" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _plain(value: Any, where: str) -> Any:
    """JSON types only."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ConfigurationError(f"{where}: expected a JSON value, got {type(value).__name__}; convert it to a number or text")
