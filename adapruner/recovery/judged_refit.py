"""The refit, taken back where text that it has not seen says that the model is worse for it.

Few calibration tokens for many channels make a refit that fits their noise: Qwen2.5-Coder-0.5B at 20 %, refitted on 3,072 tokens for
4,864 channels, went from perplexity 20.9 to 23.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, bias_means
from adapruner.pruning.surgery import cut_layer, remember_layers
from adapruner.recovery.post_pruning import PostPruning, recipe_of, refit_plan, trial_model


@dataclass(frozen=True)
class JudgedRefit:
    """Mean negative log-likelihood on the judging text, nats per token, before and after the refit.

    >>> JudgedRefit(4.49, 4.53).left_out, JudgedRefit(4.49, 4.41).left_out
    (True, False)
    """

    pruned: float
    refitted: float

    @property
    def left_out(self) -> bool:
        """Whether the refit is taken back: the model was better without, or cannot be judged with it."""
        return self.refitted > self.pruned or self.refitted != self.refitted

    def __str__(self) -> str:
        return f"{self.pruned:.4f} nats/token as pruned, {self.refitted:.4f} refitted"


def refit_if_better(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    post_pruning: PostPruning,
    judged_on: Any,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> JudgedRefit | None:
    """As :func:`adapruner.recovery.post_pruning.refit_plan`; with ``only_if_better`` the kept weights come back where they were better.

    Meanwhile the output projections' kept weights lie in the host's memory, up to a third of the model's; with biases that the plan adds,
    dense and pruned weights are there at once while the pruned model is judged.

    Args:
        judged_on: ``input_ids``, ``labels`` and ``attention_mask``, each ``[n, seq_len]``, which the refit does not see.
        batch_size: windows in one forward pass of the judging.

    Returns:
        What was measured; ``None`` where nobody asked.
    """
    assert post_pruning.reconstruction is not None
    if not post_pruning.reconstruction.only_if_better:
        refit_plan(model, problem, plan, post_pruning, progress, ranks)
        return None
    with trial_model(model, problem, plan, recipe_of(plan)):
        before = evaluate_nll(model, judged_on, batch_size).nll
    kept = _outputs_when_cut(model, problem, plan)
    refit_plan(model, problem, plan, post_pruning, progress, ranks)
    judged = JudgedRefit(before, evaluate_nll(model, judged_on, batch_size).nll)
    judged = judged if ranks is None else ranks.broadcast(judged)
    if judged.left_out:
        put_outputs(model, kept)
        announce(f"reconstruction: left out, it makes the search split worse ({judged}); more calibration text may help")
    return judged


def _outputs_when_cut(model: nn.Module, problem: PruningProblem, plan: PruningPlan) -> dict[str, Tensor]:
    """What :func:`outputs_of` would say of the pruned model; a layer is cut at a time, and dense again."""
    found, structure, means = {}, problem.structure, bias_means(problem, recipe_of(plan))
    for layer in range(structure.layers):
        put_back = remember_layers(model, structure, range(layer, layer + 1))
        try:
            cut_layer(model, structure, plan, layer, means)
            found.update(outputs_of(model, structure, layer))
        finally:
            put_back()
    return found


def outputs_of(model: Any, structure: ModelStructure, layer: int | None = None) -> dict[str, Tensor]:
    """Name -> value, on the CPU, of all that a refit may change: the output projections, of one layer or of all."""
    modules = {group.output.module for group in structure.groups if layer in (None, group.layer)}
    outputs = {name: model.get_submodule(name) for name in sorted(modules)}
    return {f"{name}.{kind}": p.detach().cpu().clone() for name, module in outputs.items() for kind, p in module.named_parameters()}


def put_outputs(model: Any, values: dict[str, Tensor]) -> None:
    """As new parameters: a layer that lost nothing still holds the dense model's own, which come back."""
    for name, value in values.items():
        owner, _, kind = name.rpartition(".")
        old = model.get_parameter(name)
        setattr(model.get_submodule(owner), kind, nn.Parameter(value.to(old.device), old.requires_grad))
