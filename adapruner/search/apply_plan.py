"""From a found plan to the pruned model: depth and width, then units, with or without the refit of what stays."""

from __future__ import annotations

import time

from adapruner.errors import PlanError
from adapruner.progress import progress_bar
from adapruner.pruning.depth_and_width import DepthWidthCut, apply_depth_and_width
from adapruner.pruning.problem import bias_means
from adapruner.pruning.surgery import prune_model, write_widths
from adapruner.recovery.post_pruning import PostPruning, recipe_of, refit_plan
from adapruner.search.find_plan import FoundPlan
from adapruner.search.score import ScoredModel


def apply_found_plan(scored: ScoredModel, found: FoundPlan, *, widths_only: bool = False) -> float:
    """Prunes the scored model in place and, where the options have a reconstruction, refits its output projections.

    Args:
        scored: its model is still dense.
        found: the plan.
        widths_only: no refit: a checkpoint brings the weights.

    Returns:
        Seconds that the refit took; 0 without one.

    Raises:
        PlanError: if the plan was found for another model; nothing is changed then.
    """
    if DepthWidthCut.of(found.plan) != scored.stage.cut:
        raise PlanError(
            "plan: expected the layers and hidden channels of the scored model to go, got others; search this scored model again"
        )
    found.remaining.check(scored.problem.structure, scored.problem.fingerprint)
    model, problem, plan, started = scored.model, scored.problem, found.remaining, time.monotonic()
    apply_depth_and_width(model, scored.stage.cut)
    reconstruction = scored.options.reconstruction
    if reconstruction is None or widths_only:
        prune_model(model, problem.structure, plan, bias_means(problem, recipe_of(plan)))
        return 0.0
    post_pruning = PostPruning.of_windows(scored.data.calibration_windows, reconstruction, None)
    with progress_bar("reconstruction", problem.structure.layers) as advance:
        refit_plan(model, problem, plan, post_pruning, advance)
    write_widths(model.config, problem.structure, plan)
    return time.monotonic() - started
