"""Greedy text against the obvious loop without a cache; text in pieces against the text as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.generation import Decoding, Detokenizer, generate_text, stream_text
from tests.tiny import tiny_llama, word_tokenizer

PROMPTS = ["the cat sat", "a dog", "on the mat the"]
WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "fast", "slow", "and", "then", "it", "was"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")


@pytest.fixture
def model(tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=0.5, eos_token_id=0, bos_token_id=None)
    return AutoModelForCausalLM.from_config(config)


def slow_tokens(model: Any, tokenizer: Any, prompt: str, steps: int) -> list[int]:
    """The whole text through the model again for every token."""
    ids = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    for _ in range(steps):
        new.append(int(model.eval()(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
    return new


def test_text_is_the_slow_loops_and_the_mode_is_restored(model: Any, tokenizer: Any) -> None:
    expected = [slow_tokens(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    expected = [tokens[: tokens.index(0)] if 0 in tokens else tokens for tokens in expected]
    expected = [[token for token in tokens if token != tokenizer.unk_token_id] for tokens in expected]  # special: left out of the text
    model.train()
    texts = generate_text(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert [tokenizer(text)["input_ids"] for text in texts] == expected
    assert any(expected)
    assert model.training
    assert generate_text(model, tokenizer, PROMPTS, max_new_tokens=12) == texts
    assert [generate_text(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS] == texts


def test_checkpoints_generation_settings_do_not_matter_but_its_end_tokens_do(model: Any, tokenizer: Any) -> None:
    before = generate_text(model, tokenizer, PROMPTS, max_new_tokens=8)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    assert generate_text(model, tokenizer, PROMPTS, max_new_tokens=8) == before
    longest = max(range(len(PROMPTS)), key=lambda i: len(tokenizer(before[i])["input_ids"]))
    tokens = tokenizer(before[longest])["input_ids"]
    model.generation_config.eos_token_id = [0, tokens[-1]]
    shorter = generate_text(model, tokenizer, [PROMPTS[longest]], max_new_tokens=8)[0]
    assert len(tokens) > 1
    assert tokenizer(shorter)["input_ids"] == tokens[: tokens.index(tokens[-1])]


def test_bad_arguments_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_new_tokens: expected a positive integer, got 0"):
        generate_text(model, tokenizer, PROMPTS, max_new_tokens=0)
    with pytest.raises(DataError, match="prompts: expected at least one token in each, got none from ''"):
        generate_text(model, tokenizer, ["a", ""], max_new_tokens=1)
    with pytest.raises(ConfigurationError, match="expected at most 29 after a prompt of 3 tokens, got 30"):
        generate_text(model, tokenizer, PROMPTS, max_new_tokens=30)


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
