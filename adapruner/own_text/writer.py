"""Documents drawn from a model's own distribution, several at a time.

(*Rethinking Pruning Large Language Models*, arXiv 2406.15524, refits a pruned model on what the dense one writes.) ``generate`` of
transformers runs the model; which token comes next is drawn here, on the CPU, from numbers that depend on the seed and the document's
place alone: no generator of the process moves, and a document does not depend on how many others are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.argument_checks import got, typed
from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.loading import load_by_name
from adapruner.files.digests import digest_of
from adapruner.importance.finiteness import check_weights
from adapruner.models.fingerprint import digest_weights
from adapruner.models.forward import evaluation_mode, input_device
from adapruner.models.loading import check_language_model, load_tokenizer
from adapruner.own_text.boundaries import Boundaries
from adapruner.own_text.settings import Writing
from adapruner.progress import progress_bar

#: So many blank documents one after the other, and the model is taken to write none.
MOST_BLANK = 64
#: What a cut in the middle of a character leaves.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@typed
def write_texts(
    model: Any,
    tokenizer: Any = None,
    documents: int = Writing.documents,
    tokens: int = Writing.tokens,
    *,
    temperature: float = Writing.temperature,
    batch_size: int = Writing.batch_size,
    seed: int = Writing.seed,
) -> list[str]:
    """Text that the model writes itself, to calibrate, refit and recover with where there is no other.

    Every document begins behind the begin-of-text token (behind the end-of-text token where a model has no such token, with a word drawn
    from the vocabulary where it has neither), and is over where the model ends it, or after ``tokens``. Special tokens are no part of it.
    The same model, seed and batch size give the same text on the same machine; the model stays as it is.

    Args:
        model: the dense causal LM, on the device where it is to write; or a name or folder to load one from.
        tokenizer: of the model; or its name or folder.
        documents: how many.
        tokens: of each at most.
        temperature: 1: the model's own distribution, nothing cut from it.
        batch_size: documents at a time.
        seed: of what is drawn.

    Returns:
        As many texts as ``documents`` says, none of them blank.

    Raises:
        ConfigurationError: for arguments out of range.
        ModelError: if the model cannot be loaded, has weights that are not finite, or writes nothing.

    >>> import adapruner
    >>> texts = adapruner.stages.write_texts("demo", documents=3, tokens=16)  # doctest: +ELLIPSIS
    text: ...
    >>> len(texts), texts == adapruner.stages.write_texts("demo", documents=3, tokens=16)  # doctest: +ELLIPSIS
    text: ...
    (3, True)
    """
    writing = Writing(documents, tokens, temperature, batch_size, seed)
    if isinstance(model, str | Path):
        tokenizer = str(model) if tokenizer is None else tokenizer
        model = load_by_name(str(model))
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(str(tokenizer))
    writer, texts = TextWriter(model, tokenizer, writing), list[str]()
    with progress_bar("text", documents) as advance:
        for _, batch in writer.batches(0, advance):
            texts += batch
            if len(texts) >= documents:
                return texts[:documents]
    raise AssertionError("batches have no end")


class TextWriter:
    """A model that writes.

    Args:
        model: a causal LM of transformers.
        tokenizer: of the model.
        writing: how.

    Raises:
        ConfigurationError: if documents could outgrow the model's positions.
        ModelError: if it is no causal LM, or has weights that are not finite.
    """

    def __init__(self, model: Any, tokenizer: Any, writing: Writing) -> None:
        check_language_model(model, "model")
        if not callable(getattr(tokenizer, "decode", None)):
            raise ConfigurationError(f"tokenizer: expected the tokenizer of the model, got {got(tokenizer)}; give one")
        check_positions(model, writing)
        check_weights(model)
        self.model, self.tokenizer, self.writing = model, tokenizer, writing
        self.boundaries = Boundaries.of(model, tokenizer)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the documents depend on, in JSON types."""
        return {"model": digest_weights(self.model), "tokenizer": digest_of(self.tokenizer.get_vocab()), **self.writing.identity}

    def batches(self, first: int, advance: Callable[[int, str], Any] | None = None, done: int = 0) -> Iterator[tuple[int, list[str]]]:
        """Batch after batch, without end: its number, from ``first`` on, and its texts, blank ones left out.

        Args:
            advance: called with the number of documents that are written, and a note.
            done: of these, before.

        Raises:
            ModelError: if the model writes nothing but blank documents.
        """
        blank, number, size = 0, first, self.writing.batch_size
        while True:
            texts = [text for text in self._batch(number, advance, done) if text.strip()]
            blank = 0 if texts else blank + size
            if blank >= max(MOST_BLANK, size):
                raise ModelError(f"model: expected one that writes text, got {blank} documents without any; give text by --texts instead")
            done += len(texts)
            if advance:
                advance(min(done, self.writing.documents), "")
            yield number, texts
            number += 1

    def _batch(self, number: int, advance: Callable[[int, str], Any] | None, done: int) -> list[str]:
        size, most = self.writing.batch_size, self.writing.tokens
        drawn = [_numbers(self.writing.seed, number * size + place, most) for place in range(size)]
        begin = self.boundaries.begin
        words = self.boundaries.vocabulary
        starts = [words[int(first * len(words))] if begin is None else begin for first, _ in drawn]

        def at(step: int) -> None:
            if advance:
                written = min(done + size * step // most, self.writing.documents - 1)
                advance(written, f"token {step + 1} of {most}, {size} documents at a time")

        choose = _Choice(torch.stack([rest for _, rest in drawn]), self.writing.temperature, at)
        rows = self._generate(torch.tensor(starts), choose)
        return [self._text(row[begin is not None :]) for row in rows.tolist()]

    def _generate(self, starts: Tensor, choose: _Choice) -> Tensor:
        """``[b, 1 + t]`` from the first tokens ``[b]``; behind the end of a document stands an end token again and again."""
        from transformers import GenerationConfig, LogitsProcessorList

        ends = sorted(self.boundaries.ends)
        ids = starts.unsqueeze(1).to(input_device(self.model))
        options = {"max_new_tokens": self.writing.tokens, "do_sample": False, "use_cache": True}
        config = GenerationConfig(**options, eos_token_id=ends or None, pad_token_id=ends[0] if ends else None)
        mask = torch.ones_like(ids)  # else made of the pad token, which is the begin-of-text token of some models
        with evaluation_mode(self.model), _generation_config(self.model, config):
            try:
                rows: Tensor = self.model.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([choose]))
            except torch.OutOfMemoryError:
                raise ConfigurationError(
                    f"batch_size: expected documents that the device's memory holds at a time, got {len(ids)} of {self.writing.tokens} "
                    f"tokens; give {max(1, len(ids) // 2)}"
                ) from None
        return rows

    def _text(self, row: list[int]) -> str:
        """Of tokens, up to the end of the document."""
        end = next((place for place, token in enumerate(row) if token in self.boundaries.ends), None)
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text if end is not None else text.rstrip(_INCOMPLETE))


@dataclass(frozen=True)
class _Choice:
    """Chooses the next token of each document by a number of its own, as ``generate`` calls it: all others get no chance.

    Args:
        numbers: ``[b, t]`` float64 in [0, 1), one for each token that may come.
        temperature: of the distribution.
        at: called with the number of the step.
    """

    numbers: Tensor
    temperature: float
    at: Callable[[int], None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - 1
        self.at(step)
        chosen = token_at(scores, self.numbers[:, step], self.temperature)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen.to(scores.device), 0.0)


def token_at(logits: Tensor, numbers: Tensor, temperature: float = 1.0) -> Tensor:
    """The token at which the probabilities, added up in the order of the vocabulary, pass a number.

    Args:
        logits: ``[b, v]``.
        numbers: ``[b]`` float64 in [0, 1), on the CPU.
        temperature: by which logits are divided.

    Returns:
        ``[b, 1]`` int64, on the CPU; drawn exactly from the distribution where the numbers are uniform.

    Raises:
        ModelError: if a logit is not finite.

    >>> token_at(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0.4, 0.6]).double()).tolist()
    [[0], [1]]
    """
    shares = torch.softmax(logits.float().cpu() / temperature, dim=-1).double().cumsum(dim=-1)  # float32 would lose the rare ones
    whole = shares[:, -1]
    if not bool(torch.isfinite(whole).all()):
        raise ModelError("model: expected finite logits to draw from, got inf or nan; give --dtype float32")
    return torch.searchsorted(shares, (numbers * whole).unsqueeze(1), right=True).clamp_(max=logits.shape[1] - 1)


def check_positions(model: Any, writing: Writing) -> None:
    """Refuses documents that are longer than what the model takes.

    Raises:
        ConfigurationError: with the most that there is room for.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and writing.tokens >= positions:
        raise ConfigurationError(
            f"tokens: expected at most {positions - 1} behind the first, which the model has {positions} positions for, got "
            f"{writing.tokens}; give fewer"
        )


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    """This one for the model, whole: from its own ``generate`` takes whatever another leaves open, such as a penalty on repetition."""
    own = model.generation_config
    try:
        model.generation_config = config
        yield
    finally:
        model.generation_config = own


def _numbers(seed: int, document: int, tokens: int) -> tuple[float, Tensor]:
    """Uniform in [0, 1), float64: one for a first word, and ``[tokens]``."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{document}".encode()).digest()[:7])
    numbers = torch.rand(1 + tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(drawn))
    return float(numbers[0]), numbers[1:]
