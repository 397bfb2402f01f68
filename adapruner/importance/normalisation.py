"""Brings scores of different metrics, or of different layers, to a common scale before they are mixed or ranked.

Scope ``model``: over all units of one kind or of the whole model at once; scope ``layer``: within each group. All are
increasing within their scope, so a metric's own ranking there stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adapruner.errors import ConfigurationError, nearest
from adapruner.models.units import ModelStructure

SCOPES: tuple[str, ...] = ("model", "layer")

_TINY = torch.finfo(torch.float32).tiny


def _rank(scores: Tensor) -> Tensor:
    """Average rank in (0, 1]; equal scores get equal ranks, so that dead units are not told apart by their place."""
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return ((last - counts + 1 + last).float() / 2 / len(scores))[inverse]


def _standardise(scores: Tensor) -> Tensor:
    """z-score, with the unbiased deviation as FLAP has it; :func:`made_positive` comes before what takes no negative number."""
    deviation = scores.std(correction=int(len(scores) > 1)).clamp_min(_TINY)
    return (scores - scores.mean()) / deviation


NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "sum": lambda s: s / s.sum().clamp_min(_TINY),
    "mean": lambda s: s / s.mean().clamp_min(_TINY),
    "max": lambda s: s / s.amax().clamp_min(_TINY),
    "standardise": _standardise,
    "rank": _rank,
    "per_parameter": lambda s: s,
}


def normalise(scores: Mapping[str, Tensor], structure: ModelStructure, how: str = "mean", scope: str = "model") -> dict[str, Tensor]:
    """Group name -> ``[units]`` (or ``[channels]``) scores, normalised; z-scores are below 0 too, see :func:`made_positive`.

    ``per_parameter`` divides by the parameters that go with a unit; a global ranking does that by itself, so it is for
    layer-wise scores that are to be compared afterwards.

    Raises:
        ConfigurationError: if the normaliser or the scope is unknown.
    """
    if how not in NORMALISERS:
        raise ConfigurationError(f"normaliser: expected a known normaliser, got {how!r}; {nearest(how, NORMALISERS)}")
    if scope not in SCOPES:
        raise ConfigurationError(f"scope: expected 'model' or 'layer', got {scope!r}; name one of them")
    if how == "per_parameter":
        return {g.name: scores[g.name] / g.parameters_per_unit for g in structure.groups}
    if scope == "layer":
        return {name: NORMALISERS[how](values) for name, values in scores.items()}
    lengths = [len(v) for v in scores.values()]
    joined = NORMALISERS[how](torch.cat(list(scores.values())))
    return dict(zip(scores, joined.split(lengths), strict=True))


def made_positive(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All moved by one constant, so that the lowest is 0.001 where some are below 0: mixtures take logarithms, budgets divide."""
    lowest = min(float(values.min()) for values in scores.values())
    return {name: values - lowest + 1e-3 if lowest < 0 else values for name, values in scores.items()}
