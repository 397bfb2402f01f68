"""Where a document begins and ends, for a model of any family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Special tokens that a tokenizer names, none of which is text: a document is over at any of them.
_NAMED = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")


@dataclass(frozen=True)
class Boundaries:
    """The token before a document, and those that end one."""

    begin: int | None
    """``None``: a word drawn from the vocabulary, which is then part of the text."""
    words: str
    """The former, in words."""
    ends: frozenset[int]
    """Empty for a model that never ends: its documents are all of full length."""
    vocabulary: tuple[int, ...] = ()
    """What a first word is drawn from, where there is no token to begin with."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Boundaries:
        """Those of a model and its tokenizer.

        A model without a begin-of-text token begins behind its end-of-text token, which stands between the documents that it has read;
        one without either begins with a word drawn from the vocabulary. A configuration may name tokens that the tokenizer does not (Qwen's
        does), but also the ids that a library fills in by default: only what the tokenizer knows as a special token is believed.

        Args:
            model: a causal LM of transformers.
            tokenizer: of the model.

        >>> from adapruner.models.loading import load_language_model, load_tokenizer
        >>> Boundaries.of(load_language_model("demo"), load_tokenizer("demo")).words
        "'<s>', the begin-of-text token"
        """
        special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
        rows = model.get_input_embeddings().num_embeddings
        begins = [tokenizer.bos_token_id, *(i for i in _configured(model, "bos_token_id") if i in special)]
        ends = [tokenizer.eos_token_id, *(i for i in _configured(model, "eos_token_id") if i in special)]
        over = {*ends, *begins, *(getattr(tokenizer, name, None) for name in _NAMED)}
        stops = frozenset(token for token in over if token is not None and token < rows)
        for kind, tokens in (("begin-of-text", begins), ("end-of-text", ends)):
            found = next((token for token in tokens if token in stops), None)
            if found is not None:
                return cls(found, f"{tokenizer.convert_ids_to_tokens(found)!r}, the {kind} token", stops)
        vocabulary = tuple(token for token in range(min(rows, len(tokenizer))) if token not in special)
        return cls(
            None, "a word drawn from the vocabulary, since the model has no begin-of-text and no end-of-text token", stops, vocabulary
        )


def _configured(model: Any, name: str) -> Iterator[int]:
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        value = getattr(config, name, None)
        yield from (token for token in (value if isinstance(value, list | tuple) else [value]) if isinstance(token, int))
