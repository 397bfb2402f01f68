from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from .cases import VOCABULARY, Pruned, add_output_biases, plan_for, slice_model, structure_by_hand, tiny_model


@pytest.fixture
def pruned() -> Callable[..., Pruned]:
    """Builds a tiny model and cuts it: ``pruned("llama", attention=[1, 2, 1], ffn=[9, 24, 11], tie_word_embeddings=True)``.

    With ``output_bias`` its output projections get random biases, and the plan says so.
    """

    def build(model_type: str, attention: list[int], ffn: list[int], output_bias: bool = False, **changes: Any) -> Pruned:
        model = tiny_model(model_type, **changes)
        structure = structure_by_hand(model)
        plan = plan_for(model, structure, attention, ffn)
        slice_model(model, plan.kept)
        if output_bias:
            add_output_biases(model)
            plan = replace(plan, output_bias=True)
        torch.manual_seed(1)
        return Pruned(model, structure, plan, torch.randint(3, VOCABULARY, (2, 10)))

    return build


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A word-level tokenizer made on the spot."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "the", "lazy", "dog"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
