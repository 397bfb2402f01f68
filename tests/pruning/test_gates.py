"""Gates: the forward of a masked model, the budget at every step, and a straight-through gradient that is the one made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.models.forward import frozen
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.gates import SPREAD, UnitGates, first_logits
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan, plan_of_units, score_units
from adapruner.pruning.recipe import Recipe
from tests.models.families.table import ROWS, Row, build
from tests.tiny import prepare_problem, random_windows, tiny_llama

WINDOWS = random_windows(4, 16, seed=3)
MIXTURES = ("mixtral", "qwen2_moe", "olmoe", "qwen3_moe")
RECIPE = Recipe({"l1": 1.0}, allocation=Allocation(round_to=8))


def gates_of(model: Any, problem: PruningProblem, recipe: Recipe = RECIPE) -> UnitGates:
    plan = make_plan(problem, recipe)
    logits = first_logits(plan, problem.structure, score_units(problem, recipe), torch.device("cpu"), over_model=False)
    return UnitGates(problem.structure, problem.budget, problem.budget.costs(problem.structure), recipe.allocation, logits)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}])
def test_open_gates_are_a_masked_model(changes: dict[str, Any]) -> None:
    model = tiny_llama(**changes)
    problem = prepare_problem(model, WINDOWS)
    gates = gates_of(model, problem)
    kept = gates.kept()
    with torch.no_grad(), masked(model, problem.structure, plan_of_units(problem, RECIPE, kept)):
        expected = model(WINDOWS.input_ids).logits
    with torch.no_grad(), gates.applied(model, kept):
        torch.testing.assert_close(model(WINDOWS.input_ids).logits, expected)
    with torch.no_grad():  # and no hook is left
        assert not torch.allclose(model(WINDOWS.input_ids).logits, expected)


@pytest.mark.parametrize("units", ["channel", "expert"])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.model_type in MIXTURES or row.model_type in ("gpt2", "bloom", "phi")], ids=lambda row: row.name
)
def test_gates_of_every_kind_of_unit_get_a_gradient(row: Row, units: Any) -> None:
    if units == "expert" and row.model_type not in MIXTURES:
        pytest.skip("no experts")
    model, ids = build(row), WINDOWS.input_ids % 32
    structure = trace_structure(model, ffn_units=units)
    logits = {g.name: torch.linspace(-1.0, 3.0, g.units) for g in structure.groups}
    budget = Budget(0.25, keep_at_least=0.1)
    gates = UnitGates(structure, budget, budget.costs(structure), Allocation(round_to=1), logits)
    kept = gates.kept()
    plan = PruningPlan({}, kept, {g.name: g.units for g in structure.groups}, {}, {}, {}, {})
    with torch.no_grad(), masked(model, structure, plan):
        expected = model(ids).logits
    with frozen(model), gates.applied(model, kept):
        found = model(ids, labels=ids)
        found.loss.backward()
    torch.testing.assert_close(found.logits.detach(), expected, rtol=1e-4, atol=1e-5)
    assert any(len(kept[g.name]) < g.units for g in structure.groups)
    for group in structure.groups:
        gradient = gates.logits[group.name].grad
        assert gradient is not None
        assert bool(gradient[kept[group.name]].abs().sum() > 0), group.name


def test_the_gradient_is_that_of_the_contribution_times_the_slope_of_the_gate() -> None:
    """dL/dlogit_u = p (1 - p) sum over the unit's channels and all tokens of x dL/d(x m), whether the gate is open or shut."""
    model = tiny_llama()
    problem = prepare_problem(model, WINDOWS)
    gates = gates_of(model, problem)
    kept = gates.kept()
    with frozen(model), gates.applied(model, kept):
        model(WINDOWS.input_ids, labels=WINDOWS.labels).loss.backward()
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str, mask: torch.Tensor) -> Any:
        def hook(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            gate = mask.clone().requires_grad_()
            seen[name] = gate
            return (arguments[0] * gate,)

        return hook

    masks = {}
    for group in problem.structure.groups:
        masks[group.name] = torch.zeros(group.channels)
        masks[group.name][group.channels_of(kept[group.name])] = 1.0
        model.get_submodule(group.output.module).register_forward_pre_hook(watch(group.name, masks[group.name]))
    model(WINDOWS.input_ids, labels=WINDOWS.labels).loss.backward()
    some_shut = False
    for group in problem.structure.groups:
        logits, of_channels = gates.logits[group.name], seen[group.name].grad
        assert logits.grad is not None
        assert of_channels is not None
        slope = logits.detach().sigmoid() * (1 - logits.detach().sigmoid())
        torch.testing.assert_close(logits.grad, slope * of_channels.view(group.units, -1).sum(1), rtol=1e-4, atol=1e-7)
        shut = [unit for unit in range(group.units) if unit not in kept[group.name]]
        some_shut = some_shut or bool(logits.grad[shut].abs().sum() > 0)
    assert some_shut


@pytest.mark.parametrize("recipe", [RECIPE, Recipe({"l1": 1.0}, allocation=Allocation("uniform"))])
def test_every_choice_of_logits_meets_the_budget(recipe: Recipe) -> None:
    model = tiny_llama()
    budget = Budget(0.4, keep_at_least=0.1, protect_first=1)
    problem = prepare_problem(model, WINDOWS, budget)
    gates = gates_of(model, problem, recipe)
    costs = budget.costs(problem.structure)
    step = max(8 * costs.per_unit[g.name] for g in problem.structure.groups if g.kind == "ffn") / 2
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for values in gates.logits.values():
                values.copy_(4 * torch.randn(values.shape, generator=generator))
        kept = gates.kept()
        assert abs(costs.removed_by(kept, problem.structure) - costs.remove) <= max(costs.slack, step)
        for group in problem.structure.groups:
            assert group.layer > 0 or len(kept[group.name]) == group.units
            assert group.kind == "attention" or recipe is not RECIPE or len(kept[group.name]) % 8 == 0


def test_gates_start_where_the_plan_is() -> None:
    model = tiny_llama()
    problem = prepare_problem(model, WINDOWS, Budget(0.302083, keep_at_least=0.1))
    recipe = Recipe({"l1": 1.0}, allocation=Allocation("uniform"))
    plan = make_plan(problem, recipe)
    logits = first_logits(plan, problem.structure, score_units(problem, recipe), torch.device("cpu"), over_model=False)
    for group in problem.structure.groups:
        assert (logits[group.name] > 0).nonzero()[:, 0].tolist() == plan.kept[group.name]
    values = torch.cat(list(logits.values()))
    assert float(values.max() - values.min()) <= 2 * SPREAD
    scores = score_units(problem, RECIPE)
    over_model = first_logits(plan, problem.structure, scores, torch.device("cpu"), over_model=True)
    flat, ranked = (torch.cat([values[g.name].double() for g in problem.structure.groups]) for values in (over_model, scores))
    assert torch.equal(torch.argsort(flat, stable=True), torch.argsort(ranked, stable=True))
    removed = sum(g.units - len(plan.kept[g.name]) for g in problem.structure.groups)
    assert int((flat < 0).sum()) == removed
