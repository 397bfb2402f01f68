"""Greedy continuations, to look at what a pruned model writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.mode import evaluation_mode, input_device


def generate_text(model: nn.Module, tokenizer: Any, prompts: list[str], max_new_tokens: int = 40) -> list[str]:
    """The most likely continuation of each prompt, token by token; the prompt itself is not repeated.

    Not ``model.generate``: that fills in what the checkpoint's ``generation_config`` asks for (temperature,
    repetition penalty, ...), so two models could be decoded in different ways. Prompts go one by one, without
    padding, so that a text does not depend on its neighbours.

    Args:
        model: a causal language model of Hugging Face's kind; its mode is restored.
        tokenizer: its tokenizer. Generation stops at its end-of-text token and at those of the ``generation_config``.
        prompts: not empty once tokenised.
        max_new_tokens: at most this many tokens a prompt.

    Raises:
        ConfigurationError: if ``max_new_tokens`` is not positive, or a text could outgrow the model's positions.
        DataError: if a prompt has no tokens.
    """
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens: expected a positive integer, got {max_new_tokens}; give 1 or more")
    encoded = [encode_prompt(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    stop = stop_tokens(model, tokenizer)
    with evaluation_mode(model):
        return [_continuation(model, tokenizer, ids, max_new_tokens, stop) for ids in encoded]


def encode_prompt(model: nn.Module, tokenizer: Any, prompt: str, max_new_tokens: int) -> Tensor:
    """Token ids ``[1, t]`` of a prompt that the model has room to continue.

    Raises:
        DataError: if it has no tokens.
        ConfigurationError: if the text could outgrow the model's positions.
    """
    ids: Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    if ids.numel() == 0:
        raise DataError(f"prompts: expected at least one token in each, got none from {prompt!r}; give some text")
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and ids.shape[1] + max_new_tokens > positions:
        raise ConfigurationError(
            f"max_new_tokens: expected at most {positions - ids.shape[1]} after a prompt of {ids.shape[1]} tokens, got {max_new_tokens}; "
            "shorten the prompt or generate less"
        )
    return ids


def greedy_tokens(model: nn.Module, input_ids: Tensor) -> Iterator[Tensor]:
    """Endless greedy decoding with the key-value cache; use inside :func:`evaluation_mode`.

    Args:
        model: a causal language model of Hugging Face's kind.
        input_ids: ``[b, t]`` on the model's device, no padding. The first step reads it all, each later one a single token.

    Yields:
        The next token ``[b, 1]``, still on the device.
    """
    output = model(input_ids=input_ids, use_cache=True)
    while True:
        token = output.logits[:, -1:].argmax(dim=-1)
        yield token
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def _continuation(model: nn.Module, tokenizer: Any, ids: Tensor, max_new_tokens: int, stop: set[int]) -> str:
    tokens = ids[0].tolist()
    start = _decode(tokenizer, tokens)
    for _, token in zip(range(max_new_tokens), greedy_tokens(model, ids.to(input_device(model))), strict=False):
        if int(token) in stop:
            break
        tokens.append(int(token))
    # Decoded with the prompt, then cut: sentencepiece drops the leading space of a text that is decoded alone.
    return _decode(tokenizer, tokens)[len(start) :]


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def stop_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end a text."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
