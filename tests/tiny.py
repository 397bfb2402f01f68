"""What the tests of the later stages share: a random Llama of a few kilobytes, its tokenizer, its windows, its problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.data.windows import TextWindows
from adapruner.importance.statistics import collect_statistics
from adapruner.pruning.budget import Budget
from adapruner.pruning.problem import PruningProblem

VOCABULARY = 96


def tiny_llama(**changes: Any) -> Any:
    """A random float32 Llama: 3 layers, 4 query heads over 2 KV heads, 160 FFN channels; weights large enough to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**values, **changes})).eval()
    with torch.no_grad():  # biases are born as zeros, which would hide a lost one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def word_tokenizer() -> Any:
    """One token a word: ``w0`` to ``w91`` are 4 to 95."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def save_tiny(folder: Path, **changes: Any) -> Path:
    """A local checkpoint folder with model and tokenizer."""
    tiny_llama(**changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def random_windows(count: int, seq_len: int, seed: int, sources: tuple[str, ...] = ("only",)) -> TextWindows:
    """Random tokens without padding, ``count`` windows of each source; sources prefer different parts of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for index, name in enumerate(sources):
        low = 4 + index * 20
        ids = torch.randint(low, min(low + 50, VOCABULARY), (count, seq_len), generator=generator)
        hashes = [f"{seed}-{name}-{row}" for row in range(count)]
        parts.append(TextWindows(ids, ids.clone(), torch.ones_like(ids), [name], torch.zeros(count, dtype=torch.long), hashes))
    return TextWindows.concatenate(parts)


def prepare_problem(model: Any, calibration: TextWindows, budget: Budget | None = None, seed: int = 0) -> PruningProblem:
    """All statistics of the calibration windows, collected now."""
    from adapruner.models.tracing import trace_structure

    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, calibration)
    groups = CalibrationPool(CalibrationGroups(tuple(calibration.source_names), calibration.source_index))
    return PruningProblem(structure, statistics, groups, budget or Budget(0.3, keep_at_least=0.1), "tiny", "f00d", seed)
