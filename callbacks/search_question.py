"""What a search is asked, and what it therefore needs: statistics, lengths, the local refit, and the question's identity."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adapruner._version import __version__
from adapruner.callbacks.progress import announce
from adapruner.importance.metrics import find_metric
from adapruner.pipeline import Recipe
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.reconstruction import ReconstructionConfig
from adapruner.search.config import SearchConfig
from adapruner.search.posing import ProblemPoser
from adapruner.search.ranks import Ranks

if TYPE_CHECKING:
    from adapruner.callbacks.pruning_search import PruningSearchCallback


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


def refit_strength(poser: ProblemPoser, search: SearchConfig, reconstruction: ReconstructionConfig | None) -> float | None:
    """Relative ridge of the local refit that trials are judged after; ``None`` judges them as they are cut."""
    objective = search.objective
    if objective.refit == "never" or (objective.refit == "auto" and reconstruction is None):
        return None
    size = poser.gram_gib()
    if objective.refit == "auto" and size > objective.refit_gib:
        announce(f"judges trials as cut: Gram matrices for a refit in each would take {size:.1f} GiB, above {objective.refit_gib}")
        return None
    return reconstruction.ridge if reconstruction is not None else ReconstructionConfig().ridge


def identify(pruning: PruningSearchCallback, data: Any, fingerprint: str) -> dict[str, Any]:
    """Everything a trial's value depends on, apart from its own parameters: two searches of one identity are one search."""
    search, reconstruction = pruning.search, pruning.reconstruction
    return {
        "model": fingerprint,
        "calibration data": getattr(data, "calibration_fingerprint", data.calibration_windows.fingerprint),
        "search data": data.search_windows.fingerprint,
        "budget": asdict(pruning.budget),
        "space": search.space.to_dict(),
        "sampler": [search.sampler, search.order, search.seed, search.early_stopping, search.chunks],
        "objective": {**asdict(search.objective), "refit": pruning.refit, "refit_gib": None},
        "reconstruction": None if reconstruction is None else asdict(reconstruction),
        "code version": __version__,
        **({"held out": search.held_out} if search.held_out else {}),
        **({} if pruning.attention_units == "kv_group" else {"attention units": pruning.attention_units}),
        **({} if pruning.ffn_units == "channel" else {"ffn units": pruning.ffn_units}),
        **({"layers and hidden channels": asdict(pruning.moves)} if pruning.moves else {}),
        **({} if search.storage else {"world size": Ranks().size}),  # lockstep asks other trials on more ranks
    }
