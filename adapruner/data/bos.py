"""The begin-of-text token (BOS) of a window: models that were always given one are judged wrongly without it.

Gemma-3-270M has a perplexity of 24.7 with its BOS before every window, and of 162 where only the first window of a text has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapruner.errors import ConfigurationError

if TYPE_CHECKING:  # what a source is, is judged before torch is loaded
    from torch import Tensor

#: ``auto``: ``every`` where the tokenizer puts a BOS before a text, else ``first``. ``every``: each window begins with it. ``first``: as
#: the tokenizer has it, at the start of a text only, which is LLM-Pruner's protocol (arXiv 2305.11627). ``none``: nowhere.
POLICIES: tuple[str, ...] = ("auto", "every", "first", "none")


def check_policy(policy: str) -> None:
    """Refuses a policy that there is not.

    Raises:
        ConfigurationError: if it is none of :data:`POLICIES`.
    """
    if policy not in POLICIES:
        raise ConfigurationError(f"data.bos: expected one of {', '.join(POLICIES)}, got {policy!r}; name one of them")


@dataclass(frozen=True)
class BosRule:
    """What happens to the BOS of texts and windows; the default leaves a text as its tokenizer makes it."""

    taken_off: int | None = None
    """Token that is taken off the start of every text."""
    begins: int | None = None
    """Token that every window begins with."""
    words: str | None = None
    """The latter as the vocabulary has it."""

    @classmethod
    def of(cls, tokenizer: Any, policy: str = "auto") -> BosRule:
        """The rule for a tokenizer.

        Raises:
            ConfigurationError: if the policy is unknown, or ``every`` and the tokenizer has no BOS.

        >>> from adapruner.models.loading import load_tokenizer
        >>> BosRule.of(load_tokenizer("demo"))
        BosRule(taken_off=0, begins=0, words='<s>')
        """
        check_policy(policy)
        if tokenizer is None or policy == "first":
            return cls()
        token = getattr(tokenizer, "bos_token_id", None)
        if token is None:
            if policy == "every":
                raise ConfigurationError("data.bos: expected a tokenizer with a BOS for 'every', got one without; give auto")
            return cls()
        puts_one = list(tokenizer("a")["input_ids"][:1]) == [token]
        if policy == "none":
            return cls(taken_off=token)
        return cls(token, token, str(tokenizer.bos_token)) if puts_one or policy == "every" else cls()

    def of_text(self, ids: Any) -> list[int]:
        """A text's tokens without the BOS that windows get instead."""
        return [*ids[1:]] if self.taken_off is not None and len(ids) and ids[0] == self.taken_off else [*ids]

    def room(self, seq_len: int) -> int:
        """Tokens of text in a window ``[seq_len]``."""
        return seq_len - (self.begins is not None)

    def windows(self, tokens: Tensor) -> Tensor:
        """``[n, seq_len]`` from text ``[n, room]``."""
        if self.begins is None:
            return tokens
        import torch

        return torch.cat([tokens.new_full((len(tokens), 1), self.begins), tokens], dim=1)
