"""Tiny random models in every form that an export takes, and the greedy tokens of transformers for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapruner.export.folder import export_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model
from tests.export.cases import random_model
from tests.export.formats.gguf.test_writing import byte_tokenizer
from tests.models.families import conformance

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 12, 24
#: As people call the family -> its ``model_type``, and changes to the configuration below.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", {"sliding_window": 16}),  # shorter than prompt and answer together
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Gemma 2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 64}),
    "Phi-3": ("phi3", {"sliding_window": None}),
}
FORMS = ("uniform", "irregular FFN", "irregular heads", "removed layers", "padded", "added biases")
#: What DeciLM's form can express.
DECI_FAMILIES = ("Llama", "Mistral", "Qwen2")


@dataclass(frozen=True)
class Served:
    """One folder, and what transformers generates from the model that it was written from."""

    family: str
    form: str
    folder: Path
    stock: bool
    tokens: list[list[int]]


def vocabulary() -> int:
    """Tokens that the tokenizer has."""
    return len(byte_tokenizer())


def prompts(vocabulary: int) -> torch.Tensor:
    """``[8, 12]`` random tokens."""
    return torch.randint(3, vocabulary, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))


def greedy(model: Any, ids: torch.Tensor, new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """The new tokens of each prompt."""
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found: list[list[int]] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, ids.shape[1] :].tolist()
    return found


def build(family: str, vocabulary: int) -> Any:
    """A random float32 model, wide enough for every engine (heads of 64), whose tokens depend on what it reads."""

    model_type, changes = FAMILIES[family]
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 384,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    model = random_model(model_type, values)
    if model_type == "gemma2":  # multiplies embeddings, which are its output layer, too: it would repeat the last token
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.02)
    return model


def plan_of(form: str, structure: ModelStructure) -> PruningPlan:
    """What a form keeps."""
    if form == "uniform":
        return conformance.plan_for(structure, "uniform")
    plan = conformance.plan_for(structure, "irregular", seed=3)
    whole = {name: list(range(units)) for name, units in plan.units.items()}
    if form in ("irregular FFN", "irregular heads"):
        kind = "ffn" if form == "irregular FFN" else "attention"
        return replace(plan, kept={name: kept if name.endswith(kind) else whole[name] for name, kept in plan.kept.items()})
    if form == "removed layers":
        kept = {name: whole[name] if name.startswith("1.") else kept for name, kept in plan.kept.items()}
        return replace(plan, kept=kept, removed_layers=[1])
    return replace(plan, output_bias=form == "added biases")


def exports(folder: Path, families: Iterable[str] = FAMILIES, forms: Iterable[str] = FORMS) -> Iterator[Served]:
    """Every family in every form, written and answered by transformers."""
    tokenizer = byte_tokenizer()
    ids = prompts(len(tokenizer))
    for family in families:
        for form in forms:
            model = build(family, len(tokenizer))
            structure = trace_structure(model)
            plan = plan_of(form, structure)
            prune_model(model, structure, plan)
            for group in structure.groups if plan.output_bias else ():
                torch.nn.init.normal_(model.get_submodule(group.output.module).bias, generator=torch.Generator().manual_seed(group.layer))
            place = folder / f"{family} {form}".replace(" ", "-").lower()
            record = export_model(model, tokenizer, structure, plan, place, pad=form == "padded")
            yield Served(family, form, place, record.stock, greedy(model, ids))
