"""Continuations of the same prompts stage by stage, on a tiny model of words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.evaluation.generation import Decoding, continue_ids
from adapruner.report.answer import final_words
from adapruner.report.schema import validate_report
from adapruner.report.text_samples import GIVEN, MOST_GIVEN, NEW, TEXTS, TextSamples, beginnings
from tests.report.sample import sample_report
from tests.tiny import random_windows, tiny_llama, word_tokenizer


def windows(count: int = 9, seq_len: int = 40, seed: int = 1) -> Any:
    return random_windows(count, seq_len, seed=seed)


def other_llama() -> Any:
    """With other weights."""
    model = tiny_llama()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_beginnings_of_held_out_text_are_continued_as_anybody_would() -> None:
    model, other, tokenizer, held_out = tiny_llama(), other_llama(), word_tokenizer(), windows()
    samples = TextSamples(None, tokenizer, {("some", 40): held_out})
    for stage, of in (("dense", model), ("pruned", other), ("final", model)):
        samples.take(stage, of)
    rows = samples.to_report("recovered")
    assert rows is not None
    assert len(rows) == TEXTS
    for row, number in zip(rows, (0, 3, 6), strict=True):  # spread over the set
        ids = held_out.input_ids[number, :GIVEN]
        assert row["prompt"] == tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        assert row["dense"] == row["recovered"] == "".join(continue_ids(model, tokenizer, ids[None], Decoding(NEW)))
    assert any(row["pruned"] != row["dense"] for row in rows)
    assert samples.protocol().startswith("3 passages of held-out text, continued by up to 24 tokens, each the likeliest; ")
    assert samples.seconds > 0
    shown_once = samples.to_report("pruned")
    assert shown_once is not None
    assert "pruned" not in shown_once[0]  # the final model is that one


def test_sets_take_turns_and_one_at_several_lengths_counts_once() -> None:
    first, second = windows(2, 20, seed=1), windows(5, 20, seed=2)
    found = list(beginnings({("a", 20): first, ("a", 40): windows(5, 40, seed=3), ("b", 20): second}))
    expected = [first.input_ids[0], second.input_ids[0], first.input_ids[0], second.input_ids[1], second.input_ids[3]]
    assert [ids.tolist() for ids in found] == [ids[:10].tolist() for ids in expected]  # half of a short window


def test_of_an_instruction_all_that_is_asked_is_given() -> None:
    rows = windows(3, 120)
    rows.labels[0, :30], rows.labels[1, : MOST_GIVEN + 1], rows.labels[2, :1] = -100, -100, -100
    rows.attention_mask[2, 8:] = 0
    assert [len(ids) for ids in beginnings({("chat", 120): rows})] == [30, 4]  # the long question is left out; half of 8 tokens
    rows.labels[:] = -100
    assert list(beginnings({("chat", 120): rows})) == []


def test_a_model_without_room_or_text_or_tokenizer_has_none() -> None:
    model = tiny_llama(max_position_embeddings=GIVEN + NEW - 1)
    for tokenizer, held_out in ((word_tokenizer(), {("a", 40): windows()}), (word_tokenizer(), {}), (None, {("a", 10): windows(3, 10)})):
        samples = TextSamples(None, tokenizer, held_out)
        samples.take("dense", model)
        samples.take("final", model)
        assert samples.to_report("recovered") is None


def test_a_model_that_does_not_generate_loses_its_samples_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    samples = TextSamples(None, word_tokenizer(), {("a", 40): windows()})
    samples.take("dense", tiny_llama())
    samples.take("pruned", Odd())
    samples.take("final", tiny_llama())
    assert samples.to_report("recovered") is None
    assert "no samples of text: the pruned model does not generate (" in capsys.readouterr().out
    asked = TextSamples(["w1 w2"], word_tokenizer(), {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_cache'"):  # what was asked for is not left out in silence
        asked.take("dense", Odd())


def test_the_user_s_prompts_are_taken_as_they_are() -> None:
    samples = TextSamples(["w1 w2 w3"], word_tokenizer(), {("a", 40): windows()})
    samples.take("dense", tiny_llama())
    samples.take("final", tiny_llama())
    rows = samples.to_report("reconstructed")
    assert rows is not None
    assert [row["prompt"] for row in rows] == ["w1 w2 w3"]
    assert samples.protocol().startswith("Prompts of report.prompts, continued by up to 40 tokens")


def test_what_the_final_model_is_called() -> None:
    record = sample_report()
    assert final_words(validate_report(record)) == "after recovery"
    record["recovery"]["lora"] = None
    assert final_words(validate_report(record)) == "after the refit"
    record["recovery"] = None
    assert final_words(validate_report(record)) == "pruned"
