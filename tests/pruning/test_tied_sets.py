from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import ALLOCATIONS, Allocation, AllocationInputs, AllocationMethod, allocate
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.budget import Budget
from adapruner.pruning.surgery import check_plan, prune_model
from adapruner.pruning.tied_sets import in_slices, slice_units
from tests.models.families.conformance import plan_for


@pytest.fixture
def structure(tiny_model: Any) -> Any:
    return trace_structure(tiny_model("llama_gqa_4"), "query_head")  # 8 query heads over 2 KV heads


def random_scores(structure: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {g.name: torch.rand(g.units, generator=generator) for g in structure.groups}


def test_single_query_heads_leave_keys_and_values(structure: Any) -> None:
    group = structure.group(0, "attention")
    assert (group.units, group.channels_per_unit, group.sets, group.key_value_heads) == (8, 4, 2, 2)
    assert [m.role for m in group.members] == ["q_proj", "o_proj"]
    assert group.parameters_per_unit == 2 * 4 * 32  # rows of q, columns of o


def test_a_slice_is_the_weakest_left_of_every_set(structure: Any) -> None:
    scores = random_scores(structure)
    slices = slice_units(structure, scores, Budget(0.3).costs(structure))
    table = scores["1.attention"].view(2, 4)
    expected = [sum(sorted(table[k].tolist())[place] for k in range(2)) for place in range(4)]
    torch.testing.assert_close(slices.scores["1.attention"], torch.tensor(expected))
    strongest = sorted(k * 4 + int(table[k].argmax()) for k in range(2))
    assert slices.units_of({"1.attention": [3]})["1.attention"] == strongest
    assert in_slices(structure).group(1, "attention").parameters_per_unit == 2 * structure.group(1, "attention").parameters_per_unit


@pytest.mark.parametrize("method", ["gamma", "depth"])
def test_every_kv_head_keeps_equally_many(structure: Any, method: Any) -> None:
    kept = allocate(random_scores(structure), structure, Budget(0.4), Allocation(method))
    for layer in range(structure.layers):
        units = kept[f"{layer}.attention"]
        assert len([u for u in units if u < 4]) == len([u for u in units if u >= 4]) >= 1
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    assert removed == pytest.approx(0.4 * structure.block_parameters, abs=max(g.parameters_per_unit * g.sets for g in structure.groups))


class HalfOfTheFirst(AllocationMethod):
    """Half of the first layer's attention goes, and nothing else."""

    name = "half of the first"

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        return inputs.keep_highest({"0.attention": inputs.structure.group(0, "attention").units // 2})


def test_no_even_choice_of_one_layer_keeps_more(structure: Any) -> None:
    scores = random_scores(structure)
    group = structure.group(0, "attention")
    asked = 0.5 * group.units * group.parameters_per_unit / structure.block_parameters
    ALLOCATIONS.add(HalfOfTheFirst.name, HalfOfTheFirst())
    kept = allocate(scores, structure, Budget(asked), Allocation(HalfOfTheFirst.name))["0.attention"]
    ALLOCATIONS.remove(HalfOfTheFirst.name)
    pairs = [a + tuple(u + 4 for u in b) for a in itertools.combinations(range(4), 2) for b in itertools.combinations(range(4), 2)]
    best = max(pairs, key=lambda units: sum(float(scores["0.attention"][u]) for u in units))
    assert kept == sorted(best)


def test_an_uneven_plan_is_refused(structure: Any) -> None:
    plan = plan_for(structure, "uniform")
    plan.kept["1.attention"][:] = [0, 1, 2, 5]
    with pytest.raises(PlanError, match=r"equally many units to stay in each of the 2 sets of group 1\.attention, got \[3, 1\]"):
        check_plan(structure, plan)


def test_a_plan_says_which_units_it_is_about(tiny_model: Any, structure: Any) -> None:
    single, groups = plan_for(structure, "uniform"), plan_for(trace_structure(tiny_model("llama_gqa_4")), "uniform")
    assert trace_for_plan(tiny_model("llama_gqa_4"), single).group(0, "attention").units == 8
    assert trace_for_plan(tiny_model("llama_gqa_4"), groups).group(0, "attention").units == 2
    with pytest.raises(PlanError, match="the plan was made for 'tiny'"):
        trace_for_plan(tiny_model("llama_gqa_2", intermediate_size=20), single)


def test_the_configuration_says_how_many_query_heads_are_left(tiny_model: Any, structure: Any) -> None:
    model = tiny_model("llama_gqa_4")
    prune_model(model, structure, plan_for(structure, "uniform"))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (4, 2, 4)


def test_other_units_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ConfigurationError, match="attention_units: expected 'kv_group' or 'query_head', got 'head'"):
        trace_structure(tiny_model("llama"), "head")  # type: ignore[arg-type]
