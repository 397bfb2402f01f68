"""Continuations of the same prompts stage by stage, on a tiny model of words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.data.windows import TextWindows
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
        ended: list[bool] = []
        text = "".join(continue_ids(model, tokenizer, ids[None], Decoding(NEW), ended=ended))
        assert row["dense"] == row["recovered"] == (text if ended else f"{text} ...")
    assert any(row["pruned"] != row["dense"] for row in rows)
    assert samples.protocol().startswith(
        "3 passages of held-out text, continued by up to 24 tokens, each the likeliest, and shown up to the last whole word; "
    )
    assert samples.seconds > 0
    shown_once = samples.to_report("pruned")
    assert shown_once is not None
    assert "pruned" not in shown_once[0]  # the final model is that one


def test_sets_take_turns_and_one_at_several_lengths_counts_once() -> None:
    first, second = windows(2, 20, seed=1), windows(5, 20, seed=2)
    found = list(beginnings({("a", 20): first, ("a", 40): windows(5, 40, seed=3), ("b", 20): second}, word_tokenizer()))
    expected = [first.input_ids[0], second.input_ids[0], first.input_ids[0], second.input_ids[1], second.input_ids[3]]
    assert [ids.tolist() for ids in found] == [ids[:10].tolist() for ids in expected]  # half of a short window


def test_of_an_instruction_all_that_is_asked_is_given() -> None:
    rows = windows(3, 120)
    rows.labels[0, :30], rows.labels[1, : MOST_GIVEN + 1], rows.labels[2, :1] = -100, -100, -100
    rows.attention_mask[2, 8:] = 0
    assert [len(ids) for ids in beginnings({("chat", 120): rows}, word_tokenizer())] == [
        30,
        4,
    ]  # the long question is left out; half of 8 tokens
    rows.labels[:] = -100
    assert list(beginnings({("chat", 120): rows}, word_tokenizer())) == []


def one_window(ids: torch.Tensor) -> TextWindows:
    return TextWindows(ids[None], ids[None].clone(), torch.ones_like(ids[None]), ["a"], torch.zeros(1, dtype=torch.long), ["a"])


TEXT = "Counting unbelievably extraordinary tokenization boundaries, repeatedly misunderstood internationalization. " * 4


@pytest.mark.parametrize("kind", ["byte pairs", "metaspace"])
@pytest.mark.parametrize("begin", [False, True])
def test_passages_begin_and_end_with_whole_words(kind: str, begin: bool) -> None:
    """At whatever place of a word the window was cut; what stands before the text stays."""
    tokenizer = of_pieces(kind)
    ids = tokenizer(TEXT)["input_ids"]
    cut = 0
    for start in range(12):
        row = torch.tensor([*([tokenizer.bos_token_id] if begin else []), *ids[start : start + 60]])
        (found,) = beginnings({("a", 60): one_window(row)}, tokenizer)
        assert (int(found[0]) == tokenizer.bos_token_id) is begin
        assert 1 < len(found) <= GIVEN
        words = tokenizer.decode(found.tolist(), skip_special_tokens=True).split()
        assert words
        assert set(words) <= set(TEXT.split())
        cut += tokenizer.decode(ids[start : start + GIVEN]).split()[0] not in TEXT.split()
    assert cut > 3  # the first tokens alone would have been parts of words


def of_pieces(kind: str) -> Any:
    """A tokenizer that knows nearly no word as a whole, with spaces in front of tokens, as GPT-2's or as Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = (
        (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
        if kind == "byte pairs"
        else (pre_tokenizers.Metaspace(), decoders.Metaspace())
    )
    inner.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def test_text_without_spaces_is_taken_from_its_beginning() -> None:
    tokenizer = of_pieces("byte pairs")
    ids = torch.tensor(tokenizer("internationalization" * 9)["input_ids"])[:40]
    (found,) = beginnings({("a", 40): one_window(ids)}, tokenizer)
    assert found.tolist() == ids[:GIVEN].tolist()


def test_a_text_that_the_model_ends_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(model: Any, tokenizer: Any, ids: Any, decoding: Decoding, *, ended: list[bool]) -> Any:
        assert decoding.max_new_tokens == NEW + 1
        ended.append(True)
        yield " all of it"

    monkeypatch.setattr("adapruner.report.text_samples.continue_ids", ends)
    samples = TextSamples(None, word_tokenizer(), {("some", 40): windows()})
    samples.take("dense", tiny_llama())
    samples.take("final", tiny_llama())
    assert [row["dense"] for row in samples.to_report("recovered") or ()] == [" all of it"] * TEXTS


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
