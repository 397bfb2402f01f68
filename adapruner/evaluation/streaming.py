"""Text as it comes, piece by piece; greedy unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import encode_prompt, greedy_tokens, stop_tokens
from adapruner.evaluation.mode import evaluation_mode, input_device

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Decoding:
    """How a prompt is continued."""

    max_new_tokens: int = 40
    """At most so many tokens a prompt."""
    temperature: float = 0.0
    """0: always the most likely token. Above: drawn, with logits divided by it."""
    seed: int = 0
    """Of what is drawn; every prompt begins with it, so that a text does not depend on its neighbours."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigurationError(f"generation.max_new_tokens: expected 1 or more, got {self.max_new_tokens}; give 40")
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigurationError(f"generation.temperature: expected 0 or more, got {self.temperature}; give 0 for the likeliest")


def stream_text(model: nn.Module, tokenizer: Any, prompt: str, decoding: Decoding = Decoding()) -> Iterator[str]:
    """The continuation of a prompt in pieces, each as soon as its characters are whole; joined they are the text.

    Greedy, the text is that of :func:`adapruner.evaluation.generation.generate_text`, whose reasons for not calling
    ``model.generate`` hold here, too.

    Args:
        model: a causal language model of Hugging Face's kind; between two pieces it is in its own mode.
        tokenizer: its tokenizer. Generation stops at its end-of-text token and at those of the ``generation_config``.
        prompt: some text.
        decoding: how many tokens, and how they are chosen.

    Raises:
        DataError, ConfigurationError: as :func:`adapruner.evaluation.generation.encode_prompt`.
    """
    ids = encode_prompt(model, tokenizer, prompt, decoding.max_new_tokens)
    stop, known = stop_tokens(model, tokenizer), ids[0].tolist()
    chosen = _chosen_tokens(model, ids.to(input_device(model)), decoding)
    text = Detokenizer(tokenizer, known)
    for token in islice(chosen, decoding.max_new_tokens):
        if token in stop:
            break
        piece = text.add(token)
        if piece:
            yield piece
    rest = text.rest()
    if rest:
        yield rest


class Detokenizer:
    """Tokens in, characters out: decodes a short window, so that a long text costs no more a token than a short one.

    A window begins where known text ends: sentencepiece drops the leading space of a text that is decoded alone.
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
    tokens = greedy_tokens(model, ids) if decoding.temperature == 0.0 else _drawn_tokens(model, ids, decoding)
    while True:
        with evaluation_mode(model):
            token = int(next(tokens))
        yield token


def _drawn_tokens(model: Any, input_ids: Tensor, decoding: Decoding) -> Iterator[Tensor]:
    """As :func:`adapruner.evaluation.generation.greedy_tokens`, drawn by temperature; on the CPU, alike on every device."""
    generator = torch.Generator().manual_seed(decoding.seed)
    output = model(input_ids=input_ids, use_cache=True)
    while True:
        shares = torch.softmax(output.logits[0, -1].float().cpu() / decoding.temperature, dim=-1)
        token = torch.multinomial(shares, 1, generator=generator).to(input_ids.device)[None]
        yield token
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
