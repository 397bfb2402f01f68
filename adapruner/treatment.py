"""What a plan gets after its units are chosen: surgery, refit, recovery. The same for every method that is compared.

Every stage can be measured; the dense model comes back whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from adapruner.calibration.choice import CalibrationChoice
from adapruner.pipeline import PruningProblem, Recipe, bias_means
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import cut_layer, restored
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct

Value = TypeVar("Value")
#: A window whose weight is below this part of the largest one is left out of the refit: it would cost time and change nothing.
_SILENT = 1e-3


@dataclass(frozen=True)
class Treatment:
    """What every compared method gets after its units are chosen."""

    input_ids: Tensor
    """Calibration windows ``[n, seq_len]`` for the reconstruction."""
    reconstruction: ReconstructionConfig | None
    recover: Callable[[nn.Module], nn.Module] | None
    """Recovers a model in place; ``None``: not compared after recovery."""
    rows: Tensor | None = None
    """``[n]`` int64: the windows' positions in the pool, where they are not all of it."""
    dense: Any = None
    """The dense model's hidden states on the windows, where several plans of one model are refitted
    (:class:`adapruner.recovery.reconstruction.DenseStream`)."""

    @classmethod
    def of_windows(
        cls, windows: Any, reconstruction: ReconstructionConfig | None, recover: Callable[[nn.Module], nn.Module] | None, dense: Any = None
    ) -> Treatment:
        """With a pool's windows; those with padding are left out of the refit where others are whole."""
        whole = windows.attention_mask.bool().all(1)
        rows = whole.nonzero().flatten() if bool(whole.any()) and not bool(whole.all()) else None
        return cls(windows.input_ids if rows is None else windows.input_ids[rows], reconstruction, recover, rows, dense)


def recipe_of(plan: PruningPlan) -> Recipe:
    """What of a plan's recipe its treatment depends on: calibration weights, bias compensation, the refit's strength."""
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
    treatment: Treatment,
    measure: Callable[[nn.Module], Value],
) -> Iterator[tuple[str, Value]]:
    """One plan through the stages: (``pruned`` | ``reconstructed`` | ``recovered``, measurement).

    The dense tensors are back when the iterator is exhausted or closed.
    """
    with as_cut(model, problem, plan):
        yield "pruned", measure(model)
        if treatment.reconstruction is None:
            yield from _recovered(model, treatment, measure)
            return
    with reconstructed(model, problem, plan, treatment):
        yield "reconstructed", measure(model)
        yield from _recovered(model, treatment, measure)


@contextmanager
def reconstructed(model: nn.Module, problem: PruningProblem, plan: PruningPlan, treatment: Treatment) -> Iterator[nn.Module]:
    """The model cut by the plan and refitted, inside the block; as the treatment has no refit, only cut."""
    if treatment.reconstruction is None:
        with as_cut(model, problem, plan):
            yield model
        return
    with restored(model, problem.anatomy):
        refit_plan(model, problem, plan, treatment)
        yield model


def refit_plan(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    treatment: Treatment,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Cuts and refits the model in place, for good, at the strength and with the sample weights of the plan's own recipe."""
    assert treatment.reconstruction is not None
    recipe = recipe_of(plan)
    config = treatment.reconstruction if recipe.ridge is None else replace(treatment.reconstruction, ridge=recipe.ridge)
    weights = problem.calibration.sample_weights(replace(recipe.calibration, seq_len=None))
    if treatment.rows is not None:
        weights = weights[treatment.rows]
    input_ids = treatment.input_ids
    heard = (weights > _SILENT * weights.max()).nonzero().flatten()
    if treatment.dense is None and 0 < len(heard) < len(weights):  # a dense stream is of all windows
        input_ids, weights = input_ids[heard], weights[heard]
    prune_and_reconstruct(
        model,
        problem.anatomy,
        plan,
        input_ids,
        config,
        sample_weights=weights,
        progress=progress,
        dense=treatment.dense,
    )


@contextmanager
def as_cut(model: nn.Module, problem: PruningProblem, plan: PruningPlan) -> Iterator[nn.Module]:
    """The model cut by the plan, biases compensated, not refitted, inside the block."""
    means = bias_means(problem, recipe_of(plan))
    with restored(model, problem.anatomy):
        for layer in range(problem.anatomy.layers):
            cut_layer(model, problem.anatomy, plan, layer, means)
        yield model


def _recovered(model: nn.Module, treatment: Treatment, measure: Callable[[nn.Module], Value]) -> Iterator[tuple[str, Value]]:
    if treatment.recover is not None:
        yield "recovered", measure(treatment.recover(copy.deepcopy(model)))
