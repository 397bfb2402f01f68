"""Continuations of prompts, as a whole or piece by piece; greedy unless asked otherwise.

Not ``model.generate``: that fills in what the checkpoint's ``generation_config`` asks for (temperature, repetition penalty, ...), so
two models could be decoded in different ways. Nor transformers' ``TextStreamer``: it decodes without the prompt, and sentencepiece
drops the leading space of a text that is decoded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.argument_checks import check_fields, check_seed, got
from adapruner.errors import ConfigurationError, DataError
from adapruner.models.forward import evaluation_mode, input_device

#: Of a continuation, where nobody says how many.
MOST_NEW_TOKENS = 40
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Decoding:
    """How a prompt is continued."""

    max_new_tokens: int = MOST_NEW_TOKENS
    """At most so many tokens a prompt."""
    temperature: float = 0.0
    """0: always the most likely token. Above: drawn, with logits divided by it."""
    seed: int = 0
    """For what is drawn; every prompt begins with it, so that a text does not depend on its neighbours."""

    def __post_init__(self) -> None:
        check_fields(self, "generation.")
        if self.max_new_tokens < 1:
            raise ConfigurationError(f"generation.max_new_tokens: expected 1 or more, got {self.max_new_tokens}; give 40")
        check_seed("generation.seed", self.seed)
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigurationError(f"generation.temperature: expected 0 or more, got {self.temperature}; give 0 for the likeliest")


def generate_text(model: nn.Module, tokenizer: Any, prompts: list[str], max_new_tokens: int = MOST_NEW_TOKENS) -> list[str]:
    """The most likely continuation of each prompt, token by token; the prompt itself is not repeated.

    Prompts go one by one, without padding, so that a text does not depend on its neighbours. Arguments and errors are those of
    :func:`stream_text`; all prompts are checked before the first is continued.
    """
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens: expected a positive integer, got {max_new_tokens}; give 1 or more")
    for prompt in prompts:
        encode_prompt(model, tokenizer, prompt, max_new_tokens)
    return ["".join(stream_text(model, tokenizer, prompt, Decoding(max_new_tokens))) for prompt in prompts]


def stream_text(model: nn.Module, tokenizer: Any, prompt: str, decoding: Decoding = Decoding()) -> Iterator[str]:
    """The continuation of a prompt in pieces, each as soon as its characters are whole; joined they are the text.

    Args:
        model: a causal language model of Hugging Face's kind; between two pieces it is in its own mode.
        tokenizer: its tokenizer. Generation stops at its end-of-text token and at those of the ``generation_config``.
        prompt: some text.
        decoding: how many tokens, and how they are chosen.

    Raises:
        DataError, ConfigurationError: as :func:`encode_prompt`.
    """
    yield from continue_ids(model, tokenizer, encode_prompt(model, tokenizer, prompt, decoding.max_new_tokens), decoding)


def continue_ids(
    model: nn.Module, tokenizer: Any, ids: Tensor, decoding: Decoding = Decoding(), *, ended: list[bool] | None = None
) -> Iterator[str]:
    """As :func:`stream_text`, of token ids ``[1, t]`` that leave the model room: what a tokenizer would not make of their text, say.

    Args:
        ended: gets ``True`` where the model ended the text itself, before it had all its tokens.
    """
    stop, text = _stop_tokens(model, tokenizer), Detokenizer(tokenizer, ids[0].tolist())
    for token in islice(_chosen_tokens(model, ids.to(input_device(model)), decoding), decoding.max_new_tokens):
        if token in stop:
            if ended is not None:
                ended.append(True)
            break
        piece = text.add(token)
        if piece:
            yield piece
    rest = text.rest()
    if rest:
        yield rest


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
        if ids.shape[1] >= positions:
            raise ConfigurationError(
                f"prompts: expected fewer than the model's {positions} tokens, got one of {ids.shape[1]}, {got(prompt, 40)}; shorten it"
            )
        raise ConfigurationError(
            f"max_new_tokens: expected at most {positions - ids.shape[1]} after a prompt of {ids.shape[1]} tokens, got {max_new_tokens}; "
            "shorten the prompt or generate less"
        )
    return ids


def likeliest(logits: Tensor) -> Tensor:
    """``[b, 1]``, the token with the largest of the logits ``[b, v]``."""
    return logits.argmax(dim=-1, keepdim=True)


def next_tokens(model: Any, input_ids: Tensor, choose: Callable[[Tensor], Tensor] = likeliest) -> Iterator[Tensor]:
    """Endless decoding with the key-value cache; use inside :func:`evaluation_mode`.

    Args:
        model: a causal language model of Hugging Face's kind.
        input_ids: ``[b, t]`` on the model's device, no padding. The first step reads it all, each later one a single token.
        choose: logits ``[b, v]`` of the next position -> tokens ``[b, 1]``.

    Yields:
        The next token ``[b, 1]``, still on the device.
    """
    output = model(input_ids=input_ids, use_cache=True)
    while True:
        token = choose(output.logits[:, -1])
        yield token
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


class Detokenizer:
    """Tokens in, characters out: decodes a short window, so that a long text costs no more a token than a short one.

    A window begins where known text ends, and is cut there: decoded alone it could lose its leading space.
    """

    def __init__(self, tokenizer: Any, known: list[int]) -> None:
        self.tokenizer, self.tokens = tokenizer, list(known)
        self.begin, self.shown = 0, len(known)

    def add(self, token: int) -> str:
        """The characters that a token completes; empty in the middle of a character of several bytes."""
        self.tokens.append(token)
        before, now = self._decoded(self.shown), self._decoded(None)
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self.begin, self.shown = self.shown, len(self.tokens)
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back at the end."""
        return self._decoded(None)[len(self._decoded(self.shown)) :]

    def _decoded(self, end: int | None) -> str:
        return str(self.tokenizer.decode(self.tokens[self.begin : end], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _chosen_tokens(model: nn.Module, ids: Tensor, decoding: Decoding) -> Iterator[int]:
    """Endless. The mode is entered for each token: held over a yield, it would reach into the consumer's code."""
    generator = torch.Generator().manual_seed(decoding.seed)

    def draw(logits: Tensor) -> Tensor:
        """Drawn on the CPU, so that the text is the same on every device."""
        shares = torch.softmax(logits.float().cpu() / decoding.temperature, dim=-1)
        return torch.multinomial(shares, 1, generator=generator).to(logits.device)

    tokens = next_tokens(model, ids, likeliest if decoding.temperature == 0.0 else draw)
    while True:
        with evaluation_mode(model):
            token = int(next(tokens))
        yield token


def _stop_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end a text."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
