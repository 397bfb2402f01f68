"""What a run is asked to do to a model, in one record: the budget, how units are found, what is refitted."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from adapruner.argument_checks import check_call, check_fields
from adapruner.errors import ConfigurationError, nearest
from adapruner.models.tracing import AttentionUnits, FfnUnits
from adapruner.pruning.budget import Budget
from adapruner.pruning.depth_and_width import DepthWidthConfig
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.search.config import SearchConfig
from adapruner.search.depth_and_width import check_beside_depth_and_width
from adapruner.search.gates_config import GatesConfig


@dataclass(frozen=True)
class PruningOptions:
    """Everything that decides which units go and what becomes of the others, apart from the model and its data.

    Raises:
        ConfigurationError: if options exclude each other.
    """

    budget: Budget = field(default_factory=Budget)
    """How much is removed."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How recipes are searched; left alone where a plan or a recipe is given."""
    reconstruction: ReconstructionConfig | None = field(default_factory=ReconstructionConfig)
    """The closed-form refit of the output projections; ``None`` leaves it out."""
    plan: PruningPlan | None = None
    """Applied instead of a search."""
    recipe: Recipe | None = None
    """Scores the units instead of a search."""
    attention_units: AttentionUnits = "kv_group"
    """``kv_group`` removes a KV head with all its query heads, ``query_head`` single query heads, equally many of each KV head. Only where
    there are several query heads for each KV head does it make a difference."""
    ffn_units: FfnUnits = "channel"
    """``channel`` removes single channels, in a mixture of experts equally many of each; ``expert`` removes whole experts with their rows
    of the router."""
    depth_width: DepthWidthConfig = field(default_factory=DepthWidthConfig)
    """Layers and hidden channels that go before units are searched."""
    rounds: int = 1
    """Rounds in which the budget is reached, each an equal share of the dense model: prune, refit, score what is left, prune on."""
    gates: GatesConfig = field(default_factory=GatesConfig)
    """Learned gates, which exchange units of the winner for others before the surgery; 0 steps: none."""
    statistics_batch_size: int = 8
    """Calibration samples in one forward and backward pass."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.statistics_batch_size < 1:
            raise ConfigurationError(f"pruning.statistics_batch_size: expected 1 or more, got {self.statistics_batch_size}; give 8")
        if self.plan is not None and self.recipe is not None:
            raise ConfigurationError(f"pruning.recipe: expected a plan or a recipe, got both ({self.plan.hash}); leave one out")
        check_beside_depth_and_width(self.depth_width, self.budget, self.search.space, self.recipe)
        self._check_rounds()
        if self.gates and self.budget.of == "latency":
            raise ConfigurationError(f"gates.steps: expected 0 with a budget of latency, got {self.gates.steps}; give 0, or another budget")

    def _check_rounds(self) -> None:
        """Refuses what cannot be done in several rounds."""
        if self.rounds < 1:
            raise ConfigurationError(f"pruning.rounds: expected 1 or more, got {self.rounds}; give 1 to prune once")
        if self.rounds == 1 or self.plan is not None:
            return
        recipe, space = self.recipe, self.search.space
        for wrong, what in (
            (bool(self.depth_width), "remove_layers or hidden_fraction"),
            (self.budget.of == "latency", "a latency"),
            (self.attention_units == "query_head", "attention_units query_head"),  # of a KV head with one left it means another unit
            (recipe is None and self.search.storage is not None, "search.storage"),
            (recipe is None and self.search.objective.pareto, "search.objective.pareto"),
            (space.pruned_fraction if recipe is None else recipe.pruned_fraction, "a pruned_fraction beside the budget's"),
            (True in space.bias_compensations if recipe is None else recipe.bias_compensation, "bias_compensation"),
        ):
            if wrong:
                raise ConfigurationError(f"pruning.rounds: expected 1 with {what}, got {self.rounds}; give 1, or do without it")

    def weights_left(self, whole: int) -> int:
        """How many of so many weights the pruned model will have, at least; 0 where only the search will tell."""
        if self.plan is not None:
            return self.plan.parameters["pruned"]
        open_ended = self.budget.absolute or self.budget.of not in ("block", "all") or self.search.space.pruned_fraction
        return 0 if open_ended else int(whole * (1 - self.budget.pruned_fraction))

    @property
    def searches(self) -> bool:
        """Whether neither a plan nor a recipe is given."""
        return self.plan is None and self.recipe is None


def pruning_options(
    budget: Budget | float = 0.2,
    search: SearchConfig | int | None = None,
    recipe: Recipe | None = None,
    plan: PruningPlan | str | Path | None = None,
    reconstruction: ReconstructionConfig | None = ReconstructionConfig(),
    seed: int | None = None,
    remove_layers: int = 0,
    hidden_fraction: float = 0.0,
    layer_score: str = "block_influence",
    **units: Any,
) -> PruningOptions:
    """What a run is asked to do to a model, as one record.

    Args:
        budget, search, recipe, plan, seed: as of :func:`adapruner.stages.score`.
        reconstruction: the closed-form refit right after the surgery; ``null`` leaves it out.
        recipe: a fixed recipe to prune by instead of searching: a published method, or what a search found elsewhere.
        remove_layers: whole decoder layers to remove before the search of units, those of the lowest ``layer_score``. They count
            towards the budget; layers that it protects stay.
        hidden_fraction: fraction of hidden channels to remove before the search of units, for Llama, Mistral, Qwen2 and Qwen3.
            They count towards the budget; protected layers lose them too.
        layer_score: what decides which layers go; see :mod:`adapruner.pruning.layer_scores`.
        units: ``attention_units``, ``ffn_units``, ``rounds``, ``gates``, ``statistics_batch_size``, as in
            :class:`adapruner.search.options.PruningOptions`.

    Raises:
        ConfigurationError: if a value is of a type that nothing could be done with, or options exclude each other.
    """
    check_call(pruning_options, locals())
    known = {field.name for field in fields(PruningOptions)}
    for name in units:
        if name not in known:
            raise ConfigurationError(f"{name}: expected an option of prune, got an unknown one; {nearest(name, known)}")
    config = SearchConfig() if search is None else SearchConfig(n_trials=search) if isinstance(search, int) else search
    return PruningOptions(
        budget=budget if isinstance(budget, Budget) else Budget(budget),
        search=config if seed is None else replace(config, seed=seed),
        reconstruction=reconstruction,
        plan=plan if plan is None or isinstance(plan, PruningPlan) else read_plan(plan),
        recipe=recipe,
        depth_width=DepthWidthConfig(remove_layers, hidden_fraction, layer_score),
        **units,
    )


#: What ``adapruner.prune`` and its stages call their arguments, which are options of a section on the command line.
PYTHON_NAMES = {"model.name_or_path": "model", **{f"pruning.{field.name}": field.name for field in fields(PruningOptions)}}


def short_names(budget: Any, search: Any = None, seed: Any = None, recovery: Any = None) -> dict[str, str]:
    """What options are called in messages that a program gave as one number, in the place of a :class:`Budget`, a :class:`SearchConfig` and
    the like; for :func:`adapruner.errors.written_as`.

    >>> short_names(0.3, search=64)
    {'budget.pruned_fraction': 'budget', 'search.n_trials': 'search'}
    """
    given = {"budget.pruned_fraction": ("budget", budget), "search.n_trials": ("search", search), "recovery.steps": ("recovery", recovery)}
    names = {option: short for option, (short, value) in given.items() if isinstance(value, int | float)}
    return names if seed is None else {**names, "search.seed": "seed", "data.seed": "seed"}
