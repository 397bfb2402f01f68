"""Depth and width pruning before the search of units: whole layers and hidden channels go first, units are searched in what remains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.progress import announce, progress_bar
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs.sizes import ModelSizes, measure_sizes
from adapruner.pruning.depth_and_width import (
    DepthWidthConfig,
    DepthWidthCut,
    choose_depth_and_width,
    depth_and_width_removed,
    lift_plan,
    record_budget,
    remaining_budget,
    restrict_plan,
)
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe
from adapruner.search.space import SearchSpace


@dataclass(frozen=True)
class RemainingModel:
    """The model that units are searched in: the dense one, or what depth and width pruning leave of it."""

    structure: ModelStructure
    budget: Budget
    """What is still to be removed."""
    given: PruningPlan | None
    """The units of a plan that is given instead of a search."""


@dataclass(frozen=True)
class DepthWidthStage:
    """What depth and width pruning remove before units are searched; nothing by default, and then everything is the dense model's."""

    dense: ModelStructure
    budget: Budget
    """The budget of the whole: layers and hidden channels that go count towards it."""
    cut: DepthWidthCut = field(default_factory=DepthWidthCut)
    given: PruningPlan | None = None
    """A plan for the dense model, applied instead of a search."""
    fingerprint: str = ""
    """Fingerprint of the dense model."""
    sizes: ModelSizes | None = None
    """Sizes of the dense model."""

    @contextmanager
    def entered(self, model: Any) -> Iterator[RemainingModel]:
        """Inside the block the model lacks those layers and hidden channels; afterwards it is dense again."""
        if not self.cut or self.sizes is None:
            yield RemainingModel(self.dense, self.budget, self.given)
            return
        with depth_and_width_removed(model, self.cut):
            single = any(g.query_head_units for g in self.dense.groups)
            experts = any(g.expert_units for g in self.dense.groups)
            structure = trace_structure(model, "query_head" if single else "kv_group", "expert" if experts else "channel")
            if self.given is None:
                yield RemainingModel(structure, remaining_budget(self.budget, self.dense, structure, self.sizes), None)
                return
            plan = restrict_plan(self.given, structure)
            removed = 1.0 - plan.parameters["block_pruned"] / structure.block_parameters
            yield RemainingModel(structure, Budget(max(0.0, removed), keep_at_least=0.0), plan)

    def lifted(self, plan: PruningPlan) -> PruningPlan:
        """A plan for the remaining model, as one for the dense model."""
        if self.given is not None or not self.cut or self.sizes is None:
            return plan if self.given is None else self.given
        budget = record_budget(self.budget, plan, self.dense, self.sizes)
        return lift_plan(plan, self.dense, self.cut, {**plan.model, "fingerprint": self.fingerprint}, budget)


def check_beside_depth_and_width(config: DepthWidthConfig, budget: Budget, space: SearchSpace, recipe: Recipe | None) -> None:
    """Refuses what cannot be combined with removed layers and hidden channels.

    Raises:
        ConfigurationError: for a size that is searched or comes with a recipe, and for a fraction of the latency.
    """
    if not config:
        return
    if space.pruned_fraction is not None or (recipe is not None and recipe.pruned_fraction is not None):
        raise ConfigurationError(
            "pruned_fraction: expected the budget's alone beside remove_layers or hidden_fraction, got one of the search space or the "
            "recipe; set that to null"
        )
    if budget.of == "latency" and budget.absolute is None:
        raise ConfigurationError(
            "budget.of: expected latency_ms beside remove_layers or hidden_fraction, got a fraction of latency; give budget.latency_ms"
        )


def prune_depth_and_width(
    model: Any,
    structure: ModelStructure,
    config: DepthWidthConfig,
    budget: Budget,
    given: PruningPlan | None,
    windows: Any,
    batch_size: int = 8,
) -> DepthWidthStage:
    """Chooses layers and hidden channels on the calibration windows, or takes those of a given plan; the model stays as it is.

    Args:
        structure: of the dense model.
        windows: the calibration windows, ``[n, seq_len]``.
        batch_size: windows in one forward pass.

    Raises:
        PlanError: if the given plan is for another model.
        ConfigurationError: if more layers are asked for than are free.
        ModelError: if the family cannot do without layers or hidden channels.
    """
    if not (given.cuts_depth_or_width if given is not None else config):
        return DepthWidthStage(structure, budget, given=given)
    fingerprint, sizes = fingerprint_model(model), measure_sizes(model, structure)
    if given is not None:
        given.check(structure, fingerprint)
        return DepthWidthStage(structure, budget, DepthWidthCut.of(given), given, fingerprint, sizes)
    with progress_bar("layers and hidden channels", len(windows.input_ids)) as advance:
        found = choose_depth_and_width(model, windows, config, budget, batch_size=batch_size, progress=advance)
    cut: DepthWidthCut = Ranks().broadcast(found)
    announce(describe_cut(cut, int(model.config.hidden_size)))
    return DepthWidthStage(structure, budget, cut, None, fingerprint, sizes)


def describe_cut(cut: DepthWidthCut, hidden: int) -> str:
    """What is removed before the search, as one line for the terminal; ``hidden`` is the dense model's number of hidden channels."""
    parts = [f"layers {', '.join(map(str, cut.removed_layers))}"] if cut.removed_layers else []
    parts += [f"{hidden - len(cut.kept_hidden)} of {hidden} hidden channels"] if cut.kept_hidden is not None else []
    return f"removes {' and '.join(parts)} before the search of units" if parts else "removes neither layers nor hidden channels"
