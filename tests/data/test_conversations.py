"""Conversations; the oracle of what counts is transformers' own mask, for a template that marks what the assistant says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.data.calibration_set import make_set
from adapruner.data.conversations import check_messages, encode_conversation, render_conversation
from adapruner.data.documents import Document
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.from_texts import data_from_texts, windows_from_texts
from adapruner.data.sets import EvaluationSet
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.windows import IGNORED, pad_instructions
from adapruner.errors import DataError

from .words import numbered_word_tokenizer

#: Every turn begins with ``w1`` and its role, and ends with ``w2``; the assistant's words and end are marked.
MARKED = (
    "{% for m in messages %}w1 {{ {'system': 'w10', 'user': 'w11', 'assistant': 'w12'}[m.role] }} "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} w2{% endgeneration %} {% else %}{{ m.content }} w2 {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}w1 w12 {% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
NO_SYSTEM = "{% if messages and messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
#: Thoughts (``w666``) of all turns but the last are left out, as templates of thinking models do.
FORGETS = PLAIN.replace("{{ m.content }} w2 {% else", "{{ m.content if loop.last else m.content | replace('w666 ', '') }} w2 {% else")
BEGINS = "{{ bos_token }} " + PLAIN

TURNS = [
    {"role": "system", "content": "w20 w21"},
    {"role": "user", "content": "w30 w31 w32"},
    {"role": "assistant", "content": "w40 w41"},
    {"role": "user", "content": "w33"},
    {"role": "assistant", "content": "w42 w43 w44"},
]


def tokenizer_with(template: str | None) -> Any:
    tokenizer = numbered_word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def conversations(count: int, start: int = 0) -> list[list[dict[str, str]]]:
    """Different ones of two turns each."""
    words = [" ".join(f"w{100 + (start + i) * 7 + j}" for j in range(6)) for i in range(2 * count)]
    return [[{"role": "user", "content": words[2 * i]}, {"role": "assistant", "content": words[2 * i + 1]}] for i in range(count)]


def counted(ids: list[int], uncounted: list[tuple[int, int]]) -> list[int]:
    """1 where a token counts."""
    return [int(not any(start <= i < end for start, end in uncounted)) for i in range(len(ids))]


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[1:3], [*TURNS, TURNS[1]], TURNS[2:]])
def test_what_the_assistant_says_counts(turns: list[dict[str, str]]) -> None:
    oracle = tokenizer_with(MARKED).apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    tokenizer = tokenizer_with(PLAIN)
    ids, uncounted = encode_conversation(turns, tokenizer, "here", WindowDrawer(tokenizer, 0, bos="first").bos)
    assert ids == oracle["input_ids"]
    expected = list(oracle["assistant_masks"])
    if turns[0]["role"] == "assistant":  # the library renders no words that ask for a first turn: its beginning counts, too
        expected[:2] = [1, 1]
    assert counted(ids, uncounted) == expected


def test_a_turn_that_is_written_otherwise_later_counts_up_to_there() -> None:
    turns = [*TURNS[1:2], {"role": "assistant", "content": "w40 w666 w41"}, *TURNS[3:]]
    tokenizer = tokenizer_with(FORGETS)
    ids, uncounted = encode_conversation(turns, tokenizer, "here", WindowDrawer(tokenizer, 0, bos="first").bos)
    says = [f"w{i - 5}" for i, counts in zip(ids, counted(ids, uncounted), strict=True) if counts]
    assert says == ["w40", "w42", "w43", "w44", "w2"]


def test_thoughts_that_only_the_last_turn_has_hide_no_earlier_answer() -> None:
    """As Qwen3's template, which opens and closes a thought in the last turn alone."""
    template = PLAIN.replace("{{ m.content }} w2 {% else", "{{ 'w700 w701 ' if loop.last else '' }}{{ m.content }} w2 {% else")
    for turns, expected in ((TURNS, "w40 w41 w2 w700 w701 w42 w43 w44 w2"), ([*TURNS, TURNS[1]], "w40 w41 w2 w42 w43 w44 w2")):
        tokenizer = tokenizer_with(template)
        ids, uncounted = encode_conversation(turns, tokenizer, "here", WindowDrawer(tokenizer, 0, bos="first").bos)
        assert " ".join(f"w{i - 5}" for i, counts in zip(ids, counted(ids, uncounted), strict=True) if counts) == expected


@pytest.mark.parametrize("template", [PLAIN, BEGINS])
@pytest.mark.parametrize("bos", ["auto", "none"])
def test_a_window_begins_with_one_bos(template: str, bos: str) -> None:
    tokenizer = tokenizer_with(template)
    drawer = WindowDrawer(tokenizer, 0, bos=bos)
    windows = pad_instructions([Document("s", "0", "text", messages=TURNS)], tokenizer, 40, None, 0, bos=drawer.bos)
    ids = windows.input_ids[0][windows.attention_mask[0].bool()].tolist()
    assert ids.count(0) == (bos == "auto")
    assert ids[0] == (0 if bos == "auto" else 6)
    labels = windows.labels[0]
    assert [f"w{i - 5}" for i in labels[labels != IGNORED].tolist()] == ["w40", "w41", "w2", "w42", "w43", "w44", "w2"]


def test_a_long_conversation_is_cut_and_one_that_counts_nothing_is_left_out() -> None:
    tokenizer = tokenizer_with(PLAIN)
    documents = [Document("s", str(n), "text", messages=turns) for n, turns in enumerate((TURNS, TURNS[1:3]))]
    windows = pad_instructions(documents, tokenizer, 10, None, 0)
    assert [windows.source_names, len(windows)] == [["s"], 1]
    assert (windows.labels[0] != IGNORED).nonzero().flatten().tolist() == [8, 9]  # after w1 w11 w30 w31 w32 w2 w1 w12


def test_rows_of_a_file_are_read_with_the_column_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join(json.dumps({"messages": turns, "talk": turns[:2]}) for turns in conversations(4)))
    documents = list(read_documents(TextSource("chat", path=str(file), chat=True)))
    assert [document.messages for document in documents] == conversations(4)
    assert documents[0] == Document(
        "chat", "chat.jsonl#0", "\n\n".join(m["content"] for m in conversations(1)[0]), messages=conversations(1)[0]
    )
    assert [d.hash for d in documents] == [Document("", "", d.text).hash for d in documents]
    assert list(read_documents(TextSource("chat", path=str(file), chat=True, column="talk"))) == documents
    with pytest.raises(DataError, match=r"expected a column 'text' in 'chat\.jsonl', got the columns messages, talk; give chat: true"):
        list(read_documents(TextSource("chat", path=str(file))))


def test_an_evaluation_joins_what_the_template_writes() -> None:
    tokenizer = tokenizer_with(BEGINS)
    given = conversations(5)
    drawer = WindowDrawer(tokenizer, 0, bos="first")
    (windows,) = drawer.joined(EvaluationSet("chat", TextSource("chat", texts=given, chat=True), [10])).values()  # type: ignore[arg-type]
    whole = [0]
    for turns in given:
        whole += tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"][1:]
    assert windows.input_ids.flatten().tolist() == whole[: len(whole) // 10 * 10]


@pytest.mark.parametrize("form", ["lists", "data set"])
def test_python_takes_conversations_as_they_are(form: str) -> None:
    import datasets

    tokenizer, given = tokenizer_with(PLAIN), conversations(40)
    value: Any = given if form == "lists" else datasets.Dataset.from_dict({"messages": given})
    windows = windows_from_texts(value, tokenizer, seq_len=24)
    assert len(windows) == 40
    assert {int((labels != IGNORED).sum()) for labels in windows.labels} == {7}
    data = data_from_texts({"chat": value}, tokenizer, seq_len=24, search_seq_len=24)
    assert len(data.calibration_windows) + len(data.search_windows) == 40
    assert not data.calibration_windows.documents & data.search_windows.documents


def test_a_calibration_set_keeps_which_turns_count(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(PLAIN)
    documents = [Document("s", str(n), f"text {n}", messages=turns) for n, turns in enumerate((TURNS, *conversations(3)))]
    pool = pad_instructions(documents, tokenizer, 30, None, 0)
    made = make_set(pool, tokenizer, torch.ones(4), model_name="tiny", model_fingerprint="f00d")
    assert made.samples[0].later_prompts == [[16, 22]]
    again, _ = made.to_windows(tokenizer, 30)
    assert torch.equal(again.input_ids, pool.input_ids)
    assert torch.equal(again.labels, pool.labels)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("words", "expected messages as a list of objects, got 'words'; convert it"),
        ([], r"expected messages as a list of objects, got \[\]"),
        (["words"], "expected messages as a list of objects"),
        ([{"from": "human", "value": "w1"}], "expected role and content as text in every message, got from str, value str; convert it"),
        ([{"role": "user", "content": ["w1"]}], "expected role and content as text in every message, got role str, content list"),
        ([{"role": "user", "content": "w1"}], "expected an answer of the assistant, got the roles user; drop the row"),
        ([{"role": "assistant", "content": " "}], "expected an answer of the assistant"),
    ],
)
def test_what_is_no_conversation(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^here: {message}"):
        check_messages(value, "here")
    with pytest.raises(DataError, match=f"source 'own': position 0: {message}"):
        read_documents(TextSource("own", texts=[value], chat=True))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "expected a tokenizer with a chat template, got none; give chat: false and a column of text"),
        (NO_SYSTEM, "got 'System role not supported'; put what the system says into the first message of the user"),
        ("{{ messages[0].missing.deeper }}", "expected a conversation .*, got .*'missing'.*; convert or drop the row"),
        ("{% for", "expected a conversation that the model's chat template takes, got "),
    ],
)
def test_what_a_template_refuses_is_one_line(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{message}") as caught:
        render_conversation(TURNS, tokenizer_with(template), "here")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^data, recovery, source 'texts': texts#0: expected "):
        WindowDrawer(tokenizer_with(template), 0).each("recovery", [TextSource("texts", texts=[TURNS], chat=True)], 30, None)  # type: ignore[list-item]
