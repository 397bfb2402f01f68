"""The identity of a study, and what its search space needs: statistics, lengths of samples, the local refit of trials."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from adapruner._version import __version__
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.importance.metrics import find_metric
from adapruner.progress import announce
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import Ridge, deciding_values
from adapruner.recovery.reconstruction import ReconstructionConfig
from adapruner.search.config import SearchConfig
from adapruner.search.options import PruningOptions
from adapruner.search.prepare_problem import ProblemBuilder


def needs_of(search: SearchConfig, recipe: Recipe | None) -> frozenset[str]:
    """Statistics that the search, or the fixed recipe, asks for."""
    if recipe is not None:
        return recipe.needs
    needs = frozenset().union(*(find_metric(m).needs for m in search.space.metrics))
    return needs | BIAS_NEEDS if True in search.space.bias_compensations else needs


def lengths_of(search: SearchConfig, recipe: Recipe | None, given: PruningPlan | None) -> list[int]:
    """Lengths of calibration samples, in tokens, that statistics are wanted at beside the pool's own."""
    if recipe is not None:
        return [] if recipe.calibration.seq_len is None else [recipe.calibration.seq_len]
    return [] if given is not None else list(search.space.seq_lens)


def refit_strength(builder: ProblemBuilder, search: SearchConfig, reconstruction: ReconstructionConfig | None) -> Ridge | None:
    """Ridge of the local refit that trials are judged after; ``None`` judges them as pruned, without a refit."""
    objective = search.objective
    if objective.refit == "never" or (objective.refit == "auto" and reconstruction is None):
        return None
    size = builder.gram_gib()
    if objective.refit == "auto" and size > objective.refit_gib:
        announce(f"judges trials as pruned: Gram matrices for a refit in each would take {size:.1f} GiB, above {objective.refit_gib}")
        return None
    return (reconstruction or ReconstructionConfig()).in_trials


def study_identity(options: PruningOptions, data: RunData, fingerprint: str, weights: str, refit: Ridge | None) -> dict[str, Any]:
    """Everything a trial's value depends on, apart from its own parameters: two searches of one identity are one search.

    Args:
        fingerprint: of the dense model.
        weights: digest of every bit of it.
        refit: ridge of the local refit that trials are judged after, or ``None``.
    """
    search, reconstruction = options.search, options.reconstruction
    return {
        "model": fingerprint,
        "weights": weights,
        "calibration data": data.calibration_fingerprint,
        "search data": data.search_windows.fingerprint,
        "budget": asdict(options.budget),
        "space": search.space.to_dict(),
        "sampler": [search.sampler, search.order, search.seed, search.early_stopping, search.chunks],
        "objective": {**asdict(search.objective), "refit": None if refit is None else asdict(refit), "refit_gib": None},
        "reconstruction": None if reconstruction is None else deciding_values(reconstruction),
        "code version": __version__,
        **({"held out": search.held_out} if search.held_out else {}),
        **({} if options.attention_units == "kv_group" else {"attention units": options.attention_units}),
        **({} if options.ffn_units == "channel" else {"ffn units": options.ffn_units}),
        **({"layers and hidden channels": asdict(options.depth_width)} if options.depth_width else {}),
        **({} if search.storage else {"world size": Ranks().size}),  # lockstep asks other trials on more ranks
    }
