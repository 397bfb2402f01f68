"""The same few prompts continued by the dense, the pruned and the final model: what a perplexity is like to read.

Without prompts of the user's, passages of held-out text, from the first whole word of a window of tokens. What is shown begins and ends
with whole words. A sample is an extra: a model that does not generate as others do loses its samples, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapruner.data.windows import IGNORED
from adapruner.errors import AdaPrunerError
from adapruner.evaluation.generation import MOST_NEW_TOKENS, Decoding, Detokenizer, continue_ids, encode_prompt
from adapruner.progress import announce

#: Held-out texts that are continued, tokens of each that are given, and tokens that follow: a second on a small model.
TEXTS, GIVEN, NEW = 3, 16, 24
#: Of an instruction, whose answer alone counts: so many tokens at most, since half of it would be no prompt.
MOST_GIVEN = 96


@dataclass(frozen=True)
class Prompt:
    """Tokens ``[1, t]`` and how they read."""

    ids: Tensor
    words: str


class TextSamples:
    """Collects continuations stage by stage.

    Args:
        prompts: the user's, which have been checked; ``None`` takes passages of held-out text.
        tokenizer: of the model; without one there are no samples.
        windows: the evaluation windows by name and length.
    """

    def __init__(self, prompts: Sequence[str] | None, tokenizer: Any, windows: Mapping[tuple[str, int], Any]) -> None:
        self.given, self.tokenizer, self.windows = prompts, tokenizer, windows
        self.new = MOST_NEW_TOKENS if prompts is not None else NEW
        self.seconds = 0.0
        self._prompts: list[Prompt] = []
        self._texts: dict[str, list[str]] = {}

    def take(self, stage: str, model: Any) -> None:
        """Continues the prompts by the model as it is: first by the dense one, which says what it has room for."""
        if self.tokenizer is None or (stage != "dense" and not self._texts):
            return
        began = time.monotonic()
        try:
            if stage == "dense":
                self._prompts = self._chosen(model)
            if self._prompts:
                self._texts[stage] = [self._continued(model, prompt) for prompt in self._prompts]
        except (AdaPrunerError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if self.given is not None:
                raise
            self._texts = {}
            announce(f"no samples of text: the {stage} model does not generate ({' '.join(str(error).split()):.80})")
        self.seconds += time.monotonic() - began

    def to_report(self, last: str) -> list[dict[str, str]] | None:
        """Rows of ``prompt``, ``dense``, ``pruned`` and ``recovered``, which is the final model.

        Args:
            last: the stage at which the model left the run; one that left it as pruned is not shown twice.
        """
        stages = {"dense": "dense", **({} if last == "pruned" else {"pruned": "pruned"}), "final": "recovered"}
        shown = {name: self._texts[stage] for stage, name in stages.items() if stage in self._texts}
        if "recovered" not in shown:
            return None
        return [{"prompt": p.words, **{name: texts[n] for name, texts in shown.items()}} for n, p in enumerate(self._prompts)]

    def protocol(self) -> str:
        """What was continued and how, and what it cost."""
        count = len(self._prompts)
        which = "Prompts of report.prompts" if self.given is not None else f"{count} passage{'s' if count > 1 else ''} of held-out text"
        how = "each the likeliest, and shown up to the last whole word"
        return f"{which}, continued by up to {self.new} tokens, {how}; {self.seconds:.1f} s of the run."

    def _continued(self, model: Any, prompt: Prompt) -> str:
        ended: list[bool] = []  # one token more than is shown tells whether the last word is whole
        text = "".join(continue_ids(model, self.tokenizer, prompt.ids, Decoding(self.new + 1), ended=ended))
        return text if ended else to_last_word(text)

    def _chosen(self, model: Any) -> list[Prompt]:
        if self.given is not None:
            return [Prompt(encode_prompt(model, self.tokenizer, words, self.new), words) for words in self.given]
        room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        found: list[Prompt] = []
        for ids in beginnings(self.windows, self.tokenizer):
            words = str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()
            if words and (room is None or len(ids) + self.new <= room) and words not in {prompt.words for prompt in found}:
                found.append(Prompt(ids[None], words))
            if len(found) == TEXTS:
                break
        return found


def to_last_word(text: str) -> str:
    """A text that ran out of tokens, without its last word, which may be cut, and with a mark; one without spaces as it is.

    >>> to_last_word(" over the lazy do")
    ' over the lazy ...'
    """
    words = text.split()
    return f"{text.rstrip().removesuffix(words[-1]).rstrip() if words[1:] else text} ..."


def beginnings(windows: Mapping[tuple[str, int], Any], tokenizer: Any) -> Iterator[Tensor]:
    """Token ids ``[t]`` at the beginning of evenly spread windows, set by set in turns, whole words; of instructions, all before the
    answer."""
    sets: dict[str, Any] = {}
    for (name, _), rows in windows.items():
        sets.setdefault(name, rows)  # a set at several lengths counts once
    for part in range(TEXTS):
        for rows in sets.values():
            if part < len(rows.input_ids):
                prompt = _beginning(rows[len(rows.input_ids) * part // TEXTS], tokenizer)
                if prompt is not None:
                    yield prompt


def _beginning(window: Mapping[str, Tensor], tokenizer: Any) -> Tensor | None:
    present = window["attention_mask"].bool()
    ids, counted = window["input_ids"][present], window["labels"][present] != IGNORED
    if not bool(counted.any()):
        return None
    asked = int(counted.int().argmax())
    if asked > 1:  # one may be the begin-of-text token
        return ids[:asked] if asked <= MOST_GIVEN else None
    return _whole_words(ids, tokenizer) if len(ids) > 1 else None


def _whole_words(ids: Tensor, tokenizer: Any) -> Tensor:
    """The first tokens that are whole words, at most :data:`GIVEN` and half of all; where the tokens show no words, the first. What stands
    before a text, such as begin-of-text, stays."""
    special = set(tokenizer.all_special_ids)
    text = next((place for place, token in enumerate(ids.tolist()) if token not in special), 0)
    most = max(1, min(GIVEN, len(ids) // 2) - text)
    starts = [text + place for place in _word_starts(ids[text : text + 2 * most + 1].tolist(), tokenizer, special)]
    first = next((place for place in starts if place <= text + most), text)
    last = max((place for place in starts if first < place <= first + most), default=first + most)
    return torch.cat([ids[:text], ids[first:last]])


def _word_starts(tokens: list[int], tokenizer: Any, special: set[int]) -> list[int]:
    """Places of tokens that begin a word: white space is before them, or the end of another text.

    Each is decoded behind its neighbour, since a decoder may drop the space at the beginning of a text.
    """
    pieces = [Detokenizer(tokenizer, tokens[place - 1 : place] or tokens[1:2]).add(token) for place, token in enumerate(tokens)]
    spaced = [piece[:1].isspace() for piece in pieces]
    behind = [False, *(token in special or piece[-1:].isspace() for token, piece in zip(tokens, pieces, strict=True))]
    return [place for place, piece in enumerate(pieces) if piece and (spaced[place] or behind[place])]
