"""Tiny models of every family and token windows for them: made on the spot, seeded, nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY = 50

#: Name -> model type and what its configuration has besides the common sizes.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama_gqa_2": ("llama", {"num_key_value_heads": 2}),
    "llama_gqa_4": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "llama_mqa": ("llama", {"num_key_value_heads": 1}),
    "llama_biased": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),  # biased q, k, v; no bias in o
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}),  # norms per head, heads wider than hidden / heads
}


@dataclass
class TokenWindows:
    """What calibration and evaluation ask for: three int64 tensors ``[n, seq_len]``."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor

    def select(self, rows: list[int]) -> TokenWindows:
        """The windows of these rows, in this order."""
        return TokenWindows(self.input_ids[rows], self.labels[rows], self.attention_mask[rows])


def build_model(family: str, **overrides: Any) -> Any:
    """A random float32 causal LM: hidden 32, FFN 24, 3 layers, 4 heads; weights large enough that every unit matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, changes = FAMILIES[family]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**common, **changes, **overrides})).eval()
    with torch.no_grad():  # biases and norms are born as zeros and ones, which would hide a lost one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def build_windows(samples: int = 5, seq_len: int = 9, padded: bool = False, seed: int = 1) -> TokenWindows:
    """Random tokens; with ``padded``, row i ends in i positions of padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (samples, seq_len), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(samples):
            mask[row, seq_len - row :] = 0
    return TokenWindows(ids.masked_fill(mask == 0, 2), ids.masked_fill(mask == 0, -100), mask)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Runs a test once for every family."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """``tiny_model("llama_gqa_2", mlp_bias=True)`` builds a model; see :func:`build_model`."""
    return build_model


@pytest.fixture(scope="session")
def token_windows() -> Callable[..., TokenWindows]:
    """``token_windows(samples=5, seq_len=9, padded=True)``; see :func:`build_windows`."""
    return build_windows
