"""Rows of fused layers, worked out from head counts. ``[channels]`` long each, in the order of the output projection's input."""

from __future__ import annotations

from typing import Any

from adapruner.models.families.family import IndexMap, MappedRows


def head_dim_of(config: Any) -> int:
    """Channels per head of the dense model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def interleaved_qkv(module: str, heads: int, dim: int) -> IndexMap:
    """Head after head, each with its q, k and v: GPT-NeoX, BLOOM, Falcon with neither groups nor a shared head."""
    return grouped_qkv(module, heads, 1, dim)


def grouped_qkv(module: str, groups: int, per_group: int, dim: int) -> IndexMap:
    """KV group after KV group, each with its ``per_group`` queries, its k and its v: Falcon's newer form."""
    width = (per_group + 2) * dim
    starts = [group * width for group in range(groups)]
    query = [s + head * dim + d for s in starts for head in range(per_group) for d in range(dim)]
    key = [s + per_group * dim + d for s in starts for _ in range(per_group) for d in range(dim)]
    value = [row + dim for row in key]
    return _parts(module, query, key, value)


def stacked_qkv(module: str, heads: int, key_value_heads: int, dim: int) -> IndexMap:
    """All queries, then all keys, then all values: GPT-2, Phi-3, MPT, Falcon's multi-query form."""
    query = list(range(heads * dim))
    shared = [h // (heads // key_value_heads) * dim + d for h in range(heads) for d in range(dim)]
    key = [heads * dim + row for row in shared]
    value = [(heads + key_value_heads) * dim + row for row in shared]
    return _parts(module, query, key, value)


def stacked_gate_up(module: str, channels: int) -> IndexMap:
    """All gates, then all ups: Phi-3, GLM."""
    gate, up = tuple(range(channels)), tuple(range(channels, 2 * channels))
    return {"gate_proj": MappedRows(module, gate), "up_proj": MappedRows(module, up)}


def _parts(module: str, query: list[int], key: list[int], value: list[int]) -> IndexMap:
    return {name: MappedRows(module, tuple(rows)) for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", value))}
