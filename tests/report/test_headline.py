"""The first sentence of a report."""

from __future__ import annotations

from adapruner.data.sets import TRUSTED_WINDOWS
from adapruner.report.headline import FEW_TEXTS, answer_sentence
from adapruner.report.schema import validate_report

from .sample import sample_report


def said_of(texts: list[tuple[str, int]]) -> str:
    """What the sentence says of perplexity, where each of these texts has the values of the sample's first."""
    report = sample_report()
    first = [row for row in report["perplexity"] if row["dataset"] == "wikitext"]
    report["perplexity"] = [{**row, "dataset": name, "window": window} for name, window in texts for row in first]
    return answer_sentence(validate_report(report)).split("; ")[1]


def test_one_text_has_every_stage() -> None:
    assert said_of([("wikitext", 512)]) == "perplexity 28.10 -> 35.21 pruned -> 31.04 reconstructed -> 30.12 recovered"


def test_none_of_a_few_texts_is_left_out() -> None:
    assert said_of([("wiki", 512), ("code", 512)]) == "perplexity 28.10 -> 30.12 recovered on wiki, 28.10 -> 30.12 recovered on code"


def test_one_text_at_two_windows_is_told_apart() -> None:
    said = said_of([("wiki", 512), ("wiki", 1024)])
    assert said == "perplexity 28.10 -> 30.12 recovered on wiki (512 tokens), 28.10 -> 30.12 recovered on wiki (1,024 tokens)"


def test_of_many_texts_it_says_how_many() -> None:
    names = [(f"text {number}", 512) for number in range(FEW_TEXTS + 1)]
    assert said_of(names) == f"perplexity 28.10 -> 30.12 recovered on text 0, the first of {FEW_TEXTS + 1} measurements"


def test_without_any_it_says_so() -> None:
    assert said_of([]) == "perplexity not measured"


def test_a_text_of_hardly_any_windows_says_how_many() -> None:
    report = sample_report()
    first = next(row for row in report["perplexity"] if row["dataset"] == "wikitext")
    held = {"role": "evaluation", "name": "wikitext", "sources": ["here"], "windows": 1, "seq_len": first["window"], "documents": 1}
    held["hash"] = "0" * 16
    report["data"] = {"sets": [held], "leaks": "none", "seed": 0}
    report["perplexity"] = [row for row in report["perplexity"] if row["dataset"] == "wikitext"]
    assert " recovered (1 window)" in answer_sentence(validate_report(report))
    held["windows"] = TRUSTED_WINDOWS
    assert "window" not in answer_sentence(validate_report(report))
