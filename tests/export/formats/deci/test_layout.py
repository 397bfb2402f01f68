"""The heads that all layers share, beside every choice there is."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from adapruner.export.formats.deci.layout import Layer, common_heads


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    """What is left of a model with up to 4 KV heads of up to 3 query heads each."""
    groups, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    found = draw(st.lists(st.tuples(st.integers(1, kv_heads), st.integers(1, groups)), min_size=1, max_size=3))
    return [Layer(kv * group, kv, 8) for kv, group in found]


@given(layers())
def test_the_fewest_zeros_that_hold_every_layer(given_layers: list[Layer]) -> None:
    heads, kv_heads = common_heads(given_layers)
    costs = []
    for query in range(1, 13):
        fitting = [
            [kv for kv in range(layer.kv_heads, query + 1) if query % kv == 0 and query // kv >= layer.group] for layer in given_layers
        ]
        costs += [query * len(given_layers) + sum(choice) for choice in product(*fitting)]
    assert heads * len(given_layers) + sum(kv_heads) == min(costs)
    for layer, kv in zip(given_layers, kv_heads, strict=True):
        assert heads % kv == 0
        assert kv >= layer.kv_heads
        assert heads // kv >= layer.group
