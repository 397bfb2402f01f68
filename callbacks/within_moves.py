"""Where a search of units starts: in the dense model, or in what is left of it without some layers and hidden channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning import Trainer

from adapruner.anatomy.fingerprint import fingerprint_model
from adapruner.anatomy.sizes import ModelSizes, measure_sizes
from adapruner.anatomy.tracing import trace_anatomy
from adapruner.anatomy.units import ModelAnatomy
from adapruner.callbacks.progress import announce, progress_bar
from adapruner.errors import ConfigurationError, DataError
from adapruner.pipeline import Recipe
from adapruner.pruning.budget import Budget
from adapruner.pruning.moves import MoveOptions, Moves, choose_moves, lift_plan, moved, record_budget, remaining_budget, restrict_plan
from adapruner.pruning.plan import PruningPlan
from adapruner.search.space import SearchSpace


@dataclass(frozen=True)
class Start:
    """What units are searched in; :meth:`entered` makes the model so. Without moves everything is the dense model's."""

    dense: ModelAnatomy
    budget: Budget
    """Of the whole: what the moves remove counts towards it."""
    moves: Moves = field(default_factory=Moves)
    given: PruningPlan | None = None
    """A plan about the dense model, applied instead of a search."""
    fingerprint: str = ""
    """Of the dense model."""
    sizes: ModelSizes | None = None
    """Of the dense model."""

    @contextmanager
    def entered(self, model: Any) -> Iterator[Within]:
        """The model without the layers and hidden channels inside the block; dense again afterwards."""
        if not self.moves or self.sizes is None:
            yield Within(self.dense, self.budget, self.given)
            return
        with moved(model, self.moves):
            single = any(g.query_head_units for g in self.dense.groups)
            experts = any(g.expert_units for g in self.dense.groups)
            anatomy = trace_anatomy(model, "query_head" if single else "kv_group", "expert" if experts else "channel")
            if self.given is None:
                yield Within(anatomy, remaining_budget(self.budget, self.dense, anatomy, self.sizes), None)
                return
            plan = restrict_plan(self.given, anatomy)
            removed = 1.0 - plan.parameters["block_pruned"] / anatomy.block_parameters
            yield Within(anatomy, Budget(max(0.0, removed), keep_at_least=0.0), plan)

    def lifted(self, plan: PruningPlan) -> PruningPlan:
        """The plan that was found within, as one about the dense model."""
        if self.given is not None or not self.moves or self.sizes is None:
            return plan if self.given is None else self.given
        budget = record_budget(self.budget, plan, self.dense, self.sizes)
        return lift_plan(plan, self.dense, self.moves, {**plan.model, "fingerprint": self.fingerprint}, budget)


@dataclass(frozen=True)
class Within:
    """The model that units are searched in."""

    anatomy: ModelAnatomy
    budget: Budget
    """What is still to go."""
    given: PruningPlan | None
    """The units of a plan that is given."""


def check_beside(options: MoveOptions, budget: Budget, space: SearchSpace, recipe: Recipe | None) -> None:
    """Refuses what cannot be had beside removed layers and hidden channels.

    Raises:
        ConfigurationError: for a size that is searched or comes with a recipe, and for a fraction of the latency.
    """
    if not options:
        return
    sized = space.pruned_fraction is not None or (recipe is not None and recipe.pruned_fraction is not None)
    if sized:
        raise ConfigurationError(
            "pruned_fraction: expected the budget's alone beside remove_layers or hidden_fraction, got one of the search space or the "
            "recipe; set that to null"
        )
    if budget.of == "latency" and budget.absolute is None:
        raise ConfigurationError(
            "budget.of: expected latency_ms beside remove_layers or hidden_fraction, got a fraction of latency; give budget.latency_ms"
        )


def find_start(
    trainer: Trainer, model: Any, anatomy: ModelAnatomy, options: MoveOptions, budget: Budget, given: PruningPlan | None, batch_size: int
) -> Start:
    """The moves of a given plan, else those that the options ask for, chosen on the calibration windows; else the dense model.

    Raises:
        PlanError: if the given plan is for another model.
        ConfigurationError: if a callback cannot follow, or more layers are asked for than are free.
        DataError: if there are no calibration windows.
        ModelError: if the family cannot do without layers or hidden channels.
    """
    if not (given.has_moves if given is not None else options):
        return Start(anatomy, budget, given=given)
    fingerprint, sizes = fingerprint_model(model), measure_sizes(model, anatomy)
    if given is not None:
        given.check(anatomy, fingerprint)
        return Start(anatomy, budget, Moves.of(given), given, fingerprint, sizes)
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "calibration_windows"):
        raise DataError(
            f"data: expected a data module with calibration_windows, got {type(data).__name__}; use adapruner.PruningDataModule"
        )
    windows = data.calibration_windows
    with progress_bar("layers and hidden channels", len(windows.input_ids)) as advance:
        found = choose_moves(model, windows, options, budget, batch_size=batch_size, progress=advance)
    moves: Moves = trainer.strategy.broadcast(found)
    announce(in_words(moves, int(model.config.hidden_size)))
    return Start(anatomy, budget, moves, None, fingerprint, sizes)


def in_words(moves: Moves, hidden: int) -> str:
    """For the terminal."""
    said = [f"layers {', '.join(map(str, moves.removed_layers))}"] if moves.removed_layers else []
    said += [f"{hidden - len(moves.kept_hidden)} of {hidden} hidden channels"] if moves.kept_hidden is not None else []
    return f"removes {' and '.join(said)} before the search of units" if said else "removes neither layers nor hidden channels"
