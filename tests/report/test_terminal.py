import io
import re

import pytest
from rich.console import Console

from adapruner.cli.option_catalogue import read_catalogue
from adapruner.report.answer import LEFT_OUT, OWN_METHOD, spread_sentence
from adapruner.report.page import render_report
from adapruner.report.schema import SECTIONS, validate_report
from adapruner.report.terminal import print_report

from .sample import FINAL, measured_cost, sample_report, searched_calibration


def printed(report: dict, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def widest(text: str) -> int:
    """Characters of the longest line that is no code: that is never wrapped."""
    return max(len(line) for line in text.splitlines() if ".from_pretrained(" not in line)


def test_answer_comes_first() -> None:
    words = " ".join(printed(sample_report()).split())
    assert words.startswith(
        "Removed 40.0 % of the block parameters (4.03 M -> 2.70 M in all); perplexity 28.10 -> 30.12 recovered on wikitext, 33.85 -> "
        "35.84 recovered on c4; latency \N{MULTIPLICATION SIGN}0.71."
    )


def test_numbers_at_80_columns() -> None:
    text = printed(sample_report())
    assert widest(text) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    rows = {line.split()[0]: line.split()[1:] for line in reversed(text.splitlines()) if line.split()}
    for method, values in FINAL.items():
        expected = [f"{v:.2f}" if v < 100 else f"{v:.1f}" for v in values]
        above = [f"{100 * (values[-1] / 28.1 - 1):+.1f}", "%"]
        assert [cell.rstrip("*") for cell in rows[method]] == [*expected, *above]
    assert rows["adapruner"] == ["35.21*", "31.04*", "30.12*", "+7.2", "%"]
    assert rows["dense"] == ["28.10"]
    assert "*" not in "".join(rows["taylor"])
    assert rows["latency"] == ["8.42", "ms", "5.98", "ms", "\N{MULTIPLICATION SIGN}0.71"]
    assert "LlamaForCausalLM" in text
    assert "1.9e-06" in text


def test_rows_are_sorted_by_the_last_stage_that_all_have() -> None:
    report = sample_report()
    report["perplexity"] = [row for row in report["perplexity"] if row["method"] in ("dense", "adapruner") or row["stage"] == "pruned"]
    next(row for row in report["perplexity"] if row["method"] == "random")["value"] = None
    text = printed(report).split("Perplexity on c4")[0]
    methods = [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0] in (*FINAL, "dense")]
    pruned = {row["method"]: row["value"] for row in report["perplexity"] if row["stage"] == "pruned" and row["dataset"] != "c4"}
    expected = sorted((m for m in pruned if pruned[m] is not None), key=lambda m: pruned[m])
    assert methods == ["dense", *expected, "random"]
    assert "rows in the order of pruned" in text
    assert "not finite" in text


def test_a_stage_that_made_it_worse_is_said() -> None:
    report = sample_report()
    assert "Worse" not in printed(report)
    row = next(r for r in report["perplexity"] if (r["method"], r["stage"]) == ("adapruner", "recovered"))
    row["value"] = 33.3
    assert "Worse recovered than reconstructed, on" in printed(report)
    assert "31.04 to 33.30" in " ".join(printed(report).split())


def test_time_memory_and_code_that_loads() -> None:
    report = sample_report()
    report["took"] = {"seconds": 741.0, "peak_gib": 2.76}
    text = " ".join(printed(report).split())
    assert "The run took 12 min 21 s and 2.8 GiB." in text
    assert "share" not in text  # a record of an earlier release has no stages
    assert "AutoModelForCausalLM.from_pretrained(" in text


def test_the_code_can_be_copied_out_of_a_narrow_terminal() -> None:
    report = sample_report()
    report["export"] |= {"path": "runs/a-model-with-a-name-of-its-own-0.35/model", "stock": False}
    lines = printed(report).splitlines()
    first = next(number for number, line in enumerate(lines) if "import AutoModelForCausalLM" in line)
    code = lines[first : first + 4]
    compile("\n".join(code), "terminal", "exec")
    assert code[2].endswith("trust_remote_code=True)")
    assert code[3].startswith("tokenizer = ")


def test_numbers_of_one_seed_say_so_and_how_to_get_a_spread() -> None:
    report = sample_report()
    said = "One run of seed 0: how far chance goes is not in these numbers; adapruner compare runs several seeds for it."
    assert said in " ".join(printed(report).split())
    report["perplexity"] = None
    assert "how far chance goes" not in printed(report)


def test_a_model_below_the_dense_one_is_no_merit_of_the_pruning() -> None:
    report = sample_report()
    assert "Below the dense model" not in printed(report)
    for row in report["perplexity"]:
        if row["method"] == OWN_METHOD and row["stage"] == "recovered":
            row["value"] *= 0.5
    assert "and the dense model has not. What pruning cost is the distance" in " ".join(printed(report).split())


def test_learned_gates_say_what_they_changed() -> None:
    report = sample_report()
    assert "Learned gates" not in printed(report)
    report["model"]["gates"] = {"steps": 60, "best_step": 40, "first": 4.5123, "best": 4.25, "exchanged": 3692}
    said = "Learned gates exchanged 3,692 units in 40 of 60 steps: 4.5123 to 4.2500 nats per token on the search split."
    assert said in " ".join(printed(report).split())
    assert said in render_report(validate_report(report))


def test_every_stage_s_time_and_share_and_all_of_it_last() -> None:
    report = sample_report()
    stages = {"loading": 41.0, "search": 500.0, "refit": 0.04, "between stages": 199.96}
    report["took"] = {"seconds": 741.0, "peak_gib": 2.76, "processes": 2, "stages": stages}
    lines = [" ".join(line.split()) for line in printed(report).splitlines()]
    start = lines.index("stage time share")
    assert lines[start + 2 : start + 6] == [
        "loading 41.0 s 5.5 %",
        "search 8 min 20 s 67.5 %",
        "between stages 3 min 20 s 27.0 %",
        "in all 12 min 21 s",
    ]
    assert "The run took 12 min 21 s, in 2 processes, since it was resumed, and 2.8 GiB." in lines


@pytest.mark.parametrize("section", SECTIONS)
def test_missing_sections_are_named(section: str) -> None:
    report = sample_report()
    report[section] = None
    words = "{} ({})".format(*LEFT_OUT[section]) if section in LEFT_OUT else section
    assert f"Not in this report: {words}." in " ".join(printed(report).split())


def test_how_to_get_what_is_left_out_can_be_typed() -> None:
    catalogue = read_catalogue("fit")
    named = [option for _, how in LEFT_OUT.values() for option in re.findall(r"--([\w.]+)", how)]
    assert len(named) > 6
    for option in named:
        assert option in catalogue.options or option in catalogue.groups, option


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
    report["model"]["budget_of"] = "macs"
    assert "of the multiply-accumulates" in " ".join(printed(report).split())
    assert "latency \N{MULTIPLICATION SIGN}" not in words


def test_calibration_says_how_much_it_matters() -> None:
    report = {**sample_report(), "calibration": searched_calibration()}
    words = " ".join(printed(report).split())
    assert "Calibration: the weights amount to 36.2 of 256 samples; the set is in runs/quickstart/calibration_set.json." in words
    assert (
        "Same recipe with 4 random sets of 36 samples: 4.3960 ± 0.0411 nats per token; the chosen weights: 4.3500, lower than 3 of them."
    ) in words
    assert widest(printed(report)) <= 80
    assert "Calibration" not in printed(sample_report())
    del report["calibration"]["effective_samples"], report["calibration"]["set_file"]
    assert "Calibration: same recipe with 4 random sets" in " ".join(printed(report).split())


@pytest.mark.parametrize(
    ("spread", "words"),
    [
        ({"values": [5.0, 5.2], "mean": 5.1, "std": 0.1414, "chosen": 4.0}, "4.0000, lower than all of them."),
        ({"values": [3.0, 3.5], "mean": 3.25, "std": 0.35, "chosen": 4.0}, "4.0000, lower than none of them."),
        (
            {"values": [5.0, None], "mean": 5.0, "std": 0.0, "chosen": 4.0},
            "5.0000 nats per token (1 not finite); the chosen weights: 4.0000, lower",
        ),
        (
            {"values": [None], "mean": None, "std": None, "chosen": 4.0},
            "1 random set of 36 samples: not finite; the chosen weights: 4.0000, lower",
        ),
        ({"values": [5.0, 5.2], "mean": 5.1, "std": 0.1, "chosen": None}, "nats per token; the chosen weights: not finite."),
    ],
)
def test_spreads_at_the_edges(spread: dict, words: str) -> None:
    report = {**sample_report(), "calibration": {**searched_calibration(), "spread": {"size": 36, **spread}}}
    calibration = validate_report(report).calibration
    assert calibration is not None
    sentence = spread_sentence(calibration)
    assert sentence is not None
    assert words in sentence
    assert spread_sentence(calibration.model_copy(update={"spread": None})) is None


def test_tasks_have_a_row_for_each_metric_and_means_of_what_all_have() -> None:
    text = printed(sample_report())
    rows = {" ".join(line.split()[:-6]): line.split()[-6:] for line in text.splitlines() if "±" in line}
    assert rows["boolq, acc"] == ["0.7318", "±", "0.0083", "0.6624", "±", "0.0083"]
    assert rows["piqa, acc_norm"] == ["0.7912", "±", "0.0083", "0.7802", "±", "0.0083"]
    means = {" ".join(line.split()[:-2]): line.split()[-2:] for line in text.splitlines() if "mean of 2" in line}
    assert means["mean of 2, acc"] == [f"{(0.7318 + 0.7835) / 2:.4f}", f"{(0.6624 + 0.7742) / 2:.4f}"]
    assert means["mean of 2, acc_norm or acc"] == [f"{(0.7318 + 0.7912) / 2:.4f}", f"{(0.6624 + 0.7802) / 2:.4f}"]
    assert "lm-eval 0.4.13, 0 examples" in text


def test_a_task_that_a_stage_lacks_has_no_mean() -> None:
    report = sample_report()
    report["zero_shot"]["rows"] = [r for r in report["zero_shot"]["rows"] if (r["stage"], r["task"]) != ("recovered", "boolq")]
    report["zero_shot"]["rows"][0]["stderr"] = None
    text = printed(report)
    line = next(line for line in text.splitlines() if "mean of 2, acc " in line)
    assert line.split()[-1] == "\N{EN DASH}"
    assert next(line for line in text.splitlines() if "boolq, acc" in line).split()[-2:] == ["0.7318", "\N{EN DASH}"]


def test_bits_per_byte_and_the_protocol_stand_beneath_their_numbers() -> None:
    report = sample_report()
    assert "Bits per byte" not in printed(report)
    report["protocols"] = [{"dataset": "c4", "window": 512, "words": "c4: cut so and so."}]
    for row in report["perplexity"]:
        if row["dataset"] == "c4" and row["method"] in ("dense", "adapruner", "l2"):
            row["bits_per_byte"] = {"dense": 0.91, "pruned": 1.02, "reconstructed": 0.97, "recovered": 0.95}[row["stage"]]
    wikitext, c4 = " ".join(printed(report).split("Cost")[0].split()).split("Perplexity on c4")
    assert "Bits per byte: dense 0.9100, pruned 1.0200, reconstructed 0.9700, recovered 0.9500. c4: cut so and so." in c4
    assert "Bits per byte" not in wikitext


def test_cost_shows_the_ideal_and_the_sweep_in_80_columns() -> None:
    report = {**sample_report(), "cost": measured_cost()}
    text = printed(report).replace("\N{MULTIPLICATION SIGN}", "x")
    assert widest(text) <= 80
    assert "Latency x0.71; if nothing but MACs counted, x0.67." in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "peak memory 0.50 GiB 0.40 GiB x0.80" in lines
    assert "energy 1.25 J 0.75 J x0.60" in lines
    assert "1 x 128 16,000/s 21,333/s x0.75 x0.67" in lines
    assert "1 x 128 500/s 625/s x0.80 x0.67" in lines
    assert "64 x 2,048 \N{EN DASH} 21,333/s \N{EN DASH} x0.67" in lines
    del report["cost"]["sweep"], report["cost"]["dense"]["peak_memory_gib"], report["cost"]["pruned"]["peak_memory_gib"]
    assert "peak memory" not in printed(report)
