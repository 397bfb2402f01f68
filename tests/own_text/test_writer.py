"""What a model writes: from its own distribution, the same again, and without a trace in the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, ModelError
from adapruner.own_text.settings import Writing
from adapruner.own_text.writer import TextWriter, token_at
from adapruner.stages import load_model, write_texts
from tests.tiny import tiny_llama, word_tokenizer

from .writers import ending_at_once, padding_with_its_beginning, with_bos, without_any, without_bos

FAMILIES = [with_bos, without_bos, padding_with_its_beginning, without_any]


def slow_text(model: Any, tokenizer: Any, writer: TextWriter, document: int) -> str:
    """One document alone, the whole of it through the model again for every token, the same numbers."""
    from adapruner.own_text.writer import _numbers

    boundaries, (first, numbers) = writer.boundaries, _numbers(writer.writing.seed, document, writer.writing.tokens)
    ids = [boundaries.vocabulary[int(first * len(boundaries.vocabulary))] if boundaries.begin is None else boundaries.begin]
    for number in numbers.tolist():
        with torch.no_grad():
            shares = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(0)
        total, token = 0.0, -1
        while total <= number and token < len(shares) - 1:
            token += 1
            total += float(shares[token])
        if token in boundaries.ends:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[boundaries.begin is not None :], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_are_the_slow_loops(family: Any) -> None:
    model, tokenizer = family()
    writer = TextWriter(model, tokenizer, Writing(documents=12, tokens=20, batch_size=4, seed=3))
    expected = [text for number in range(40) if (text := slow_text(model, tokenizer, writer, number)).strip()]
    assert write_texts(model, tokenizer, 12, 20, batch_size=4, seed=3) == expected[:12]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_and_another_gives_another(family: Any) -> None:
    model, tokenizer = family()
    texts = write_texts(model, tokenizer, 10, 12, batch_size=4)
    torch.manual_seed(9)
    assert write_texts(model, tokenizer, 10, 12, batch_size=4) == texts
    assert write_texts(model, tokenizer, 10, 12, batch_size=4, seed=1) != texts
    assert write_texts(model, tokenizer, 6, 12, batch_size=4) == texts[:6]
    assert len(set(texts)) > 5
    assert not any(token in text for text in texts for token in ("<s>", "</s>", "<pad>", "<unk>"))


def test_the_model_is_left_as_it_was() -> None:
    """A model at training, whose dropout would draw, and write another text."""
    tokenizer, model = word_tokenizer(), tiny_llama(attention_dropout=0.5)
    texts = write_texts(model, tokenizer, 5, 8, batch_size=4)
    model.train()
    model.model.layers[1].eval()
    model.generation_config.repetition_penalty = 3.0
    torch.manual_seed(5)
    config, generation = model.config.to_dict(), model.generation_config
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes, said = {name: module.training for name, module in model.named_modules()}, generation.to_dict()
    assert write_texts(model, tokenizer, 5, 8, batch_size=4) == texts
    assert model.config.to_dict() == config
    assert model.generation_config is generation
    assert generation.to_dict() == said
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_checkpoints_own_settings_cut_nothing() -> None:
    model, tokenizer = with_bos()
    texts = write_texts(model, tokenizer, 5, 16, batch_size=4)
    for name, value in {"repetition_penalty": 5.0, "top_k": 2, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(4, 60))}.items():
        setattr(model.generation_config, name, value)
    assert write_texts(model, tokenizer, 5, 16, batch_size=4) == texts


def test_the_checkpoints_own_settings_are_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = with_bos()
    own = model.generation_config

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "generate", full)
    with pytest.raises(
        ConfigurationError, match=r"batch_size: expected documents that the device's memory holds .* got 8 of 8 tokens; give 4"
    ):
        write_texts(model, tokenizer, 5, 8, batch_size=8)
    assert model.generation_config is own


def test_documents_end_where_the_model_says_so() -> None:
    model, tokenizer = ending_at_once(0.25)
    lengths = torch.tensor([len(text.split()) for text in write_texts(model, tokenizer, 600, 64, batch_size=100)]).double()
    assert lengths.min() == 1  # none is blank: documents that end at once are left out
    assert lengths.mean() == pytest.approx(4.0, abs=0.6)  # geometric


def test_a_model_that_writes_nothing_is_refused() -> None:
    model, tokenizer = ending_at_once(1.0 - 1e-7)
    with pytest.raises(ModelError, match=r"model: expected one that writes text, got \d+ documents without any"):
        write_texts(model, tokenizer, 5, 8, batch_size=4)


def test_tokens_are_drawn_from_the_whole_distribution() -> None:
    logits = torch.tensor([[0.0, 3.0, -torch.inf, 1.0, -9.0]])
    numbers = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.5):
        drawn = token_at(logits.expand(len(numbers), -1), numbers, temperature).flatten()
        shares = torch.bincount(drawn, minlength=5).double() / len(numbers)
        assert shares.tolist() == pytest.approx((logits[0].double() / temperature).softmax(0).tolist(), abs=0.004)
        assert shares[2] == 0
        assert shares[4] > 0


def test_rare_tokens_are_not_lost_to_rounding() -> None:
    """A hundred thousand tokens that share one part of a million: float32 would add them up to nothing, or to twice as much."""
    logits = torch.full((1, 100_001), -25.33)
    logits[0, 0] = 0.0
    rare = logits[0].double().softmax(0)[1:].sum()
    numbers = torch.linspace(1 - 2 * float(rare), 1 - 1e-12, 1000, dtype=torch.float64)
    share = (token_at(logits.expand(1000, -1), numbers) > 0).double().mean()
    assert share == pytest.approx(0.5, abs=0.01)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="model: expected finite logits to draw from, got inf or nan"):
        token_at(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.5]).double())


def test_a_character_that_is_cut_is_left_out() -> None:
    from adapruner.models.loading import load_language_model, load_tokenizer

    model, tokenizer = load_language_model("demo"), load_tokenizer("demo")
    writer = TextWriter(model, tokenizer, Writing())
    face = tokenizer("a \N{GRINNING FACE}", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(face[:-1]).endswith("\N{REPLACEMENT CHARACTER}")
    assert writer._text(face[:-1]) == "a "
    assert writer._text(face) == "a \N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"documents": 0}, "documents: expected 1 or more, got 0; give 640"),
        ({"tokens": 0}, "tokens: expected 1 or more, got 0; give 256"),
        ({"tokens": 256}, r"tokens: expected at most 255 behind the first, which the model has 256 positions for, got 256; give fewer"),
        ({"temperature": 0.0}, r"temperature: expected a number above 0, got 0\.0; give 1, the model's own distribution"),
        ({"temperature": float("nan")}, "temperature: expected a number above 0, got nan"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0; give 32"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to 2\*\*32 - 1, got -1"),
        ({"documents": "many"}, "documents: expected a whole number, got 'many'"),
        ({"tokenizer": 3}, "tokenizer: expected the tokenizer of the model, got 3"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        write_texts(tiny_llama(), **{"tokenizer": word_tokenizer(), "documents": 2, "tokens": 4, **options})


def test_weights_that_are_no_numbers_are_refused() -> None:
    model, tokenizer = with_bos()
    with torch.no_grad():
        model.lm_head.weight[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"model: expected finite weights, got nan in lm_head\.weight"):
        write_texts(model, tokenizer, 2, 4)


def test_model_and_tokenizer_may_be_a_path_or_a_name(tmp_path: Path) -> None:
    model, tokenizer = load_model("demo")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = write_texts(model, tokenizer, 2, 4)
    assert write_texts(tmp_path, None, 2, 4) == written
    assert write_texts(model, str(tmp_path), 2, 4) == written
    assert write_texts(str(tmp_path), tmp_path, 2, 4) == written
