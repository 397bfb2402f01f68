"""Models that write, of families that begin their documents in different ways."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import VOCABULARY, tiny_llama, word_tokenizer


def without_bos() -> tuple[Any, Any]:
    """As Qwen's tokenizer: no begin-of-text token, and a configuration that names none."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = None
    return tiny_llama(bos_token_id=None), tokenizer


def without_any() -> tuple[Any, Any]:
    """No token that begins or ends a text, and the ids that the library's configuration has by default: here those of words."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = tokenizer.unk_token = None
    return tiny_llama(bos_token_id=21, eos_token_id=22, pad_token_id=None), tokenizer


def padding_with_its_beginning() -> tuple[Any, Any]:
    """As GPT-2: one token begins, ends and pads."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = "</s>"
    return tiny_llama(bos_token_id=1, eos_token_id=1, pad_token_id=1), tokenizer


def with_bos() -> tuple[Any, Any]:
    """As Llama's."""
    return tiny_llama(), word_tokenizer()


def ending_at_once(share: float) -> tuple[Any, Any]:
    """A model whose every token is the end with this probability, and else a word, each as likely."""
    model, tokenizer = tiny_llama(tie_word_embeddings=False), word_tokenizer()
    head = torch.nn.Linear(model.config.hidden_size, VOCABULARY)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)
        head.bias[4:] = 0.0
        head.bias[1] = torch.logit(torch.tensor(share)) + torch.log(torch.tensor(float(VOCABULARY - 4)))
    model.lm_head = head
    return model, tokenizer
