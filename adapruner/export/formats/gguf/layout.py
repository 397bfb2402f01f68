"""Which of llama.cpp's architectures computes what an export computes, and the sizes that it needs.

llama.cpp fixes the maths by architecture. Most read the widths of layer 0 for all layers, some read them per layer, and
some expect as many query channels as the residual stream has, which pruned heads are not. So the first architecture of a
short list that can hold the tensors is taken, and none is better than one that computes something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapruner.errors import ModelError, nearest
from adapruner.export.formats.gguf.folder import ExportedFolder

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj"})
_ALL = _ATTENTION | {"o_proj", "gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Architecture:
    """What one of llama.cpp's graphs takes; read from its sources (``src/models/*.cpp``)."""

    name: str
    biases: frozenset[str] = frozenset()
    """Projections that may have a bias."""
    per_layer: bool = False
    """Heads and FFN widths are read per layer."""
    square: bool = False
    """Query channels must be as many as the hidden size."""
    normed_heads: bool = False
    """Queries and keys pass an RMS norm per head."""
    pairs: bool = False
    """Rotates channels (2i, 2i+1) together, not (i, i + head_dim / 2): rows of q and k must be permuted."""
    rope_factors: bool = False
    """Divides rotary frequencies by a tensor, as Llama 3 needs."""
    fused: bool = False
    """One tensor holds q, k and v."""
    tied: bool = False
    """The output layer is the embedding; another is not read."""


LLAMA = Architecture("llama", _ALL, pairs=True, rope_factors=True)
DECI = Architecture("deci", _ALL, pairs=True, rope_factors=True, per_layer=True)
QWEN2 = Architecture("qwen2", _ATTENTION, square=True)
QWEN3 = Architecture("qwen3", normed_heads=True)
OPENELM = Architecture("openelm", normed_heads=True, per_layer=True, fused=True, tied=True)
CANDIDATES = {"llama": (LLAMA, DECI), "mistral": (LLAMA, DECI), "qwen2": (QWEN2, LLAMA, DECI), "qwen3": (QWEN3, OPENELM)}


@dataclass(frozen=True)
class Layout:
    """An export in llama.cpp's terms. Widths have one entry per layer."""

    architecture: Architecture
    hidden: int
    head_dim: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    ffn: tuple[int, ...]
    rope: dict[str, Any]
    """``rope_theta``, ``rope_type`` and, for ``linear`` and ``llama3``, their factors."""
    context: int
    """Largest number of tokens for which llama.cpp's full attention is the model's own."""
    notes: tuple[str, ...]


def read_layout(folder: ExportedFolder) -> Layout:
    """Reads the widths off the tensors: configurations of irregular exports say them in other places than stock ones.

    Raises:
        ModelError: if no architecture of llama.cpp computes the same.
    """
    config = folder.config
    family = str(config.get("model_type"))
    if family not in CANDIDATES:
        raise ModelError(f"model_type: expected a family that GGUF export knows, got {family!r}; {nearest(family, CANDIDATES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act: expected silu, which llama.cpp computes there, got {config['hidden_act']!r}; use transformers")
    hidden = int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // int(config["num_attention_heads"]))
    widths = [_layer_widths(folder, layer, head_dim) for layer in range(int(config["num_hidden_layers"]))]
    rope, (context, notes) = _rope(config), _context(config)
    chosen = _choose(family, folder, widths, head_dim, rope)
    if chosen.name != CANDIDATES[family][0].name:
        notes.append(f"written as {chosen.name}, which computes the same with these widths and biases; {family} in llama.cpp does not")
    heads, kv_heads, ffn = zip(*widths, strict=True)
    return Layout(chosen, hidden, head_dim, heads, kv_heads, ffn, rope, context, tuple(notes))


def _layer_widths(folder: ExportedFolder, layer: int, head_dim: int) -> tuple[int, int, int]:
    """Query heads, KV heads and FFN channels."""
    rows = []
    for role in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"):
        name = f"model.layers.{layer}.{role}.weight"
        if not folder.shapes.get(name, (0,))[0]:
            raise ModelError(f"weights: expected {name}, got none in {folder.path}; export a Llama, Mistral, Qwen2 or Qwen3")
        rows.append(folder.shapes[name][0])
    heads, kv_heads, ffn = rows[0] // head_dim, rows[1] // head_dim, rows[2]
    if rows[0] % head_dim or rows[1] % head_dim or heads % kv_heads:
        raise ModelError(f"weights: expected whole heads of {head_dim} channels, got {rows[:2]} rows in layer {layer}; export again")
    return heads, kv_heads, ffn


def _choose(family: str, folder: ExportedFolder, widths: list[tuple[int, int, int]], head_dim: int, rope: dict[str, Any]) -> Architecture:
    reasons = []
    for candidate in CANDIDATES[family]:
        reason = _obstacle(candidate, folder, widths, head_dim, rope)
        if not reason:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise ModelError(
        f"folder: expected what one of llama.cpp's architectures computes, got a {family} that fits none ({'; '.join(reasons)}); "
        "export it padded to equal widths and without added biases, or serve it with transformers"
    )


def _obstacle(
    candidate: Architecture, folder: ExportedFolder, widths: list[tuple[int, int, int]], head_dim: int, rope: dict[str, Any]
) -> str:
    """Why the architecture would not compute the same; empty if it would."""
    irregular = any(width != widths[0] for width in widths)
    biased = {name.split(".")[-2] for name in folder.shapes if name.endswith(".bias")}
    if irregular and not candidate.per_layer:
        return "all layers need equal widths"
    if candidate.square and widths[0][0] * head_dim != folder.config["hidden_size"]:
        return "query heads must fill the hidden size"
    if biased - candidate.biases:
        return f"no bias in {', '.join(sorted(biased - candidate.biases))}"
    if rope["rope_type"] == "llama3" and not candidate.rope_factors:
        return "no rotary factors"
    if candidate.tied and not folder.tied:
        return "no output layer of its own"
    return ""


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in one form: releases of transformers before 5 wrote them in two places."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found = {"rope_theta": config.get("rope_theta", 10000.0), **given}
    found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
    if found["rope_type"] not in ("default", "linear", "llama3"):
        raise ModelError(f"rope_type: expected default, linear or llama3, got {found['rope_type']!r}; use llama.cpp's own converter")
    if any(isinstance(value, dict) for value in found.values()):
        raise ModelError("rope_parameters: expected one rotation for all layers, got one per kind of layer; use transformers")
    if float(found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ModelError("partial_rotary_factor: expected 1, got a part of each head; use llama.cpp's own converter")
    return found


def _context(config: dict[str, Any]) -> tuple[int, list[str]]:
    """Tokens and notes. llama.cpp runs these architectures without a window, which is the same up to the window's length."""
    context, window = int(config.get("max_position_embeddings") or 2048), config.get("sliding_window")
    layers = config.get("layer_types") or ["sliding_attention"]
    if not window or window >= context or config.get("use_sliding_window") is False or "sliding_attention" not in layers:
        return context, []
    return int(window), [f"context length set to the sliding window, {window} of {context} tokens: llama.cpp attends to all of it"]
