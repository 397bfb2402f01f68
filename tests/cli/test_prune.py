"""``adapruner prune``: what it makes of its few options, and the whole job on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from adapruner.cli.option_catalogue import read_catalogue
from adapruner.cli.prune import PARTS, TEST_WINDOWS, default_folder, fit_words, short_names
from adapruner.cli.shipped_configs import find_configs, shipped_configs
from adapruner.errors import ConfigurationError
from adapruner.export.loading import load
from adapruner.pruning.plan import read_plan
from tests.cli.command_line import elsewhere, run  # noqa: F401  # the former by being there
from tests.test_run import texts
from tests.tiny import save_tiny

GIVEN = ["my-model", "--texts", "wiki=a/wiki.txt", "--texts", "b/code/"]


def record_of(words: list[str]) -> dict[str, dict[str, object]]:
    (text,) = (word.removeprefix("--config=") for word in words if word.startswith("--config="))
    return json.loads(text)  # type: ignore[no-any-return]


def test_every_set_has_a_part_of_every_source() -> None:
    data = record_of(fit_words(GIVEN))["data"]
    assert [(s["name"], s["path"]) for s in data["calibration"]["sources"]] == [("wiki", "a/wiki.txt"), ("code", "b/code/")]  # type: ignore[index]
    for name in ("calibration", "search", "recovery"):
        assert all(source["part"] == list(PARTS[name]) for source in data[name]["sources"])  # type: ignore[index]
    assert all(e["source"]["part"] == list(PARTS["test"]) and e["limit"] == TEST_WINDOWS for e in data["evaluation"])  # type: ignore[attr-defined,index]


def test_parts_are_all_text_and_no_text_twice() -> None:
    ends = sorted(PARTS.values())
    assert ends[0][0] == 0.0
    assert ends[-1][1] == 1.0
    assert all(before[1] == after[0] for before, after in pairwise(ends))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"pruning.budget.pruned_fraction": "0.2", "trainer.default_root_dir": "runs/my-model-0.2", "pruning.search.n_trials": "64"}),
        (["--fraction", "0.35", "--trials", "9"], {"pruning.budget.pruned_fraction": "0.35", "pruning.search.n_trials": "9"}),
        (["--out", "here", "--dtype", "bfloat16"], {"trainer.default_root_dir": "here", "model.dtype": "bfloat16"}),
    ],
)
def test_options_of_fit(options: list[str], expected: dict[str, str]) -> None:
    words = fit_words([*GIVEN, *options])
    given = {word.removeprefix("--"): words[i + 1] for i, word in enumerate(words) if word.startswith("--") and "=" not in word}
    assert expected.items() <= given.items()
    assert read_catalogue("fit").misspelt(find_configs(words)) == []


def test_rows_have_columns_or_messages() -> None:
    for options, field in ((["--column", "body"], {"column": "body"}), (["--chat"], {"chat": True})):
        data = record_of(fit_words([*GIVEN, *options]))["data"]
        every = [*data["calibration"]["sources"], *(item["source"] for item in data["evaluation"])]  # type: ignore[index,attr-defined]
        assert all(field.items() <= source.items() for source in every)


@pytest.mark.parametrize("time", ["45m", "45M"])
def test_a_time_in_place_of_steps(time: str) -> None:
    words = fit_words([*GIVEN, "--recovery", time])
    given = {word.removeprefix("--"): words[i + 1] for i, word in enumerate(words) if word.startswith("--") and "=" not in word}
    assert {"recovery.time_budget": time, "trainer.max_steps": "-1", "trainer.max_epochs": "-1"}.items() <= given.items()
    assert "samples" not in record_of(words)["data"]["recovery"]  # type: ignore[operator]
    assert record_of(fit_words([*GIVEN, "--recovery", "30"]))["data"]["recovery"]["samples"] == 240  # type: ignore[index]
    assert read_catalogue("fit").misspelt(find_configs(words)) == []


def test_no_recovery_needs_no_text_for_it() -> None:
    record = record_of(fit_words([*GIVEN, "--recovery", "0"]))
    assert record["recovery"] is None
    assert "recovery" not in record["data"]


def test_options_of_fit_come_last_and_win() -> None:
    words = fit_words([*GIVEN, "--pruning.budget.of", "macs", "--config=mine.yaml"])
    assert words[-3:] == ["--pruning.budget.of", "macs", "--config=mine.yaml"]


@pytest.mark.parametrize(
    "word", ["--report=null", "--zero_shot=null", "--ckpt_path=x", "--trainer={devices: 1}", "--print_config", "--config=a"]
)
def test_options_of_fit_without_a_dot_are_its_own(word: str) -> None:
    assert fit_words([*GIVEN, word])[-1] == word


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    words = fit_words(["my-model", "--texts", "lang=en", "--texts", "a/b=c.txt", "--texts", "\N{GRINNING FACE}.txt"])
    sources = record_of(words)["data"]["calibration"]["sources"]  # type: ignore[index]
    assert [source["path"] for source in sources] == ["lang=en", "a/b=c.txt", "\N{GRINNING FACE}.txt"]
    assert "\N{GRINNING FACE}" in "".join(words)  # YAML has no surrogates


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["my-model"], "texts: expected --texts PATH, got none"),
        ([*GIVEN, "--fracton", "3"], "fracton: expected an option of prune or of fit, got an unknown one; did you mean --fraction"),
        (["--pruning.budget.of", "macs", *GIVEN], "expected the model first, got --pruning.budget.of"),
        ([*GIVEN, "another"], "expected one model, got 'another' too"),
        ([*GIVEN, "--texts", "other/wiki=x", "--texts", "wiki=y"], "texts: expected each name once"),
        ([*GIVEN, "--fraction", "1"], "fraction: expected 0 or more and less than 1, got 1"),
        (
            [*GIVEN, "--fraction", "0.96"],
            "fraction: expected less than 0.95, since 5% of all heads and channels stay in each layer, got 0.96",
        ),
        (
            [*GIVEN, "--fraction", "0.3", "--pruning.plan", "p.json"],
            "fraction: expected none beside --pruning.plan, which says what goes, got 0.3",
        ),
        ([*GIVEN, "--pruning.plan=p.json", "--fraction=0.2"], "fraction: expected none beside --pruning.plan"),
        ([*GIVEN, "--fraction", "many"], "invalid float value: 'many'"),
        ([*GIVEN, "--trials", "0"], "trials: expected 1 or more, got 0"),
        ([*GIVEN, "--recovery", "-1"], "recovery: expected 0 or more, got -1"),
        ([*GIVEN, "--recovery", "200.0"], "recovery: expected whole steps, or a time with a unit such as 45m, got '200.0'"),
        ([*GIVEN, "--recovery", "soon"], "recovery: expected a duration above 0 such as 45m or 1h30m, or a number of seconds, got 'soon'"),
    ],
)
def test_what_cannot_be(options: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("(", r"\(")):
        fit_words(options)


@pytest.mark.parametrize(
    "more", [["--pruning.budget.keep_at_least=0.01"], ["--pruning.remove_layers", "2"], ["--config={pruning: {hidden_fraction: 0.3}}"]]
)
def test_what_else_may_go_is_not_for_the_short_option_to_judge(more: list[str]) -> None:
    assert "0.96" in fit_words([*GIVEN, "--fraction", "0.96", *more])


def test_options_are_called_as_they_were_written() -> None:
    assert short_names(GIVEN).items() >= {"budget.pruned_fraction": "fraction", "search.n_trials": "trials", "data": "texts"}.items()
    own = short_names([*GIVEN, "--pruning.search.n_trials=8", "--config={data: {seed: 3}}"])
    assert not {"search.n_trials", "pruning.search.n_trials", "data"} & set(own)
    assert own["trainer.max_steps"] == "recovery"


@pytest.mark.parametrize("options", [["--texts", "empty"], ["--fraction", "0.95", "--texts", "text"], ["--texts", "text", "--out", "file"]])
def test_what_needs_no_model_is_refused_at_once(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("w1")
    (tmp_path / "file").touch()
    save_tiny(tmp_path / "my-model")
    command = [sys.executable, "-m", "adapruner.cli", "prune", "my-model", *options]
    seconds = []
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert min(seconds) < 1.5


def test_a_plan_needs_no_fraction_and_has_a_folder_of_its_own() -> None:
    words = fit_words([*GIVEN, "--pruning.plan", "p.json"])
    assert words[words.index("--trainer.default_root_dir") + 1] == "runs/my-model-plan"


def test_folders_by_default() -> None:
    assert default_folder("models/my-model/", 0.25) == "runs/my-model-0.25"
    assert default_folder("org/name", 0.5) == "runs/name-0.5"


def test_the_shipped_configuration_leaves_out_what_the_command_gives() -> None:
    shipped = yaml.safe_load(shipped_configs()["prune.yaml"].read_text())
    assert "name_or_path" not in shipped["model"]
    assert "default_root_dir" not in shipped["trainer"]


def test_the_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "my-model", intermediate_size=320)
    written = texts(400)
    for name, documents in written.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    named = [word for name in written for word in ("--texts", f"{name}={name}.jsonl")]
    short = ["--data.calibration.samples_per_source=8", "--data.search.samples=8", "--report.compare=[]", "--data.calibration.seq_len=32"]
    short += ["--data.search.seq_len=32", "--data.recovery.seq_len=32", "--report.latency_repeats=1", "--trainer.accelerator=cpu"]
    short += ["--pruning.search.rerank=null", "--pruning.search.random_sets=0", "--report.compare_any_width=false"]
    from adapruner.cli import main

    main(["prune", "my-model", *named, "--fraction", "0.3", "--trials", "20", "--recovery", "2", *short])
    folder = tmp_path / "runs/my-model-0.3"
    assert read_plan(folder / "plan.json").pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert {"report.html", "config.yaml", "model"} <= {path.name for path in folder.iterdir()}
    assert (folder / "logs/metrics.csv").is_file()
    assert load(folder / "model").num_parameters() < AutoModelForCausalLM.from_pretrained("my-model").num_parameters()


def test_text_that_is_not_there_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom adapruner.cli import main\n"
        "try:\n    main(['prune', 'my-model', '--texts', 'textz'])\n"
        "except SystemExit as ended:\n    print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "texts: expected a file or a folder, got 'textz', which does not exist; correct the path" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())
