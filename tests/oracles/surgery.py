"""Plans drawn at random, and counting what is left by looking at the tensors."""

from __future__ import annotations

import random
from typing import Any

from adapruner.anatomy.units import ModelAnatomy
from adapruner.pruning.plan import PruningPlan


def random_plan(anatomy: ModelAnatomy, seed: int) -> PruningPlan:
    """An irregular plan: every group keeps a random non-empty set of its units."""
    draw = random.Random(seed)
    kept = {g.name: sorted(draw.sample(range(g.units), draw.randint(1, g.units))) for g in anatomy.groups}
    return plan_of(anatomy, kept)


def plan_of(anatomy: ModelAnatomy, kept: dict[str, list[int]]) -> PruningPlan:
    """A plan with these units; groups that are not named stay whole."""
    kept = {g.name: kept.get(g.name, list(range(g.units))) for g in anatomy.groups}
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in anatomy.groups)
    return PruningPlan(
        model={"name": "tiny", "model_type": anatomy.model_type, "fingerprint": "f00d"},
        kept=kept,
        units={g.name: g.units for g in anatomy.groups},
        parameters={
            "dense": anatomy.parameters,
            "pruned": anatomy.parameters - removed,
            "block_dense": anatomy.block_parameters,
            "block_pruned": anatomy.block_parameters - removed,
        },
        budget={"pruned_fraction": removed / anatomy.block_parameters, "of": "block"},
        recipe={"metric": "random"},
        provenance={"seed": 3},
    )


def snapshot(model: Any) -> dict[str, Any]:
    """Everything surgery could change: the very parameters, copies of their values, sizes, and the configuration."""
    return {
        "parameters": {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()},
        "sizes": {n: (m.in_features, m.out_features) for n, m in model.named_modules() if hasattr(m, "in_features")},
        "config": model.config.to_dict(),
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Bit-identical: the same tensors with the same values."""
    assert {k: v[:2] for k, v in before["parameters"].items()} == {k: v[:2] for k, v in after["parameters"].items()}
    for name, (_, _, value) in before["parameters"].items():
        assert value.equal(after["parameters"][name][2]), name
    for key in ("sizes", "config", "modes", "hooks"):
        assert before[key] == after[key], key
