import json
import math
import re
from typing import Any

import pytest
import vl_convert

from adapruner.compare.tables import _as_fine_as
from adapruner.report.answer import LEFT_OUT
from adapruner.report.formats import percent_text, signed_percent_text
from adapruner.report.page import render_report
from adapruner.report.schema import SECTIONS, validate_report

from .pages import Page, rows_of
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


def render_page(report: dict[str, Any]) -> str:
    return render_report(validate_report(report))


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


def test_loads_nothing() -> None:
    html = render_page(sample_report())
    page = Page(html)
    # What a browser is told: nothing from anywhere, whatever a script or a style would ask for.
    policy = [attributes.get("content") for tag, attributes in page.seen if tag == "meta" and attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"]
    assert not {tag for tag, _ in page.seen} & {"link", "img", "iframe", "object", "base"}
    assert not [attributes for _, attributes in page.seen if {"src", "href", "srcset"} & set(attributes)]
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"http|url\(|@import", style)
    assert '"url"' not in json.dumps(page.charts)
    assert '<meta name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 900_000 < len(html) < 1_100_000  # Vega is in it, once


def test_every_plot_is_drawn_with_its_values() -> None:
    report = sample_report()
    page = Page(render_page(report))
    assert len(page.charts) == 8
    for chart in page.charts:
        svg = vl_convert.vegalite_to_svg({**chart, "width": 400})
        assert chart["description"]  # for readers who do not see it
        assert svg.count("<path") > 5
    drawn = rows_of(page.chart("Perplexity by method and stage on wikitext"))
    found = {(row["method"], row["stage"]): row["perplexity"] for row in drawn if "method" in row}
    stages = ("pruned", "reconstructed", "recovered")
    assert found == {(method, stage): value for method, values in FINAL.items() for stage, value in zip(stages, values, strict=True)}
    assert [row for row in drawn if "method" not in row] == [{"perplexity": 28.1, "words": "dense 28.10"}] * 3  # line, name, its halo
    bars = [{"name": "mixture.taylor", "value": 0.342, "words": "34.2 %"}, {"name": "mixture.l2", "value": 0.019, "words": "1.9 %"}]
    assert all(bar in rows_of(page.chart("Importance of search dimensions")) for bar in bars)
    kept = rows_of(page.chart("FFN channels kept per layer"))[:8]
    assert [row["kept"] for row in kept] == report["model"]["units"]["ffn"]["kept"]
    assert len(rows_of(page.chart("Loss of the recovery"))) >= len(report["recovery"]["lora"]["history"])


def test_every_trial_is_in_the_search_history() -> None:
    report = sample_report()
    history = report["search"]["history"]
    chart = Page(render_page(report)).chart("Search history: 48 trials")
    rows = rows_of(chart)
    trials = {row["trial"]: row for row in rows if "kind" in row}
    assert sorted(trials) == list(range(48))
    low, high = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    kinds = {}
    for trial in history:
        row = trials[trial["trial"]]
        kinds.setdefault(row["kind"], []).append(trial)
        assert row["text"] == ("\N{EN DASH}" if trial["value"] is None else f"{trial['value']:.4f}")
        assert low < row["value"] <= high
    assert [t["trial"] for t in kinds["failed"]] == [19]
    assert [t["name"] for t in kinds["beyond the axis"]] == ["random"]
    assert all(t["state"] == "pruned" for t in kinds["stopped early"])
    best = [row["value"] for row in rows if set(row) == {"trial", "value"}]
    assert best == sorted(best, reverse=True)
    assert best[-1] == report["search"]["best_value"]


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
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;adapruner" in html
    assert "&lt;script&gt;alert(2)" in html
    page = Page(html)
    assert {tag for tag, _ in page.seen} == {tag for tag, _ in Page(render_page(sample_report())).seen}
    assert [tag for tag, _ in page.seen].count("script") == len(page.charts) + 2
    assert any(row.get("name", "").startswith('"><script>alert(2)</script>') for chart in page.charts for row in rows_of(chart))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_left_out_and_named(section: str) -> None:
    report = sample_report()
    del report[section]
    page = Page(render_page(report))
    assert SECTION_TITLES[section] not in page.headings
    assert len(page.headings) == 12 - (3 if section == "search" else 1)
    words = "{} ({})".format(*LEFT_OUT[section]) if section in LEFT_OUT else section
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
    assert "Not in this report: LoRA recovery (by --trainer.max_steps 200; recovery=200 in Python)." in page.text


def test_values_that_are_not_finite_are_said_not_drawn() -> None:
    report = sample_report()
    for row in report["perplexity"]:
        if row["method"] == "random":
            row["value"] = math.nan if row["stage"] == "recovered" else None
    for trial in report["search"]["history"]:
        trial["value"] = math.inf if trial["trial"] % 2 else trial["value"]
    html = render_page(report)
    assert "not finite" in html
    assert Page(html).charts  # strict JSON: no NaN, no infinity
    assert re.search(r"<tr><th>random</th>(<td>not finite</td>){3}<td>[^<]+</td></tr>", html)


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
    assert "best trials, evaluated again" not in Page(render_page(report)).text
    report["search"] |= {
        "judged": "NLL of the model after the local refit",
        "candidates": [
            {"trial": 31, "name": "searched", "searched": 4.4012, "reconstructed": 4.3711, "recovered": 4.3507},
            {"trial": 7, "name": "l2 on wiki", "searched": 4.4512, "reconstructed": 4.3902, "recovered": None},
        ],
    }
    text = Page(render_page(report)).text
    assert all(words in text for words in ("best trials, evaluated again", "trial 31", "l2 on wiki", "4.371", "after a short recovery"))
    assert "NLL of the model after the local refit, in nats per token" in text


def test_text_of_the_dense_the_pruned_and_the_final_model_side_by_side() -> None:
    report = sample_report()
    assert "The same prompt continued by the dense and by the final model." in Page(render_page(report)).text
    report["generations"][0]["pruned"] = " went went <b>went</b>"
    report["generation_protocol"] = "2 passages of held-out text; 0.4 s of the run."
    html = render_page(report)
    text = Page(html).text
    first, second = (html.split('class="generation"')[n] for n in (1, 2))
    assert [first.index(words) for words in ('"tag">dense', '"tag">pruned', '"tag">after recovery')] == sorted(
        first.index(words) for words in ('"tag">dense', '"tag">pruned', '"tag">after recovery')
    )
    assert '"tag">pruned' not in second
    assert "went went <b>went</b>" in text
    assert "2 passages of held-out text; 0.4 s of the run." in text
    assert "One run of seed 0" in text


def test_calibration_shows_clusters_and_spread() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    html = render_page(report)
    page = Page(html)
    assert "Weight of every source and every cluster; 256 windows of 512 tokens in all." in page.text
    assert {"name": "cluster 1", "value": 0.65, "words": "0.65 · 106 windows"} in rows_of(
        page.chart("Calibration weight and windows by cluster")
    )
    assert "The weights amount to 36.2 of 256 samples; the set is in runs/quickstart/calibration_set.json." in page.text
    assert "Same recipe with 4 random sets of 36 samples: 4.3960 ± 0.0411 nats per token" in page.text
    spread = rows_of(page.chart("Same recipe with random samples, chosen weights 4.3500"))
    assert {"set": "random set of 36", "value": 4.445, "text": "4.4450"} in spread
    assert {"set": "chosen weights", "value": 4.35, "text": "4.3500"} in spread
    assert "8.1 % · wikitext, sample 1,017\nThe river Inn rises" in page.text
    assert page.text.index("sample 1,017") < page.text.index("4.7 % each of 32 samples · code, such as sample 40\ndef lerp(a: float")
    assert len(page.charts) == 8 + 2
    report["calibration"]["set_file"] = "<script>alert(1)</script>"
    report["calibration"]["heaviest"][0]["text"] = "<script>alert(1)</script>"
    assert "<script>alert" not in render_page(report)


def test_a_spread_without_width_is_said_not_drawn() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    report["calibration"]["spread"] = {"size": 1, "values": [None, None], "mean": None, "std": None, "chosen": 4.0}
    page = Page(render_page(report))
    assert "Same recipe with 2 random sets of 1 sample: not finite" in page.text
    assert not [chart for chart in page.charts if chart["description"].startswith("Same recipe with random samples")]


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


@pytest.mark.parametrize(("best", "worst"), [(120.0, 500.0), (20.0, 90_000.0)])  # a linear axis, and one of powers
def test_axes_have_plain_numbers(best: float, worst: float) -> None:
    report = sample_report()
    logs = [math.log(row["value"]) for row in report["perplexity"] if row["value"] is not None]

    def moved(value: float) -> float:
        return best * (worst / best) ** ((math.log(value) - min(logs)) / (max(logs) - min(logs)))

    report["perplexity"] = [{**row, "value": row["value"] and moved(row["value"])} for row in report["perplexity"]]
    chart = Page(render_page(report)).chart("Perplexity by method and stage on wikitext")
    labels = re.findall(r"<text[^>]*>([^<]*\d[^<]*)</text>", vl_convert.vegalite_to_svg({**chart, "width": 400}))
    assert any(re.fullmatch(r"[\d,]+", label) and len(label) >= 3 for label in labels), labels
    assert not [label for label in labels if re.search(r"\de\+?\d", label)]


def test_the_name_of_the_dense_model_is_not_over_the_trials_above_it() -> None:
    chart = Page(render_page(sample_report())).chart("Search history")
    names = [layer["mark"] for layer in chart["layer"] if layer["mark"]["type"] == "text"]
    assert len(names) == 2
    assert all(mark["dy"] > 0 for mark in names)  # below the line


def test_a_recipe_says_what_it_sets_and_what_came_of_the_rest() -> None:
    report = sample_report()
    report["search"]["recipe"] = {"ridge": None, "allocation": {"gamma": 0.5, "round_to": None}}
    report["cost"]["widths"] = {"multiple": 16, "regular_ms": 50.0, "any_ms": 100.0}
    text = Page(render_page(report)).text
    assert "by the model: multiples of 16" in text
    assert "ridge" not in text[text.index("The settings of the best trial") : text.index("Everything needed to run this again")]
    report["search"]["recipe"]["allocation"]["round_to"] = 8
    assert "by the model" not in Page(render_page(report)).text


def test_what_the_export_computed_is_explained() -> None:
    report = sample_report()
    report["export"] |= {"max_abs_logit_difference": 0.0, "dtype": "float16", "perplexity_before": 23.44, "perplexity_served": 23.45}
    said = "the same logits; perplexity of a few windows of the search text 23.4500, before the export 23.4400"
    assert said in " ".join(Page(render_page(report)).text.split())
    report["export"] |= {"max_abs_logit_difference": 0.25, "perplexity_own": 9.4}
    said = (
        "logits differ by at most 2.5e-01; perplexity of a few windows of the search text 23.4500, before the export 23.4400, 9.4000 before"
    )
    assert said in " ".join(Page(render_page(report)).text.split())
    report["export"]["max_abs_logit_difference"] = None
    assert "not compared" in Page(render_page(report)).text


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert (signed_percent_text(-0.0004), signed_percent_text(0.0004), signed_percent_text(-0.0006)) == ("0.0 %", "0.0 %", "-0.1 %")
    assert (percent_text(-0.0001), percent_text(0.2)) == ("0.0 %", "20.0 %")
    assert _as_fine_as(-0.001, 20.0) == "0.00"


def test_statistics_that_were_there_already_are_not_said_to_have_taken_a_time() -> None:
    report = sample_report()
    assert "for the statistics" in Page(render_page(report)).text
    report["search"]["seconds_statistics"] = 0.02  # to read them
    text = Page(render_page(report)).text
    assert "for the statistics" not in text
    assert "0.0 s" not in text
