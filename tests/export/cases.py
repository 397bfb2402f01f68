"""Tiny models of every family, what is exported of them, and a slicer that knows nothing of ours: the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapruner.models.families import LayerShape
from adapruner.models.units import Member, ModelStructure, UnitGroup, count_parameters
from adapruner.pruning.plan import PruningPlan

VOCABULARY, HIDDEN, HEAD_DIM, FFN, LAYERS = 96, 32, 8, 24, 3


UNEVEN: tuple[list[int], list[int]] = ([1, 2, 1], [9, 24, 11])
"""KV groups and FFN channels kept per layer, of 2 and 24."""

_EVEN = ([1, 1, 1], [10, 10, 10])
_WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}

CASES: list[tuple[str, list[int], list[int], dict[str, Any], str]] = [
    ("llama", *_EVEN, {}, "LlamaForCausalLM"),
    ("llama", *_EVEN, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "LlamaForCausalLM"),
    ("llama", [2, 2, 2], [24, 24, 24], {}, "LlamaForCausalLM"),  # nothing removed
    ("llama", [3, 3, 3], [10, 10, 10], {"kv_heads": 4}, "MistralForCausalLM"),  # Llama refuses 3 heads
    ("llama", [3, 3, 3], [10, 10, 10], {"kv_heads": 4, "mlp_bias": True}, "PrunedLlamaForCausalLM"),  # and Mistral has no biases
    ("llama", *UNEVEN, {"tie_word_embeddings": True, "attention_bias": True}, "PrunedLlamaForCausalLM"),
    ("llama", [3, 1, 4], [24, 24, 24], {"kv_heads": 4}, "PrunedLlamaForCausalLM"),
    ("mistral", [3, 3, 3], [10, 10, 10], {"kv_heads": 4, "sliding_window": 4}, "MistralForCausalLM"),
    ("mistral", *UNEVEN, {"sliding_window": 4}, "PrunedMistralForCausalLM"),
    ("qwen2", [3, 3, 3], [10, 10, 10], {"kv_heads": 4, **_WINDOW}, "Qwen2ForCausalLM"),
    ("qwen2", *UNEVEN, _WINDOW, "PrunedQwen2ForCausalLM"),
    ("qwen3", *_EVEN, {"tie_word_embeddings": True}, "Qwen3ForCausalLM"),
    ("qwen3", *UNEVEN, {"head_dim": 16}, "PrunedQwen3ForCausalLM"),
]
"""Family, kept KV groups and FFN channels per layer, changes to the configuration, and the class that must come out."""


BIASED_CASES: list[tuple[str, list[int], list[int], dict[str, Any], str]] = [
    ("llama", *_EVEN, {}, "LlamaForCausalLM"),
    ("llama", *_EVEN, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "LlamaForCausalLM"),
    ("llama", *_EVEN, {"attention_bias": True}, "LlamaForCausalLM"),
    ("llama", [3, 3, 3], [10, 10, 10], {"kv_heads": 4}, "PrunedLlamaForCausalLM"),  # Llama refuses 3 heads, Mistral has no biases
    ("llama", *UNEVEN, {"tie_word_embeddings": True}, "PrunedLlamaForCausalLM"),
    ("llama", *UNEVEN, {"attention_bias": True}, "PrunedLlamaForCausalLM"),
    ("mistral", *_EVEN, {"sliding_window": 4}, "PrunedMistralForCausalLM"),
    ("mistral", *UNEVEN, {"sliding_window": 4}, "PrunedMistralForCausalLM"),
    ("qwen2", *_EVEN, _WINDOW, "PrunedQwen2ForCausalLM"),
    ("qwen2", *UNEVEN, _WINDOW, "PrunedQwen2ForCausalLM"),
    ("qwen3", *_EVEN, {"tie_word_embeddings": True}, "PrunedQwen3ForCausalLM"),
    ("qwen3", *UNEVEN, {"head_dim": 16, "attention_bias": True}, "PrunedQwen3ForCausalLM"),
]
"""The same, for plans with ``output_bias``."""


@dataclass
class Pruned:
    """A pruned model and everything export asks for."""

    model: Any
    structure: ModelStructure
    plan: PruningPlan
    input_ids: torch.Tensor

    def logits(self, model: Any | None = None) -> torch.Tensor:
        """``[b, t, vocabulary]`` of this model, or of another on the same input."""
        with torch.no_grad():
            return (model or self.model)(input_ids=self.input_ids).logits

    def greedy(self, model: Any | None = None, **options: Any) -> list[list[int]]:
        """Twelve greedy tokens."""
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
        return (model or self.model).generate(self.input_ids, **options).tolist()


def tiny_model(model_type: str, heads: int = 4, kv_heads: int = 2, **changes: Any) -> Any:
    """A random float32 model whose logits depend on the position (a large rotation and large weights)."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rms_norm_eps": 1e-4,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **({"head_dim": HEAD_DIM} if model_type == "qwen3" else {}),
        **changes,
    }
    return random_model(model_type, values)


def random_model(model_type: str, values: dict[str, Any]) -> Any:
    """A model of these values with random weights, biases and norms too: as zeros and ones they would hide a lost one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def structure_by_hand(model: Any) -> ModelStructure:
    """KV groups and FFN channels of a Llama-like model, from its tensors' shapes."""
    groups = []
    for index, layer in enumerate(model.model.layers):
        prefix, head_dim = f"model.layers.{index}", layer.self_attn.head_dim
        channels, kv_rows = layer.self_attn.o_proj.in_features, layer.self_attn.k_proj.out_features
        units, per_unit = kv_rows // head_dim, channels * head_dim // kv_rows
        own, shared = torch.arange(channels), torch.arange(channels) // per_unit * head_dim + torch.arange(channels) % head_dim
        attention = (("q_proj", 0, own), ("k_proj", 0, shared), ("v_proj", 0, shared), ("o_proj", 1, own))
        width = layer.mlp.down_proj.in_features
        ffn = tuple((role, dim, torch.arange(width)) for role, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)))
        for kind, owner, rows, size, count in (("attention", "self_attn", attention, per_unit, units), ("ffn", "mlp", ffn, 1, width)):
            members = tuple(Member(role, f"{prefix}.{owner}.{role}", dim, where) for role, dim, where in rows)
            heads = {"head_dim": head_dim, "key_value_heads": units} if kind == "attention" else {}
            groups.append(UnitGroup(index, kind, count, size, members, parameters_per_unit=1, **heads))
    total = count_parameters(model)
    heads = model.model.layers[0].self_attn
    query_heads, kv_heads = (linear.out_features // heads.head_dim for linear in (heads.q_proj, heads.k_proj))
    whole = LayerShape(query_heads, kv_heads, heads.head_dim, model.model.layers[0].mlp.down_proj.in_features, tuple(range(query_heads)))
    return ModelStructure(tuple(groups), model.config.model_type, len(model.model.layers), total, total // 2, whole)


def slice_model(model: Any, kept: dict[str, list[int]]) -> None:
    """Cuts by plain slicing of heads and channels; the configuration stays as it was."""
    for index, layer in enumerate(model.model.layers):
        attention, mlp, head_dim = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        ratio = attention.num_key_value_groups
        kv = [k * head_dim + d for k in kept[f"{index}.attention"] for d in range(head_dim)]
        q = [(k * ratio + g) * head_dim + d for k in kept[f"{index}.attention"] for g in range(ratio) for d in range(head_dim)]
        for linear, rows in ((attention.q_proj, q), (attention.k_proj, kv), (attention.v_proj, kv)):
            _rows(linear, rows)
        _columns(attention.o_proj, q)
        _rows(mlp.gate_proj, kept[f"{index}.ffn"])
        _rows(mlp.up_proj, kept[f"{index}.ffn"])
        _columns(mlp.down_proj, kept[f"{index}.ffn"])


def _rows(linear: nn.Linear, rows: list[int]) -> None:
    linear.weight, linear.out_features = nn.Parameter(linear.weight.detach()[rows]), len(rows)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows])


def _columns(linear: nn.Linear, columns: list[int]) -> None:
    linear.weight, linear.in_features = nn.Parameter(linear.weight.detach()[:, columns].contiguous()), len(columns)


def add_output_biases(model: Any) -> None:
    """Random biases on the output projections that have none."""
    generator = torch.Generator().manual_seed(5)
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            if linear.bias is None:
                linear.bias = nn.Parameter(torch.randn(HIDDEN, generator=generator))


def plan_for(model: Any, structure: ModelStructure, attention: list[int], ffn: list[int]) -> PruningPlan:
    """Keeps the last ``attention[i]`` KV groups and every other-most channels of layer i."""
    kept = {}
    for layer in range(structure.layers):
        units, width = structure.group(layer, "attention").units, structure.group(layer, "ffn").units
        kept[f"{layer}.attention"] = list(range(units - attention[layer], units))
        kept[f"{layer}.ffn"] = sorted((7 * i + layer) % width for i in range(ffn[layer]))
    dense = structure.parameters
    return PruningPlan(
        model={"name": "tiny/base", "model_type": structure.model_type, "fingerprint": "f00d"},
        kept=kept,
        units={g.name: g.units for g in structure.groups},
        parameters={"dense": dense, "pruned": dense - 1000, "block_dense": dense // 2, "block_pruned": dense // 2 - 1000},
        budget={"pruned_fraction": 0.2, "of": "block"},
        recipe={"metric": "taylor"},
        provenance={"seed": 11},
    )
