import io

import pytest
from rich.console import Console

from adapruner.report.schema import SECTIONS
from adapruner.report.table import print_report

from .sample import FINAL, sample_report


def printed(report: dict, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_answer_comes_first() -> None:
    words = " ".join(printed(sample_report()).split())
    assert words.startswith(
        "Removed 40.0 % of the block parameters (4.03 M -> 2.70 M in all); perplexity 28.10 -> 35.21 pruned -> 31.04 reconstructed "
        "-> 30.12 recovered; latency x0.71."
    )


def test_numbers_at_80_columns() -> None:
    text = printed(sample_report())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    rows = {line.split()[0]: line.split()[1:] for line in reversed(text.splitlines()) if line.split()}
    for method, values in FINAL.items():
        expected = [f"{v:.2f}" if v < 100 else f"{v:.1f}" for v in values]
        assert [cell.rstrip("*") for cell in rows[method]] == expected
    assert rows["adapruner"] == ["35.21*", "31.04*", "30.12*"]
    assert "*" not in "".join(rows["taylor"])
    assert rows["latency"] == ["8.42", "ms", "5.98", "ms", "x0.71"]
    assert "LlamaForCausalLM" in text
    assert "1.9e-06" in text


def test_rows_are_sorted_by_their_last_stage() -> None:
    report = sample_report()
    report["perplexity"] = [row for row in report["perplexity"] if row["method"] in ("dense", "adapruner") or row["stage"] == "pruned"]
    next(row for row in report["perplexity"] if row["method"] == "random")["value"] = None
    text = printed(report).split("Perplexity on c4")[0]
    methods = [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0] in (*FINAL, "dense")]
    assert methods == ["dense", "adapruner", "taylor", "wanda", "fluctuation", "activation", "l2", "cosine", "random"]
    assert "not finite" in text


@pytest.mark.parametrize("section", SECTIONS)
def test_missing_sections_are_named(section: str) -> None:
    report = sample_report()
    report[section] = None
    words = {"generations": "generated text", "search": "search (skipped)", "recovery": "recovery (off)"}.get(section, section)
    assert f"Not in this report: {words}." in printed(report)


def test_names_are_not_read_as_console_markup() -> None:
    report = sample_report()
    for row in report["perplexity"]:
        row["method"] = "[red]l2[/red]" if row["method"] == "l2" else row["method"]
    assert "[red]l2[/red]" in printed(report)


def test_budget_over_the_whole_model() -> None:
    report = sample_report()
    report["model"]["budget_of"] = "all"
    report["cost"]["pruned"]["latency_ms"] = None
    words = " ".join(printed(report).split())
    assert "of the model's parameters" in words
    assert "latency x" not in words
