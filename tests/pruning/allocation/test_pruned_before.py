"""Every allocation on a model whose layers differ already: the budget is met, and what is called uniform is."""

from __future__ import annotations

import pytest

from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores, removed_parameters

DENSE = trace_structure(build_model("llama", intermediate_size=640, num_attention_heads=8, num_key_value_heads=8))
LEFT = {"0.attention": 7, "0.ffn": 600, "1.attention": 5, "1.ffn": 480, "2.attention": 8, "2.ffn": 533}
STRUCTURE = DENSE.after({name: list(range(count)) for name, count in LEFT.items()})


@pytest.mark.parametrize(
    ("allocation", "uniform"),
    [
        (Allocation(), ()),
        (Allocation(gamma=1.0), ()),
        (Allocation(heads="uniform"), ("attention",)),
        (Allocation("depth", depth_slope=0.1), ()),
        (Allocation("depth", heads="uniform"), ("attention",)),
        (Allocation("depth", heads="uniform", round_to=4), ("attention",)),
        (Allocation("uniform"), ("attention", "ffn")),
    ],
)
@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_a_budget_is_met_of_what_is_left(allocation: Allocation, uniform: tuple[str, ...], fraction: float) -> None:
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, Budget(fraction), allocation)
    assert removed_parameters(kept, STRUCTURE) / STRUCTURE.block_parameters == pytest.approx(fraction, abs=0.002)
    for kind in uniform:
        assert len({len(units) for name, units in kept.items() if name.endswith(kind)}) == 1
