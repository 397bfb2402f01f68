"""The begin-of-text token: where the tokenizer puts one before a text, every window of every set has it, and exactly one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from adapruner.data.bos import POLICIES, BosRule
from adapruner.data.documents import Document
from adapruner.data.from_texts import data_from_texts
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource
from adapruner.data.windows import joined_windows, pad_instructions, sample_windows
from adapruner.errors import ConfigurationError
from adapruner.evaluation.perplexity import describe_protocol

BOS, EOS = 0, 1
TEXTS = [Document("s", str(i), " ".join(f"w{(31 * i + j) % 2000}" for j in range(20 + i))) for i in range(12)]


class WithoutBos:
    """The same words from a tokenizer that puts nothing before a text."""

    def __init__(self, inner: Any, bos: int | None = BOS) -> None:
        self.inner, self.bos_token_id, self.bos_token = inner, bos, "<s>"
        self.eos_token_id, self.pad_token_id = EOS, 2

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        return {"input_ids": self.inner(text, add_special_tokens=False)["input_ids"]}


@pytest.mark.parametrize(
    ("policy", "puts_one", "expected"),
    [
        ("auto", True, BosRule(BOS, BOS, "<s>")),
        ("auto", False, BosRule()),
        ("every", True, BosRule(BOS, BOS, "<s>")),
        ("every", False, BosRule(BOS, BOS, "<s>")),
        ("first", True, BosRule()),
        ("none", True, BosRule(BOS)),
        ("none", False, BosRule(BOS)),
    ],
)
def test_the_rule_of_a_tokenizer(tokenizer: Any, policy: str, puts_one: bool, expected: BosRule) -> None:
    assert BosRule.of(tokenizer if puts_one else WithoutBos(tokenizer), policy) == expected


def test_what_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.bos: expected one of auto, every, first, none, got 'always'; name one"):
        BosRule.of(tokenizer, "always")
    with pytest.raises(ConfigurationError, match=r"data\.bos: expected a tokenizer with a BOS for 'every', got one without; give auto"):
        BosRule.of(WithoutBos(tokenizer, None), "every")
    assert BosRule.of(WithoutBos(tokenizer, None)) == BosRule()


@pytest.mark.parametrize("policy", POLICIES)
def test_windows_hold_the_text_in_order_and_one_bos_where_the_rule_says(tokenizer: Any, policy: str) -> None:
    rule = BosRule.of(tokenizer, policy)
    windows = sample_windows(TEXTS, tokenizer, 16, None, 3, bos=rule)
    assert windows.input_ids.shape[1] == 16
    every = policy in ("auto", "every")
    assert bool((windows.input_ids[:, 0] == BOS).all()) == every
    assert int((windows.input_ids == BOS).sum()) == (len(windows) if every else 0 if policy == "none" else len(TEXTS) - 1)
    stream = [t for d in TEXTS for t in [*rule.of_text(tokenizer(d.text)["input_ids"]), EOS]]
    for row in windows.input_ids.tolist():
        text = row[1:] if every else row
        assert any(stream[i : i + len(text)] == text for i in range(len(stream)))


def test_evaluation_windows_predict_their_first_word_too(tokenizer: Any) -> None:
    """By hand: the text without its BOS in runs of seven, a BOS before each; all seven words' bytes count."""
    rule = BosRule.of(tokenizer)
    windows = joined_windows(TEXTS, tokenizer, 8, bos=rule)
    stream = tokenizer("\n\n".join(d.text for d in TEXTS))["input_ids"][1:]
    expected = [[BOS, *stream[i : i + 7]] for i in range(0, len(stream) - 6, 7)]
    assert windows.input_ids.tolist() == expected
    text = "\n\n".join(d.text for d in TEXTS)
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"][1:]]
    borders = [0, *(ends[i + 6] for i in range(0, len(stream) - 6, 7))]
    assert windows.text_bytes is not None
    assert windows.text_bytes.tolist() == [b - a for a, b in itertools.pairwise(borders)]
    limited = joined_windows(TEXTS, tokenizer, 8, limit=3, bos=rule)
    assert limited.input_ids.tolist() == expected[:3]


def test_instructions_begin_with_one_and_do_not_count_their_prompt(tokenizer: Any) -> None:
    row = Document("i", "0", "w1 w2 w3 w4", prompt="w1 w2")
    plain = WithoutBos(tokenizer)
    for made_by, rule in ((tokenizer, BosRule.of(tokenizer)), (plain, BosRule.of(plain, "every"))):
        windows = pad_instructions([row], made_by, 8, None, 0, bos=rule)
        assert windows.input_ids[0, :6].tolist() == [BOS, 6, 7, 8, 9, EOS]
        assert windows.labels[0, :6].tolist() == [-100, -100, -100, 8, 9, EOS]
    bare = pad_instructions([row], tokenizer, 8, None, 0, bos=BosRule.of(tokenizer, "none"))
    assert bare.input_ids[0, :5].tolist() == [6, 7, 8, 9, EOS]


def test_every_set_of_a_run_has_it(tokenizer: Any) -> None:
    def source(start: int) -> TextSource:
        return TextSource(f"s{start}", texts=[" ".join(f"w{(start + 40 * i + j) % 2000}" for j in range(40)) for i in range(12)])

    sets = {
        policy: TextSets(
            CalibrationData([source(0)], 4, 16, other_seq_lens=[8]),
            SearchData([source(500)], 4, 16),
            RecoveryData([source(1000)], seq_len=16),
            [EvaluationSet("held", source(1500), [16])],
            bos=policy,
        ).build(tokenizer)
        for policy in ("auto", "first")
    }
    for policy, data in sets.items():
        pools = [*data.calibration_windows_at.values(), data.search_windows, data.recovery_windows, *data.evaluation_windows.values()]
        for windows in pools:
            assert bool((windows.input_ids[:, 0] == BOS).all()) == (policy == "auto")
            assert windows.begins_with == ("<s>" if policy == "auto" else None)
            assert windows.select([0]).begins_with == windows.begins_with
    assert sets["auto"].fingerprint != sets["first"].fingerprint
    assert data_from_texts({"a": [d.text for d in TEXTS]}, tokenizer, seq_len=16, search_seq_len=8).calibration_windows.begins_with == "<s>"


def test_the_protocol_says_it() -> None:
    assert "windows of 128 tokens, each beginning with <bos>, remainder" in describe_protocol("wiki", 128, 10, 1270, "<bos>")
    assert "windows of 128 tokens, remainder" in describe_protocol("wiki", 128, 10, 1270)


def test_a_model_that_needs_its_bos_is_judged_with_it(tokenizer: Any) -> None:
    """A model that is certain of the next word behind a BOS, and knows nothing without: 1 against 2005."""

    class NeedsBos(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            sure = torch.nn.functional.one_hot((input_ids + 1) % 2005, 2005) * 100.0
            knows = (input_ids[:, :1] == BOS) & (input_ids != BOS)
            return type("Output", (), {"logits": sure * knows[..., None]})

    from adapruner.evaluation.perplexity import evaluate_nll

    text = [Document("s", "0", " ".join(f"w{i}" for i in range(100)))]
    with_it, without = (
        evaluate_nll(NeedsBos(), joined_windows(text, tokenizer, 9, bos=BosRule.of(tokenizer, policy))).perplexity
        for policy in ("auto", "none")
    )
    assert without == pytest.approx(2005, rel=1e-3)
    assert with_it == pytest.approx(2005 ** (1 / 8), rel=1e-3)  # the first word of eight in each window is guessed
    assert math.isfinite(with_it)
