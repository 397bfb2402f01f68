"""Depth and width pruning: whole layers and hidden channels, removed before units are searched; what a plan records of them.

They are chosen first, from the dense model, and what they remove counts towards the budget. Units are then searched in the
model that remains. The one plan is about the dense model again: :func:`lift_plan` turns a plan for the remaining model into
one for the dense model, :func:`restrict_plan` the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from adapruner.argument_checks import check_fields
from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.forward import Progress, Windows
from adapruner.models.units import Member, ModelStructure, UnitGroup
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import COSTS, TOLERANCE
from adapruner.pruning.costs.sizes import ModelSizes
from adapruner.pruning.depth import check_depth, choose_layers, remove_layers, without_layers
from adapruner.pruning.hidden_width import check_hidden, choose_hidden, hidden_scores, remove_hidden, without_hidden
from adapruner.pruning.layer_scores import LAYER_SCORES
from adapruner.pruning.plan import PruningPlan


@dataclass(frozen=True)
class DepthWidthCut:
    """Layers that go and hidden channels that stay, in the dense model's numbering."""

    removed_layers: tuple[int, ...] = ()
    kept_hidden: tuple[int, ...] | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.removed_layers) or self.kept_hidden is not None

    @classmethod
    def of(cls, plan: PruningPlan) -> DepthWidthCut:
        """What a plan removes besides units."""
        return cls(tuple(plan.removed_layers), None if plan.kept_hidden is None else tuple(plan.kept_hidden))


@dataclass(frozen=True)
class DepthWidthConfig:
    """How many layers and hidden channels go; nothing by default."""

    remove_layers: int = 0
    """Decoder layers of the lowest ``layer_score``; see :mod:`adapruner.pruning.depth`. A layer that the budget protects stays."""
    hidden_fraction: float = 0.0
    """Fraction of hidden channels, in [0, 1); see :mod:`adapruner.pruning.hidden_width`. Rounded so that the number of heads divides
    what is left, as Llama's configuration wants it. Protected layers lose them too."""
    layer_score: str = "block_influence"
    """What decides which layers go; see :mod:`adapruner.pruning.layer_scores`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.remove_layers < 0:
            raise ConfigurationError(f"remove_layers: expected a number of layers, 0 or more, got {self.remove_layers}; give 0 to keep all")
        if not 0.0 <= self.hidden_fraction < 1.0:
            raise ConfigurationError(f"hidden_fraction: expected a fraction in [0, 1), got {self.hidden_fraction}; give 0.1 to remove 10 %")
        LAYER_SCORES.find(self.layer_score, "layer_score")

    def __bool__(self) -> bool:
        """Whether anything is to go."""
        return self.remove_layers > 0 or self.hidden_fraction > 0


def choose_depth_and_width(
    model: Any, windows: Windows, options: DepthWidthConfig, budget: Budget, *, batch_size: int = 8, progress: Progress | None = None
) -> DepthWidthCut:
    """Layers first, then hidden channels by what they carry in the layers that stay. The model is left as it was.

    Raises:
        ConfigurationError: if more layers are asked for than are free.
        ModelError, DataError: as :mod:`adapruner.pruning.depth` and :mod:`adapruner.pruning.hidden_width`.
    """
    layers, kept = int(model.config.num_hidden_layers), None
    protected = [layer for layer in range(layers) if budget.is_protected(layer, layers)]
    removed: list[int] = []
    if options.remove_layers:
        check_depth(model, [0])  # what no layer can be removed from
        layer_scores = LAYER_SCORES.find(options.layer_score).score(model, windows, batch_size=batch_size, progress=progress)
        removed = choose_layers(layer_scores, options.remove_layers, protected)
    if options.hidden_fraction:
        with without_layers(model, removed):
            scores = hidden_scores(model, windows, batch_size=batch_size, progress=progress)
        kept = choose_hidden(scores, options.hidden_fraction, int(model.config.num_attention_heads))
    return DepthWidthCut(tuple(removed), None if kept is None or len(kept) == len(scores) else tuple(kept))


def check_depth_and_width(model: Any, cut: DepthWidthCut) -> None:
    """Refuses, before anything is touched, what :func:`apply_depth_and_width` cannot do, with its errors."""
    if cut.kept_hidden is not None:
        check_hidden(model, cut.kept_hidden)
    check_depth(model, cut.removed_layers)


def apply_depth_and_width(model: Any, cut: DepthWidthCut) -> None:
    """Removes hidden channels and whole layers, in place and for good; units may be cut before or after.

    Raises:
        PlanError: if the cut does not fit the model.
        ModelError: if the family cannot do without.
    """
    check_depth_and_width(model, cut)
    if cut.kept_hidden is not None:
        remove_hidden(model, cut.kept_hidden)
    remove_layers(model, cut.removed_layers)


@contextmanager
def depth_and_width_removed(model: Any, cut: DepthWidthCut) -> Iterator[Any]:
    """The model without them inside the block; the very tensors and layers are back afterwards. Errors as :func:`apply_depth_and_width`.

    Costs a copy of what is left where hidden channels go, nothing where only layers go.
    """
    check_depth_and_width(model, cut)
    with ExitStack() as blocks:
        if cut.kept_hidden is not None:
            blocks.enter_context(without_hidden(model, cut.kept_hidden))
        if cut.removed_layers:
            blocks.enter_context(without_layers(model, cut.removed_layers))
        yield model


def remaining_budget(budget: Budget, dense: ModelStructure, remaining: ModelStructure, sizes: ModelSizes) -> Budget:
    """What is still to be removed in the remaining model, for the whole to meet the budget.

    Args:
        dense: before the cut.
        remaining: after it.
        sizes: of the dense model.

    Raises:
        BudgetError: if the cut alone removes more than the budget.
        ConfigurationError: for a fraction of the latency, which would have to be timed twice.
    """
    if budget.absolute:  # what is to be left is the same, whatever else goes
        return budget
    if budget.of == "latency":
        raise ConfigurationError(
            "budget.of: expected latency_ms beside removed layers or hidden channels, got a fraction of latency; give budget.latency_ms"
        )
    if budget.of not in ("block", "all"):
        target = COSTS.find(budget.of).target
        if target is None:
            raise ConfigurationError(
                f"budget.of: expected a unit with an absolute target beside removed layers or hidden channels, got {budget.of!r}; "
                "give macs, or remove none of them"
            )
        left = replace(budget, pruned_fraction=0.0).costs(dense, sizes=sizes).dense * (1.0 - budget.pruned_fraction)
        return replace(budget, **{target: left})  # type: ignore[arg-type]
    before, after = (
        (dense.block_parameters, remaining.block_parameters) if budget.of == "block" else (dense.parameters, remaining.parameters)
    )
    rest = round(before * budget.pruned_fraction) - (before - after)
    if rest < -TOLERANCE * before:
        raise BudgetError(
            f"budget.pruned_fraction: expected at least the {1 - after / before:.4f} that removed layers and hidden channels "
            f"come to, got {budget.pruned_fraction}; prune more, or remove fewer of them"
        )
    return replace(budget, pruned_fraction=max(0, rest) / after)


def record_budget(budget: Budget, plan: PruningPlan, dense: ModelStructure, sizes: ModelSizes) -> dict[str, Any]:
    """What a lifted plan records of the budget: an absolute target with the fraction it comes to of the dense model.

    A latency's fraction stays that of the remaining model, the only one that was timed.
    """
    if budget.absolute is None:
        return budget.to_dict()
    if budget.of == "latency":
        return dict(plan.budget)
    nothing = Budget(0.0, budget.of, seq_len=budget.seq_len).costs(dense, sizes=sizes)
    return {**plan.budget, "pruned_fraction": (nothing.dense - getattr(budget, budget.absolute)) / nothing.whole}


def lift_plan(
    plan: PruningPlan, dense: ModelStructure, cut: DepthWidthCut, model: Mapping[str, Any], budget: Mapping[str, Any] | None = None
) -> PruningPlan:
    """A plan for the remaining model as one about the dense model, which records the cut as well.

    Args:
        plan: its layers are numbered as in the remaining model.
        dense: of the dense model.
        model: the dense model's ``name``, ``model_type`` and ``fingerprint``.
        budget: what was asked for; that of the plan when ``None``.
    """
    stay = [layer for layer in range(dense.layers) if layer not in cut.removed_layers]
    kept = {g.name: list(range(g.units)) for g in dense.groups}
    kept.update({_renamed(name, stay): list(units) for name, units in plan.kept.items()})
    return replace(
        plan,
        model=dict(model),
        kept=kept,
        units={g.name: g.units for g in dense.groups},
        unit_parameters={g.name: g.parameters_per_unit for g in dense.groups if plan.unit_parameters},
        parameters={**plan.parameters, "dense": dense.parameters, "block_dense": dense.block_parameters},
        budget=dict(plan.budget if budget is None else budget),
        removed_layers=list(cut.removed_layers),
        kept_hidden=None if cut.kept_hidden is None else list(cut.kept_hidden),
    )


def restrict_plan(plan: PruningPlan, remaining: ModelStructure, fingerprint: str | None = None) -> PruningPlan:
    """The part of a plan that is about units, for the model that remains.

    Args:
        plan: about the dense model.
        remaining: of the model after :func:`apply_depth_and_width`.
        fingerprint: of that model; ``None`` where nobody asks.
    """
    stay = plan.kept_layers()
    kept = {g.name: list(plan.kept[_renamed(g.name, stay)]) for g in remaining.groups}
    return replace(
        plan,
        model={**plan.model, "fingerprint": fingerprint},
        kept=kept,
        units={g.name: g.units for g in remaining.groups},
        unit_parameters={g.name: g.parameters_per_unit for g in remaining.groups if plan.unit_parameters},
        parameters={**plan.parameters, "dense": remaining.parameters, "block_dense": remaining.block_parameters},
        removed_layers=[],
        kept_hidden=None,
    )


def remaining_structure(dense: ModelStructure, plan: PruningPlan) -> ModelStructure:
    """What :func:`adapruner.models.tracing.trace_structure` says of the model after the plan's cut, from the dense model's alone.

    With :func:`restrict_plan`, the export and others see a model without depth and width pruning; layers are numbered as in the pruned
    model.
    """
    stay = plan.kept_layers()
    groups = tuple(_renumbered_group(group, now, plan) for now, before in enumerate(stay) for group in dense.of_layer(before))
    block = sum(g.units * g.parameters_per_unit for g in groups)
    outside = plan.parameters["pruned"] - plan.parameters["block_pruned"]  # of units; biases that a plan adds count in both
    return replace(dense, groups=groups, layers=len(stay), parameters=block + outside, block_parameters=block)


def _renumbered_group(group: UnitGroup, layer: int, plan: PruningPlan) -> UnitGroup:
    """The same units under the layer's new number, each of as many parameters as a narrower stream leaves."""

    def renumbered(members: tuple[Member, ...]) -> tuple[Member, ...]:
        return tuple(replace(m, module=m.module.replace(f".{group.layer}.", f".{layer}.", 1)) for m in members)

    parameters = group.parameters_per_unit
    if plan.kept_hidden is not None:  # every coupled matrix has the stream on its other side
        lines = sum(len(m.positions(group.channels_of([0]))) for m in group.members)
        parameters -= lines * (parameters // lines - len(plan.kept_hidden))
    return replace(group, layer=layer, members=renumbered(group.members), staying=renumbered(group.staying), parameters_per_unit=parameters)


def _renamed(name: str, stay: Sequence[int]) -> str:
    """The dense model's name of a group of the remaining model."""
    layer, kind = name.split(".")
    return f"{stay[int(layer)]}.{kind}"
