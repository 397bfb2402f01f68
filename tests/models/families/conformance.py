"""What a family has to pass. Each step raises ``AssertionError`` with what went wrong; see ``docs/add-a-family.md``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import torch

from adapruner.export.folder import ExportRecord, export_model
from adapruner.models.tracing import AttentionUnits, trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model, pruned
from tests.models.families.table import VOCABULARY, Row, build

Widths = Literal["uniform", "irregular"]


def token_ids(samples: int = 2, length: int = 9) -> torch.Tensor:
    """``[samples, length]`` random tokens, the same every time."""
    return torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(5))


def plan_for(structure: ModelStructure, widths: Widths, seed: int = 1) -> PruningPlan:
    """About half of every group, the same in all layers or not; never everything, equally many of each set."""
    chance, kept = random.Random(seed), {}
    for group in structure.groups:
        length = group.units // group.sets
        count = max(1, length // 2) if widths == "uniform" else chance.randint(1, max(1, length - 1))
        kept[group.name] = sorted(s * length + u for s in range(group.sets) for u in chance.sample(range(length), count))
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    counts = {"dense": structure.parameters, "block_dense": structure.block_parameters}
    left = {"pruned": structure.parameters - removed, "block_pruned": structure.block_parameters - removed}
    model = {"name": "tiny", "model_type": structure.model_type}
    return PruningPlan(model, kept, {g.name: g.units for g in structure.groups}, counts | left, {"pruned_fraction": 0.5, "of": "block"})


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """``[samples, length, vocabulary]``."""
    return model(token_ids() if ids is None else ids).logits


@torch.no_grad()
def trunk(model: Any) -> torch.Tensor:
    """``[samples, length, hidden]``: what the model without its head computes."""
    return model.base_model(token_ids())[0]


def check_cut(row: Row, units: AttentionUnits) -> None:
    """In float64: masked == pruned, inside a block and for good; the block leaves no trace; parameters are counted right."""
    model = build(row).double()
    dense = logits(model)
    structure = trace_structure(model, units)
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=1e-12, msg="the linear form computes something else")
    plan = plan_for(structure, "irregular")
    with masked(model, structure, plan):
        expected = logits(model)
    assert not torch.allclose(expected, dense, atol=1e-3), "the removed units made no difference"
    with pruned(model, structure, plan):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12, msg="pruned in a block is not masked")
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=1e-12, msg="the dense model did not come back")
    prune_model(model, structure, plan)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12, msg="pruned for good is not masked")
    assert sum(p.numel() for p in model.parameters()) == plan.parameters["pruned"]


def check_generation(row: Row) -> None:
    """Greedy tokens of the pruned model with the cache are those without."""
    model = build(row)
    structure = trace_structure(model)
    prune_model(model, structure, plan_for(structure, "irregular"))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    with_cache, without = (model.generate(token_ids(), use_cache=cache, **options) for cache in (True, False))
    assert with_cache.tolist() == without.tolist()


def export(row: Row, widths: Widths, units: AttentionUnits, folder: Path) -> tuple[ExportRecord, torch.Tensor, torch.Tensor]:
    """The exported folder, and the logits and hidden states that it must have."""
    model = build(row)
    structure = trace_structure(model, units)
    plan = plan_for(structure, widths)
    prune_model(model, structure, plan)
    return export_model(model, None, structure, plan, folder), logits(model), trunk(model)


def check_recovery(row: Row) -> None:
    """Adapters attach to the pruned model, a step moves only them, and merged they compute the same."""
    from adapruner.recovery.lora import LoRAConfig, attach_lora
    from adapruner.recovery.merging import merge_lora

    model = build(row).double()
    structure = trace_structure(model)
    prune_model(model, structure, plan_for(structure, "irregular"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = attach_lora(model, LoRAConfig(r=2, alpha=4, dropout=0.0))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    ids = token_ids()
    for _ in range(2):  # in the first, half of each adapter is zero
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = logits(adapted.eval())
    merged = merge_lora(adapted)
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)
    after = dict(merged.named_parameters())
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def check_scores(row: Row) -> None:
    """First-order Taylor rows of every coupled tensor are those of full weight gradients, one sample at a time."""
    from adapruner.data.windows import TextWindows
    from adapruner.importance.statistics import collect_statistics

    model, ids = build(row), token_ids()
    structure = trace_structure(model)
    windows = TextWindows(ids, ids.clone(), torch.ones_like(ids), ["text"], torch.zeros(len(ids), dtype=torch.long), [""] * len(ids))
    found = collect_statistics(model, structure, windows, needs=frozenset({"first"})).member
    for sample in range(len(ids)):
        model.zero_grad()
        model(ids[sample : sample + 1], labels=ids[sample : sample + 1]).loss.backward()
        for module, dim in (tensor for group in structure.groups for tensor in group.tensors):
            weight = model.get_submodule(module).weight
            expected = (weight * weight.grad).sum(1 - dim).detach()
            torch.testing.assert_close(
                found["first", module][sample], expected, rtol=1e-3, atol=1e-5, msg=lambda m, at=module: f"{at}: {m}"
            )


def check_refit(row: Row) -> None:
    """The closed-form refit brings the pruned model nearer to the dense one on the windows it was solved for.

    In its sequential form where the layers add attention and FFN to their input, else in its local form.
    """
    from adapruner.recovery.reconstruction import ReconstructionConfig, fitting_form, prune_and_reconstruct

    ids, distances = token_ids(16), []
    dense = logits(build(row), ids)
    for refit in (False, True):
        model = build(row)
        structure = trace_structure(model)
        plan = plan_for(structure, "uniform")
        if refit:
            config = fitting_form(model, structure, ids, ReconstructionConfig(ridge=0.01))
            prune_and_reconstruct(model, structure, plan, ids, config)
        else:
            prune_model(model, structure, plan)
        distances.append(float((logits(model, ids) - dense).square().mean()))
    assert distances[1] < distances[0]
