"""What follows the choice of units: surgery, refit, recovery. The same for every method that is compared.

Every stage can be measured; the dense model comes back whole.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError
from adapruner.files.tensor_file import update_digest
from adapruner.progress import announce
from adapruner.pruning.depth_and_width import DepthWidthCut
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, bias_means, part_weights
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import cut_layer, pruned, restored
from adapruner.pruning.surgery_in_turn import copied_bytes, pruned_in_turn
from adapruner.recovery.configuration import Ridge, deciding_values
from adapruner.recovery.local import pruned_and_refitted
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from adapruner.recovery.solved_projections import SolvedProjections
from adapruner.recovery.streams import SharedStream

Value = TypeVar("Value")
#: A window whose weight is below this part of the largest one is left out of the refit: it would cost time and change nothing.
_NEGLIGIBLE = 1e-3
#: Bytes of pruned weights from which a trial does without holding them all: below, the copies at every batch are not worth it.
IN_TURN_ABOVE = 2**30


@dataclass(frozen=True)
class PostPruning:
    """What every compared method gets after its units are chosen."""

    input_ids: Tensor
    """Windows ``[n, seq_len]`` for the reconstruction."""
    reconstruction: ReconstructionConfig | None
    recover: Callable[[nn.Module], nn.Module] | None
    """Recovers a model in place; ``None``: not compared after recovery."""
    rows: Tensor | None = None
    """``[n]`` int64: the windows' positions in the pool, where they are not all of it."""
    shared: SharedStream | None = None
    """Keeps the dense model's hidden states on the windows, where several plans of one model are refitted."""
    sources: tuple[list[str], Tensor] | None = None
    """Names of the windows' sources and the index ``[n]`` of each window's, where the windows are not the pool's."""
    folder: Path | None = None
    """Where the refit keeps what it has solved, and goes on from; ``None`` keeps nothing."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that a plan goes through, in their order."""
        later = [("reconstructed", self.reconstruction), ("recovered", self.recover)]
        return ("pruned", *(stage for stage, how in later if how is not None))

    @classmethod
    def of_data(
        cls,
        data: RunData,
        reconstruction: ReconstructionConfig | None,
        recover: Callable[[nn.Module], nn.Module] | None,
        shared: SharedStream | None = None,
    ) -> PostPruning:
        """With the refit's own windows where a run has them, else with the pool's."""
        own = data.reconstruction_windows
        found = cls.of_windows(data.refitted_on, reconstruction, recover, shared)
        if own is None:
            return found
        index = own.source_index if found.rows is None else own.source_index[found.rows]
        return replace(found, rows=None, sources=(list(own.source_names), index))

    @classmethod
    def of_windows(
        cls,
        windows: Any,
        reconstruction: ReconstructionConfig | None,
        recover: Callable[[nn.Module], nn.Module] | None,
        shared: SharedStream | None = None,
    ) -> PostPruning:
        """With a pool's windows; those with padding are left out of the refit where others are whole."""
        whole = windows.attention_mask.bool().all(1)
        rows = whole.nonzero().flatten() if bool(whole.any()) and not bool(whole.all()) else None
        return cls(windows.input_ids if rows is None else windows.input_ids[rows], reconstruction, recover, rows, shared)


def recipe_of(plan: PruningPlan) -> Recipe:
    """What of a plan's recipe what follows its pruning depends on: calibration weights, bias compensation, the refit's strength."""
    record = plan.recipe
    return Recipe(
        calibration=CalibrationChoice.from_dict(record.get("calibration")),
        bias_compensation=plan.output_bias,
        ridge=record.get("ridge"),
    )


def measure_stages(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    post_pruning: PostPruning,
    measure: Callable[[nn.Module], Value],
) -> Iterator[tuple[str, Value]]:
    """One plan through the stages: (``pruned`` | ``reconstructed`` | ``recovered``, measurement).

    The dense tensors are back when the iterator is exhausted or closed.
    """
    with pruned_only(model, problem, plan):
        yield "pruned", measure(model)
        if post_pruning.reconstruction is None:
            yield from _recovered(model, post_pruning, measure)
            return
    with reconstructed(model, problem, plan, post_pruning):
        yield "reconstructed", measure(model)
        yield from _recovered(model, post_pruning, measure)


@contextmanager
def reconstructed(model: nn.Module, problem: PruningProblem, plan: PruningPlan, post_pruning: PostPruning) -> Iterator[nn.Module]:
    """The model cut by the plan and refitted, inside the block; only pruned where no refit is asked for."""
    if post_pruning.reconstruction is None:
        with pruned_only(model, problem, plan):
            yield model
        return
    with restored(model, problem.structure):
        refit_plan(model, problem, plan, post_pruning)
        yield model


def _window_weights(problem: PruningProblem, recipe: Recipe, post_pruning: PostPruning) -> Tensor:
    """``[windows]``: the recipe's weights of the pool's samples; of others each has the mean weight of its source there."""
    if post_pruning.sources is None:
        weights = _weights_of(problem, recipe)
        return weights if post_pruning.rows is None else weights[post_pruning.rows]
    whole = replace(recipe.calibration, count=None, samples=None)  # which samples were drawn says nothing of other windows
    weights = _weights_of(problem, replace(recipe, calibration=whole))
    (names, index), pool = post_pruning.sources, problem.calibration.sources
    rows = {name: pool.index == number for number, name in enumerate(pool.names)}
    known = {name: float(weights[mine].mean()) for name, mine in rows.items() if bool(mine.any())}
    other = sum(known.values()) / len(known)
    return torch.tensor([known.get(name, other) for name in names])[index]


def _weights_of(problem: PruningProblem, recipe: Recipe) -> Tensor:
    """``[samples]``: the recipe's; alike where the plan comes from elsewhere, and knows sources or samples that are not here."""
    try:
        return problem.calibration.sample_weights(replace(recipe.calibration, seq_len=None))
    except ConfigurationError:
        announce("the plan's calibration weights are of another pool: this one's samples count alike in the refit")
        return problem.calibration.sample_weights(CalibrationChoice())


def refit_config(config: ReconstructionConfig, plan: PruningPlan) -> ReconstructionConfig:
    """The settings that a plan is refitted by: the strength that its own recipe says goes before the configured one."""
    strength = recipe_of(plan).ridge
    return config if strength is None else replace(config, ridge=strength, candidates=[])


def refit_plan(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    post_pruning: PostPruning,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Cuts and refits the model in place, for good, at the strength and with the sample weights of the plan's own recipe.

    Args:
        ranks: the processes that refit this same plan and share its windows; ``None`` where this one works alone.
    """
    assert post_pruning.reconstruction is not None
    recipe, config = recipe_of(plan), refit_config(post_pruning.reconstruction, plan)
    weights = _window_weights(problem, recipe, post_pruning)
    input_ids, shared = post_pruning.input_ids, post_pruning.shared
    counted = (weights > _NEGLIGIBLE * weights.max()).nonzero().flatten()
    if 0 < len(counted) < len(weights):
        input_ids, weights = input_ids[counted], weights[counted]
    solved = None
    if post_pruning.folder is not None:
        solved = SolvedProjections(post_pruning.folder, refit_key(problem, plan, input_ids, weights, config))
    prune_and_reconstruct(
        model,
        problem.structure,
        plan,
        input_ids,
        config,
        sample_weights=weights,
        progress=progress,
        ranks=ranks,
        solved=solved,
        dense=None if shared is None else shared.of(model, problem.structure, input_ids, config),
    )


def refit_key(problem: PruningProblem, plan: PruningPlan, input_ids: Tensor, weights: Tensor, config: ReconstructionConfig) -> str:
    """Everything that a refit's result depends on: weights of the model, units that stay, text and how much it counts, settings."""
    text = hashlib.sha256()
    for name, tensor in (("text", input_ids), ("weights", weights)):
        update_digest(text, name, tensor)
    depends = [problem.fingerprint, problem.weights, plan.hash, plan.output_bias, deciding_values(config), text.hexdigest()]
    return ":".join(["1", *map(str, depends)])


@contextmanager
def trial_model(
    model: nn.Module, problem: PruningProblem, plan: PruningPlan, recipe: Recipe, refit: Ridge | None = None
) -> Iterator[nn.Module]:
    """The model as a trial judges it, inside the block: cut, biases compensated, and refitted where asked.

    Args:
        refit: ridge of the local refit from the problem's Gram matrices (the recipe's own strength goes before its);
            ``None`` leaves the kept weights as they are.
    """
    if refit is None:
        with _pruned(model, problem, plan, recipe):
            yield model
        return
    if problem.grams is None:
        raise ConfigurationError("refit: expected Gram matrices of the calibration pool, got none; collect them, or judge without a refit")
    parts = part_weights(problem, recipe)
    ridge = refit if recipe.ridge is None else replace(refit, strength=recipe.ridge)
    with pruned_and_refitted(model, problem.structure, plan, problem.grams, parts, ridge):
        yield model


def _pruned(model: nn.Module, problem: PruningProblem, plan: PruningPlan, recipe: Recipe) -> AbstractContextManager[nn.Module]:
    """A large model's layers are cut one at a time, at each batch, where else the dense and the pruned one would be there at once."""
    plain = not plan.output_bias and not DepthWidthCut.of(plan)
    if plain and copied_bytes(model, problem.structure, plan) > IN_TURN_ABOVE:
        return pruned_in_turn(model, problem.structure, plan)
    return pruned(model, problem.structure, plan, bias_means(problem, recipe))


@contextmanager
def pruned_only(model: nn.Module, problem: PruningProblem, plan: PruningPlan) -> Iterator[nn.Module]:
    """The model cut by the plan, biases compensated, not refitted, inside the block."""
    means = bias_means(problem, recipe_of(plan))
    with restored(model, problem.structure):
        for layer in range(problem.structure.layers):
            cut_layer(model, problem.structure, plan, layer, means)
        yield model


def _recovered(model: nn.Module, post_pruning: PostPruning, measure: Callable[[nn.Module], Value]) -> Iterator[tuple[str, Value]]:
    if post_pruning.recover is not None:
        yield "recovered", measure(post_pruning.recover(copy.deepcopy(model)))
