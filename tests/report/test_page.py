import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from adapruner.report.markup import VOID
from adapruner.report.page import render_page
from adapruner.report.schema import SECTIONS

from .sample import FINAL, measured_cost, sample_report, searched_calibration

SECTION_TITLES = {
    "perplexity": "Comparison",
    "zero_shot": "Zero-shot tasks",
    "search": "Search",
    "calibration": "Calibration",
    "recovery": "Recovery",
    "cost": "Cost",
    "export": "Export",
    "generations": "Generated text",
}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + "\n"
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def test_holds_every_method_and_figure() -> None:
    page = Page(render_page(sample_report()))
    for method, values in FINAL.items():
        assert method in page.text
        for value in values[:2]:
            assert (f"{value:.2f}" if value < 100 else f"{value:.1f}") in page.text
    for figure in (
        "40.0\N{NO-BREAK SPACE}%",
        "28.10",
        "30.12",
        "\N{MULTIPLICATION SIGN}0.71",
        "4.03 M",
        "2.70 M",
        "9f2c61d0a87be354",
        "3.3360",
        "34.2 %",
        "yes",
    ):
        assert figure in page.text
    assert page.headings == [
        "Comparison",
        "Zero-shot tasks",
        "Search",
        "What is kept",
        "Calibration",
        "What mattered in the search",
        "Recovery",
        "Cost",
        "Export",
        "Generated text",
        "Recipe",
        "Protocol",
    ]
    assert "Not in this report" not in page.text


def test_the_protocol_names_text_seeds_and_leaks() -> None:
    report = sample_report()
    page = Page(render_page(report))
    for row in report["data"]["sets"]:
        assert row["hash"] in page.text
        assert "; ".join(row["sources"]) in page.text
    assert "evaluation wikitext" in page.text
    assert "search 0, data 7, recovery 2" in page.text
    assert report["data"]["leaks"] in page.text
    del report["data"], report["seeds"]  # as an older release wrote it
    assert "seed" in Page(render_page(report)).text


def test_loads_nothing_and_names_every_plot() -> None:
    html = render_page(sample_report())
    page = Page(html)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not {tag for tag, _ in page.seen} & {"script", "link", "img", "iframe", "object", "base"}
    assert not [attributes for _, attributes in page.seen if {"src", "href", "srcset"} & set(attributes)]
    plots = [attributes for tag, attributes in page.seen if tag == "svg" and attributes.get("role") == "img"]
    assert len(plots) == 8
    assert all(plot["aria-label"] for plot in plots)
    assert html.count('role="img"') == len(re.findall(r'role="img"[^>]*><title>[^<]+</title>', html))
    assert '<meta name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def _poisoned(value: Any) -> Any:
    """The same report with markup in every free text and every free name."""
    if isinstance(value, dict):
        return {key: _poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poisoned(item) for item in value]
    fixed = {"dense", "pruned", "reconstructed", "recovered", "block", "complete", "failed", "searched"}
    return f'"><script>alert(1)</script>{value}' if isinstance(value, str) and value not in fixed else value


def test_escapes_every_text() -> None:
    report = _poisoned(sample_report())
    for place in (report["search"]["importance"], report["search"]["recipe"], report["calibration"]["sources"], report["versions"]):
        for key in list(place):
            place[f'"><script>alert(2)</script>{key}'] = place.pop(key)
    html = render_page(report)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;adapruner" in html
    assert "&lt;script&gt;alert(2)" in html
    tags = {tag for tag, _ in Page(html).seen}
    assert tags == {tag for tag, _ in Page(render_page(sample_report())).seen}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_left_out_and_named(section: str) -> None:
    report = sample_report()
    del report[section]
    page = Page(render_page(report))
    assert SECTION_TITLES[section] not in page.headings
    assert len(page.headings) == 12 - (3 if section == "search" else 1)
    said = {"generations": "generated text", "search": "search (skipped)", "recovery": "recovery (off)", "zero_shot": "zero-shot tasks"}
    words = said.get(section, section)
    assert f"Not in this report: {words}." in page.text


def test_only_the_model_is_needed() -> None:
    page = Page(render_page({key: value for key, value in sample_report().items() if key not in SECTIONS}))
    assert page.headings == ["What is kept", "Protocol"]
    assert "perplexity not measured" in page.text


def test_lora_off_is_named() -> None:
    report = sample_report()
    report["recovery"]["lora"] = None
    page = Page(render_page(report))
    assert "ridge 0.01" in page.text
    assert "Not in this report: LoRA recovery." in page.text


def test_values_that_are_not_finite_are_said_not_drawn() -> None:
    report = sample_report()
    for row in report["perplexity"]:
        if row["method"] == "random":
            row["value"] = math.nan if row["stage"] == "recovered" else None
    for trial in report["search"]["history"]:
        trial["value"] = math.inf if trial["trial"] % 2 else trial["value"]
    html = render_page(report)
    assert "not finite" in html
    assert not re.search(r'="-?(nan|inf)', html)
    assert re.search(r"<tr><th>random</th>(<td>not finite</td>){3}</tr>", html)


def test_one_row_one_trial_and_wholly_pruned_layers_are_drawn() -> None:
    report = sample_report()
    report["perplexity"] = [{"stage": "pruned", "method": "l2", "dataset": "c4", "window": 128, "value": 40.0}]
    report["search"]["history"] = report["search"]["history"][:1]
    report["recovery"]["lora"]["history"] = []
    report["model"]["units"]["attention"]["kept"] = [0] * 8
    report["model"]["units"]["ffn"]["dense"] = report["model"]["units"]["ffn"]["kept"] = [11008] * 8
    page = Page(render_page(report))
    assert "40.00" in page.text
    assert "Attention units: 0 of 48 kept" in page.text


def test_the_second_look_is_a_table() -> None:
    report = sample_report()
    assert "the best few again" not in Page(render_page(report)).text
    report["search"] |= {
        "judged": "NLL of the model after the local refit",
        "candidates": [
            {"trial": 31, "name": "searched", "searched": 4.4012, "reconstructed": 4.3711, "recovered": 4.3507},
            {"trial": 7, "name": "l2 on wiki", "searched": 4.4512, "reconstructed": 4.3902, "recovered": None},
        ],
    }
    text = Page(render_page(report)).text
    assert all(words in text for words in ("the best few again", "trial 31", "l2 on wiki", "4.371", "after a short recovery"))
    assert "NLL of the model after the local refit, in nats per token" in text


def test_calibration_shows_clusters_and_spread() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    html = render_page(report)
    page = Page(html)
    assert "Weight of every source and every cluster; 256 windows of 512 tokens in all." in page.text
    assert "0.65 · 106 windows" in page.text
    assert "The weights amount to 36.2 of 256 samples; the set is in runs/quickstart/calibration_set.json." in page.text
    assert "Same recipe with 4 random sets of 36 samples: 4.3960 ± 0.0411 nats per token" in page.text
    assert "random set: 4.4450" in page.text
    assert "chosen weights: 4.3500" in page.text
    assert "8.1 % · wikitext, sample 1,017\nThe river Inn rises" in page.text
    assert page.text.index("sample 1,017") < page.text.index("each 4.7 % · code, sample 40 and 31 more\ndef lerp(a: float")
    assert html.count('role="img"') == render_page(sample_report()).count('role="img"') + 2
    report["calibration"]["set_file"] = "<script>alert(1)</script>"
    report["calibration"]["heaviest"][0]["text"] = "<script>alert(1)</script>"
    assert "<script" not in render_page(report)


def test_a_spread_without_width_is_said_not_drawn() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    report["calibration"]["spread"] = {"size": 1, "values": [None, None], "mean": None, "std": None, "chosen": 4.0}
    page = Page(render_page(report))
    assert "Same recipe with 2 random sets of 1 sample: not finite" in page.text
    assert "Same recipe with random samples" not in page.text


def test_measurements_are_tables_with_their_notes() -> None:
    report = {**sample_report(), "cost": measured_cost()}
    report["protocols"] = [{"dataset": "c4", "window": 512, "words": "c4: cut so and so."}]
    for row in report["perplexity"]:
        row["bits_per_byte"] = 0.9
    html = render_page(report).replace("\N{MULTIPLICATION SIGN}", "x")
    page = Page(html)
    assert "<tr><th>piqa, acc_norm</th><td>0.7912 ± 0.0083</td><td>0.7802 ± 0.0083</td></tr>" in html
    assert "c4: cut so and so." in page.text
    assert "Bits per byte: dense 0.9000, pruned 0.9000, reconstructed 0.9000, recovered 0.9000." in page.text
    assert "<tr><th>energy</th><td>1.25 J</td><td>0.75 J</td><td>x0.60</td></tr>" in html
    assert "<tr><th>1 x 128</th><td>16,000/s</td><td>21,333/s</td><td>x0.75</td><td>x0.67</td></tr>" in html
    assert "Tokens per second, median of 10 rounds" in page.text
