"""Whether DeciLM computes what an export computes, and with which heads and widths.

DeciLM is Llama with one number of query heads for all layers; how many of them share a KV head, and how wide the FFN is, each layer
says for itself. So query heads are padded with zeros to one number, which costs their weights and no accuracy, and KV heads only where
that number is no multiple of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapruner.errors import ModelError, nearest
from adapruner.export.formats.gguf.folder import ExportedFolder

FAMILIES = ("llama", "mistral", "qwen2")
"""Whose layers are Llama's, up to biases and windows."""
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
FFN_UNIT = 256
"""DeciLM's ``ffn_mult`` is rounded up to multiples of it."""


@dataclass(frozen=True)
class Layer:
    """Widths of one layer, as they are."""

    heads: int
    kv_heads: int
    ffn: int

    @property
    def group(self) -> int:
        """Query heads to a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Layout:
    """An export in DeciLM's terms."""

    head_dim: int
    layers: tuple[Layer, ...]
    heads: int
    """Query heads of every layer, those of zeros among them."""
    kv_heads: tuple[int, ...]
    """Of each layer, those of zeros among them."""

    @property
    def zero_heads(self) -> tuple[int, int]:
        """Query and KV heads of zeros, of all layers together."""
        own = [(layer.heads, layer.kv_heads) for layer in self.layers]
        return self.heads * len(own) - sum(q for q, _ in own), sum(self.kv_heads) - sum(kv for _, kv in own)

    def block_configs(self, hidden: int) -> list[dict[str, Any]]:
        """``block_configs`` of ``config.json``.

        Engines before vLLM's know a width only as ``ffn_mult``, which they round up to a multiple of 256; where it is one, both are said.
        """
        blocks = []
        for layer, kv_heads in zip(self.layers, self.kv_heads, strict=True):
            attention = {"no_op": False, "replace_with_linear": False, "sparsify": None, "n_heads_in_group": self.heads // kv_heads}
            ffn: dict[str, Any] = {"no_op": False, "replace_with_linear": False, "sparsify": None, "intermediate_size": layer.ffn}
            if layer.ffn % FFN_UNIT == 0:
                ffn["ffn_mult"] = 3 * layer.ffn / (2 * hidden)
            blocks.append({"attention": attention, "ffn": ffn})
        return blocks


def read_layout(folder: ExportedFolder) -> Layout:
    """Reads the widths off the tensors.

    Raises:
        ModelError: if DeciLM computes something else.
    """
    config = folder.config
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ModelError(
            f"model_type: expected a family whose layers DeciLM computes, got {family!r}; {nearest(family, FAMILIES)}, or serve it with "
            "--model-impl transformers"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act: expected silu, which DeciLM computes, got {config['hidden_act']!r}; serve it with transformers")
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    layers = tuple(_layer(folder, index, head_dim) for index in range(int(config["num_hidden_layers"])))
    return Layout(head_dim, layers, *common_heads(layers))


def common_heads(layers: Sequence[Layer]) -> tuple[int, tuple[int, ...]]:
    """Query heads for all layers and KV heads for each, with the fewest heads of zeros.

    There always are such: as many as before the pruning, which every layer's heads were taken from.

    >>> common_heads([Layer(9, 3, 8), Layer(6, 2, 8), Layer(3, 1, 8)])
    (9, (3, 3, 1))
    >>> common_heads([Layer(6, 2, 8), Layer(3, 1, 8)])
    (6, (2, 1))
    """
    least, most = max(layer.heads for layer in layers), max(layer.group for layer in layers) * max(layer.kv_heads for layer in layers)
    found: dict[int, tuple[int, ...]] = {}
    for heads in range(least, most + 1):
        fitting = [_kv_heads(layer, heads) for layer in layers]
        if all(fitting):
            found[heads] = tuple(fitting)
    best = min(found, key=lambda heads: heads * len(layers) + sum(found[heads]))
    return best, found[best]


def _kv_heads(layer: Layer, heads: int) -> int:
    """The fewest KV heads that divide ``heads`` and leave every one of the layer's its own query heads; 0 if there are none."""
    for kv_heads in range(layer.kv_heads, heads + 1):
        if heads % kv_heads == 0 and heads // kv_heads >= layer.group:
            return kv_heads
    return 0


def _layer(folder: ExportedFolder, index: int, head_dim: int) -> Layer:
    rows = []
    for projection in _PROJECTIONS:
        name = f"model.layers.{index}.{projection}.weight"
        if name not in folder.shapes:
            raise ModelError(f"weights: expected {name}, got none in {folder.path}; export a Llama, Mistral or Qwen2")
        rows.append(folder.shapes[name][0])
    heads, kv_heads, ffn = rows[0] // head_dim, rows[1] // head_dim, rows[2]
    if rows[0] % head_dim or rows[1] % head_dim or heads % kv_heads:
        raise ModelError(f"weights: expected whole heads of {head_dim} channels, got {rows[:2]} rows in layer {index}; export again")
    return Layer(heads, kv_heads, ffn)
