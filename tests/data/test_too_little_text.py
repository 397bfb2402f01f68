"""Too little text: what is said is true, which is tried by giving as much as it asks for; for every set, from files and from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adapruner.data.from_texts import data_from_texts
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.too_little_text import TooLittleTextError, fewest_documents
from adapruner.errors import DataError

#: Set -> the arguments of the Python API that ask it for four windows of 16 tokens, or one.
ROLES: dict[str, dict[str, Any]] = {
    "calibration": {"samples_per_source": 4, "seq_len": 16},
    "search": {"search_samples": 4, "search_seq_len": 16},
    "reconstruction": {"reconstruction_samples": 4, "seq_len": 16},
    "recovery": {"recovery_seq_len": 16},
    "evaluation": {"window": 16},
}


def words(start: int, count: int) -> str:
    return " ".join(f"w{(start + 7 * i) % 2000}" for i in range(count))


def long_enough(start: int) -> list[str]:
    return [words(start + i, 40) for i in range(0, 400, 10)]


def sets_of(source: TextSource, role: str, **options: Any) -> TextSets:
    """Every set has text enough, but for one."""
    sources = {name: [TextSource(name, texts=long_enough(1000 * n))] for n, name in enumerate(ROLES)}
    sources[role] = [source]
    return TextSets(
        CalibrationData(sources["calibration"], 4, 16),
        SearchData(sources["search"], 4, 16),
        RecoveryData(sources["recovery"], samples=4, seq_len=16),
        [EvaluationSet("short", sources["evaluation"][0], windows=[16])],
        reconstruction=ReconstructionData(sources["reconstruction"], 4, 16),
        allow_leak=True,
        **options,
    )


def refused(tokenizer: Any, source: TextSource, role: str, **options: Any) -> str:
    with pytest.raises(DataError, match=r"^data, ") as error:
        sets_of(source, role, **options).build(tokenizer)
    return str(error.value)


def number(pattern: str, message: str) -> int:
    found = re.search(pattern.replace("#", r"([\d,]+)"), message)
    assert found is not None, message
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("role", ROLES)
def test_as_much_text_as_is_asked_for_is_enough(role: str, tokenizer: Any) -> None:
    message = refused(tokenizer, TextSource("short", texts=[words(3, 5), " "]), role)
    assert message.startswith(f"data, {role}, source 'short': expected ")
    assert re.search(r"got 0 \(\d+ tokens\) in 1 document of \d+ characters; give at least .*smaller (seq_len|window)$", message)
    needed = number("give at least # tokens", message)
    assert number(r"tokens of text \(# characters\)", message) >= 2 * needed
    sets_of(TextSource("short", texts=[words(3, needed)]), role).build(tokenizer)
    with pytest.raises(DataError, match=f"data, {role}, source 'short': expected "):
        sets_of(TextSource("short", texts=[words(3, needed - 3)]), role).build(tokenizer)


@pytest.mark.parametrize("role", ROLES)
def test_of_a_part_it_is_asked_for_by_the_part_s_share(role: str, tokenizer: Any, tmp_path: Path) -> None:
    def source(texts: list[str]) -> TextSource:
        (tmp_path / "short.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return TextSource("short", path=str(tmp_path / "short.jsonl"), part=[0.75, 1.0])

    few = [words(i, 2) for i in range(12)]
    message = refused(tokenizer, source(few), role)
    assert message.startswith(f"data, {role}, source 'short', part [0.75, 1): expected ")
    assert re.search(r" tokens\) in \d of 12 documents, \d+ of \d+ characters; give about ", message)
    assert message.endswith("characters; this part gets 25 % of them), " + message.rpartition("of them), ")[2])
    assert message.endswith(" or a wider part")
    needed = number("give about # tokens", message)
    sets_of(source([words(i, 2) for i in range(needed)]), role).build(tokenizer)  # twice as much: which documents it gets is chance
    assert number("of text \\(# characters", message) > sum(map(len, few))  # whatever the part has by chance, more than there is
    assert needed >= (60 if role == "evaluation" else 240)


@pytest.mark.parametrize("role", ROLES)
def test_a_part_without_any_document(role: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(words(3, 20))
    source = TextSource("short", path=str(tmp_path / "short.txt"), part=[0.9, 1.0])
    assert not [d for d in read_documents(TextSource("short", path=source.path)) if d.position >= 0.9]
    message = refused(tokenizer, source, role)
    assert message.startswith(f"data, {role}, source 'short', part [0.9, 1): expected ")
    assert "got none of 1 document (" in message
    assert (needed := number("give about # documents", message)) >= fewest_documents(0.1) == 29
    assert number(r"documents \(# characters", message) == pytest.approx(4000 * needed, rel=0.1)  # a text file is cut, at the latest then
    assert "this part gets 10 % of them" in message


@pytest.mark.parametrize("role", ROLES)
def test_from_python(role: str, tokenizer: Any) -> None:
    def given(short: list[str]) -> RunData:  # texts of a set begin with numbers of their own
        roles = {name: long_enough(n) for n, name in enumerate(ROLES)} | {role: short}
        return data_from_texts(roles.pop("calibration"), tokenizer, **roles, **ROLES[role])

    with pytest.raises(DataError, match=rf"^data, {role}, source 'texts': expected at least \d windows? of 16 tokens, got 0") as error:
        given([words(3, 5)])
    assert "part" not in str(error.value)
    given([words(7, number("give at least # tokens", str(error.value)))])


def test_texts_of_which_none_is_held_out_for_the_search(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="got 1 of 7 characters in all; give 11 texts or more, or one of 44,000 characters") as error:
        data_from_texts(["a short"], tokenizer)
    enough = number("give # texts", str(error.value))
    data_from_texts([words(i, 100) for i in range(enough)], tokenizer, seq_len=16, search_seq_len=16)
    data_from_texts(["\n".join(words(i, 10) for i in range(2000))[:44_000]], tokenizer, seq_len=16, search_seq_len=16)


def test_only_a_set_that_the_calibration_texts_are_held_out_for_could_have_its_own(tokenizer: Any) -> None:
    for recovery, said in ((["few"], False), (None, True)):
        pool = long_enough(1) if recovery else [words(i, 3) for i in range(40)]
        with pytest.raises(DataError, match=r"^data, ") as error:
            data_from_texts(pool, tokenizer, recovery=recovery, seq_len=16, search_seq_len=16)
        assert ("search texts of its own" in str(error.value)) == said


def test_rows_are_counted_where_each_is_a_window(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"instruction": words(i, 3 if i % 2 else 60), "output": words(i, 3)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = TextSource("rows", path=str(tmp_path / "rows.jsonl"), instruction=True)
    sets = sets_of(source, "recovery")
    with pytest.raises(TooLittleTextError, match=r"expected 4 examples whose response begins within \d+ tokens, got \d in 4 documents"):
        sets.build(tokenizer)


def test_a_source_whose_part_is_empty_is_left_out_beside_another(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    empty = TextSource("empty", texts=["one text"], part=[0.999, 1.0])
    sets = sets_of(empty, "search", take_fewer=True)
    sets.search.sources.append(TextSource("full", texts=long_enough(2000)))
    assert sets.build(tokenizer).search_windows.source_names == ["full"]
    assert "search 'empty' none of 2 windows" in " ".join(capsys.readouterr().out.split())
