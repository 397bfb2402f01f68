"""Where documents begin and end, by family."""

from __future__ import annotations

from typing import Any

import pytest

from adapruner.own_text.boundaries import Boundaries

from .writers import padding_with_its_beginning, with_bos, without_any, without_bos


@pytest.mark.parametrize(
    ("family", "begin", "words", "ends"),
    [
        (with_bos, 0, "'<s>', the begin-of-text token", {0, 1, 2, 3}),
        (without_bos, 1, "'</s>', the end-of-text token", {1, 2, 3}),
        (padding_with_its_beginning, 1, "'</s>', the begin-of-text token", {1, 3}),
        (without_any, None, "a word drawn from the vocabulary, since", set()),
    ],
)
def test_families(family: Any, begin: int | None, words: str, ends: set[int]) -> None:
    found = Boundaries.of(*family())
    assert (found.begin, set(found.ends)) == (begin, ends)
    assert found.words.startswith(words)


def test_a_configuration_may_name_what_the_tokenizer_does_not() -> None:
    """Qwen's has its end-of-text token as the model's begin-of-text token; the end of a turn is no end of a text that has no turns."""
    model, tokenizer = without_bos()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>", "<turn>"]})
    new, turn = tokenizer.convert_tokens_to_ids(["<new>", "<turn>"])
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = new, [1, turn]
    found = Boundaries.of(model, tokenizer)
    assert found.begin == new
    assert {1, new, turn} <= found.ends


def test_an_id_beyond_the_embedding_is_no_boundary() -> None:
    model, tokenizer = without_bos()
    tokenizer.add_special_tokens({"bos_token": "<late>"})  # 96, of 96 rows
    assert Boundaries.of(model, tokenizer).begin == 1


def test_a_first_word_is_no_special_token() -> None:
    model, tokenizer = without_any()
    tokenizer.add_special_tokens({"additional_special_tokens": ["w0", "w5"]})
    words = Boundaries.of(model, tokenizer).vocabulary
    assert {4, 9} & set(words) == set()
    assert max(words) < 96
    assert len(words) >= 90
