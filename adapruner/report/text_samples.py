"""The same few prompts continued by the dense, the pruned and the final model: what a perplexity is like to read.

Without prompts of the user's, passages of held-out text, from where a window of tokens begins. A sample is an extra: a model that does not
generate as others do loses its samples, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adapruner.data.windows import IGNORED
from adapruner.errors import AdaPrunerError
from adapruner.evaluation.generation import MOST_NEW_TOKENS, Decoding, continue_ids, encode_prompt
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
        return f"{which}, continued by up to {self.new} tokens, each the likeliest; {self.seconds:.1f} s of the run."

    def _continued(self, model: Any, prompt: Prompt) -> str:
        return "".join(continue_ids(model, self.tokenizer, prompt.ids, Decoding(self.new)))

    def _chosen(self, model: Any) -> list[Prompt]:
        if self.given is not None:
            return [Prompt(encode_prompt(model, self.tokenizer, words, self.new), words) for words in self.given]
        room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        found: list[Prompt] = []
        for ids in beginnings(self.windows):
            words = str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()
            if words and (room is None or len(ids) + self.new <= room) and words not in {prompt.words for prompt in found}:
                found.append(Prompt(ids[None], words))
            if len(found) == TEXTS:
                break
        return found


def beginnings(windows: Mapping[tuple[str, int], Any]) -> Iterator[Tensor]:
    """Token ids ``[t]`` at the beginning of evenly spread windows, set by set in turns; of instructions, all before the answer."""
    sets: dict[str, Any] = {}
    for (name, _), rows in windows.items():
        sets.setdefault(name, rows)  # a set at several lengths counts once
    for part in range(TEXTS):
        for rows in sets.values():
            if part < len(rows.input_ids):
                prompt = _beginning(rows[len(rows.input_ids) * part // TEXTS])
                if prompt is not None:
                    yield prompt


def _beginning(window: Mapping[str, Tensor]) -> Tensor | None:
    present = window["attention_mask"].bool()
    ids, counted = window["input_ids"][present], window["labels"][present] != IGNORED
    if not bool(counted.any()):
        return None
    asked = int(counted.int().argmax())
    if asked > 1:  # one may be the begin-of-text token
        return ids[:asked] if asked <= MOST_GIVEN else None
    return ids[: min(GIVEN, len(ids) // 2)] if len(ids) > 1 else None
