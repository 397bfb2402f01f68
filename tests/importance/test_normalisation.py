"""Normalisers against the words that define them."""

from __future__ import annotations

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.importance.normalisation import NORMALISERS, made_positive, normalise
from adapruner.models.tracing import trace_structure
from tests.conftest import build_model

STRUCTURE = trace_structure(build_model("llama_gqa_2"))
SCORES = {g.name: torch.rand(g.units, generator=torch.Generator().manual_seed(i)) * 10.0**i for i, g in enumerate(STRUCTURE.groups)}


@pytest.mark.parametrize("how", sorted(set(NORMALISERS) - {"per_parameter"}))
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_order_is_kept_and_values_can_be_logged(how: str, scope: str) -> None:
    result = made_positive(normalise(SCORES, STRUCTURE, how, scope))
    parts = [(SCORES[n], result[n]) for n in SCORES]
    if scope == "model":
        parts = [(torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]))]
    for before, after in parts:
        assert bool((after > 0).all())
        assert bool((after[before.argsort()].diff() >= 0).all())


def test_figures_of_each() -> None:
    joined = torch.cat(list(SCORES.values()))
    for how, expected in {
        "none": joined,
        "sum": joined / joined.sum(),
        "mean": joined / joined.mean(),
        "max": joined / joined.max(),
    }.items():
        torch.testing.assert_close(torch.cat(list(normalise(SCORES, STRUCTURE, how).values())), expected)
    z = torch.cat(list(normalise(SCORES, STRUCTURE, "standardise").values()))
    assert float(z.std()) == pytest.approx(1.0, rel=1e-4)
    per_parameter = normalise(SCORES, STRUCTURE, "per_parameter")
    for group in STRUCTURE.groups:
        torch.testing.assert_close(per_parameter[group.name], SCORES[group.name] / group.parameters_per_unit)


def test_z_scores_of_layers_compare() -> None:
    """Each layer's own z-scores, all moved by the same constant (FLAP, arXiv 2312.11983)."""
    found = made_positive(normalise(SCORES, STRUCTURE, "standardise", "layer"))
    z = {name: (s - s.mean()) / s.std() for name, s in SCORES.items()}
    shifts = torch.cat([found[name] - z[name] for name in SCORES])
    assert float(shifts.std()) < 1e-5
    assert min(float(v.min()) for v in found.values()) == pytest.approx(1e-3, rel=1e-3)


def test_ranks_are_averaged_over_ties() -> None:
    tied = {
        g.name: torch.tensor([3.0, 1.0, 3.0, 2.0] + [9.0] * (g.units - 4)) if g.units > 4 else torch.arange(g.units) * 1.0
        for g in STRUCTURE.groups
    }
    ranks = normalise(tied, STRUCTURE, "rank", "layer")["0.ffn"][:4] * 24
    assert ranks.tolist() == pytest.approx([3.5, 1.0, 3.5, 2.0])


def test_unknown_names() -> None:
    with pytest.raises(ConfigurationError, match="normaliser: expected a known normaliser, got 'meen'; did you mean 'mean'"):
        normalise(SCORES, STRUCTURE, "meen")
    with pytest.raises(ConfigurationError, match="scope: expected 'model' or 'layer', got 'head'"):
        normalise(SCORES, STRUCTURE, "mean", "head")
