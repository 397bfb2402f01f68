"""Text in pieces against the text as a whole."""

from __future__ import annotations

from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import generate_text
from adapruner.evaluation.streaming import Decoding, Detokenizer, stream_text
from tests.tiny import tiny_llama, word_tokenizer

TEXT = "naïve 東京 🙂🙂 done\n\twell, the  end "


@pytest.fixture(scope="module")
def demo_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from adapruner.demo import MODEL_FOLDER

    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.mark.parametrize("prompt", ["w1 w2 w3", "w50"])
def test_greedy_pieces_are_the_greedy_text(prompt: str) -> None:
    model, tokenizer = tiny_llama().train(), word_tokenizer()
    pieces = list(stream_text(model, tokenizer, prompt, Decoding(max_new_tokens=9)))
    assert ["".join(pieces)] == generate_text(model, tokenizer, [prompt], max_new_tokens=9)
    assert len(pieces) > 3
    assert model.training


def test_characters_come_whole(demo_tokenizer: Any) -> None:
    known, tokens = demo_tokenizer("A start:")["input_ids"], demo_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(tokens) > len(TEXT) / 3
    text = Detokenizer(demo_tokenizer, known)
    pieces = [text.add(token) for token in tokens]
    assert "".join(pieces) + text.rest() == demo_tokenizer.decode([*known, *tokens])[len(demo_tokenizer.decode(known)) :]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "" in pieces  # the bytes of one character


def test_what_is_cut_in_the_middle_of_a_character_is_not_lost(demo_tokenizer: Any) -> None:
    tokens = demo_tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1
    text = Detokenizer(demo_tokenizer, demo_tokenizer("a")["input_ids"])
    assert text.add(tokens[0]) == ""
    assert text.rest() == "\N{REPLACEMENT CHARACTER}"


def test_drawn_text_depends_on_the_seed_alone() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()

    def text(seed: int, temperature: float = 2.0) -> str:
        return "".join(stream_text(model, tokenizer, "w1 w2", Decoding(max_new_tokens=12, temperature=temperature, seed=seed)))

    assert text(0) == text(0)
    assert len({text(seed) for seed in range(4)}) > 1
    assert text(0, temperature=1e-4) == generate_text(model, tokenizer, ["w1 w2"], max_new_tokens=12)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"generation.max_new_tokens: expected 1 or more, got 0"),
        ({"temperature": -1.0}, r"generation.temperature: expected 0 or more, got -1.0"),
        ({"temperature": float("nan")}, r"generation.temperature: expected 0 or more, got nan"),
    ],
)
def test_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Decoding(**options)
