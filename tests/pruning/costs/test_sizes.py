"""Sizes against counts made from the configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.models.tracing import trace_structure
from adapruner.pruning.costs.macs import macs_per_unit
from adapruner.pruning.costs.sizes import measure_sizes
from tests.conftest import build_model
from tests.oracles.index_maps import head_width


def unit_macs(config: Any, kind: str, seq_len: int) -> int:
    """Weights of one unit without biases, and two products over all positions for each of its query heads."""
    width, per_kv = head_width(config), config.num_attention_heads // config.num_key_value_heads
    if kind == "ffn":
        return int(3 * config.hidden_size)
    return int((2 * per_kv + 2) * width * config.hidden_size + 2 * seq_len * per_kv * width)


@pytest.mark.parametrize("seq_len", [1, 128])
def test_macs_of_a_unit(family: str, seq_len: int) -> None:
    model = build_model(family)
    for group in trace_structure(model).groups:
        assert macs_per_unit(group, seq_len) == unit_macs(model.config, group.kind, seq_len)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_of_a_model(dtype: torch.dtype, size: int, tied: bool) -> None:
    model = build_model("llama_gqa_2", tie_word_embeddings=tied).to(dtype)
    sizes = measure_sizes(model, trace_structure(model))
    assert sizes.fixed_macs == model.config.vocab_size * model.config.hidden_size
    assert sizes.weight_bytes == size * model.num_parameters()
    assert sizes.bytes_per_parameter == size


def test_sizes_need_no_memory() -> None:
    model = build_model("llama").to("meta")
    assert measure_sizes(model, trace_structure(model)).weight_bytes == 4 * model.num_parameters()
