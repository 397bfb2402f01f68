"""What a run is asked to do to a model, in one record: the budget, how units are found, what is refitted."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError
from adapruner.models.tracing import AttentionUnits, FfnUnits
from adapruner.pruning.budget import Budget
from adapruner.pruning.depth_and_width import DepthWidthConfig
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.search.config import SearchConfig
from adapruner.search.depth_and_width import check_beside_depth_and_width


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
    statistics_batch_size: int = 8
    """Calibration samples in one forward and backward pass."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.statistics_batch_size < 1:
            raise ConfigurationError(f"pruning.statistics_batch_size: expected 1 or more, got {self.statistics_batch_size}; give 8")
        if self.plan is not None and self.recipe is not None:
            raise ConfigurationError(f"pruning.recipe: expected a plan or a recipe, got both ({self.plan.hash}); leave one out")
        check_beside_depth_and_width(self.depth_width, self.budget, self.search.space, self.recipe)

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
