"""A refit on two ranks: each takes a share of the windows, and both end with the weights of one process that has them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapruner.distributed import Ranks
from adapruner.models.tracing import trace_structure
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from tests.oracles.reconstruction import plan_for
from tests.ranks import on_two_ranks
from tests.tiny import random_windows, tiny_llama

IDS = random_windows(10, 24, seed=5).input_ids
WEIGHTS = torch.tensor([1.0, 4.0, 0.0, 2.0, 1.0, 1.0, 3.0, 0.5, 1.0, 1.0])


def refitted(config: ReconstructionConfig, ranks: Ranks | None, windows: int = 10) -> tuple[dict[str, torch.Tensor], int]:
    """The weights, and how many batches the first layer was run on."""
    model, calls = tiny_llama(attention_bias=True), []
    structure = trace_structure(model)
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    prune_and_reconstruct(model, structure, plan_for(structure), IDS[:windows], config, sample_weights=WEIGHTS[:windows], ranks=ranks)
    return model.state_dict(), len(calls)


def on_rank(rank: int, config: ReconstructionConfig, windows: int) -> tuple[dict[str, torch.Tensor], int]:
    return refitted(config, Ranks(), windows)


@pytest.mark.slow  # two processes are started
@pytest.mark.parametrize("form", ["sequential", "local"])
@pytest.mark.parametrize("candidates", [[], [0.01, 0.1]])
def test_two_ranks_are_one(tmp_path: Path, form: str, candidates: list[float]) -> None:
    config = ReconstructionConfig(batch_size=2, form=form, candidates=candidates)
    (first, runs), (second, others) = on_two_ranks(on_rank, tmp_path, config, 10)
    alone, whole = refitted(config, None)
    assert max(runs, others) < 0.7 * whole  # five batches: three and two
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=2e-3, atol=2e-4)
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow  # two processes are started
def test_with_fewer_batches_than_ranks_everybody_does_all(tmp_path: Path) -> None:
    config = ReconstructionConfig(batch_size=8)
    (first, _), (second, _) = on_two_ranks(on_rank, tmp_path, config, 4)
    alone, _ = refitted(config, None, 4)
    for name, value in alone.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(second[name], value), name
