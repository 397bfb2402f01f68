from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from adapruner.cli import main
from adapruner.cli.fit import PruningCLI
from adapruner.cli.shipped_configs import find_config, find_configs, shipped_configs
from adapruner.errors import ConfigurationError
from tests.cli.command_line import elsewhere, run  # noqa: F401  # the former by being there

ROOT = Path(__file__).parents[2]


def test_a_bare_name_is_found_from_anywhere_and_overrides_count(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--pruning.search.n_trials", "9", "--recovery.lora.r=3", "--data.seed=5", "--pruning.search.space.metrics=[l2]"]
    code, out, _ = run(capsys, "fit", "--config", "quickstart.yaml", *overrides, "--print_config")
    assert code == 0
    parsed = yaml.safe_load(out)
    assert parsed["model"]["name_or_path"] == "demo"
    assert parsed["pruning"]["search"]["n_trials"] == 9
    assert parsed["pruning"]["search"]["batch_size"] == 16  # the file's
    assert parsed["pruning"]["search"]["space"]["metrics"] == ["l2"]
    lora = {"r": 3, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear", "checkpoint_activations": False, "also_train": []}
    assert parsed["recovery"]["lora"] == lora
    assert parsed["data"]["seed"] == 5


def test_what_was_printed_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "fit", "--config", "llama.yaml", "--print_config")
    Path("mine.yaml").write_text(out)
    code, again, _ = run(capsys, "fit", "--config", "mine.yaml", "--print_config")
    assert code == 0
    assert yaml.safe_load(again) == yaml.safe_load(out)


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "rank", "said"),
    [(True, "0", "adapruner: loads PyTorch and Lightning\n"), (False, "0", ""), (True, "1", "")],
    ids=["terminal", "file", "another rank"],
)
def test_a_terminal_shows_something_before_anything_heavy_is_imported(
    is_terminal: bool, rank: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adapruner.cli.fit", None)  # whose import fails
    monkeypatch.setattr(sys, "stdout", screen := Screen(is_terminal))
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "quickstart.yaml"])
    assert screen.getvalue() == said


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fit", "--help")
    assert code == 0
    for option in (
        "--pruning.search.n_trials",
        "--recovery.lora.r",
        "--pruning.budget",
        "--report.compare",
        "--export.folder",
        "--export.gguf",
        "--import FILE",
    ):
        assert option in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quickstrat.yaml"], "got 'quickstrat.yaml'; did you mean 'quickstart.yaml'? Known: ablations/data-only.yaml"),
        (["--config=nothing/like/it.yaml"], "--config: expected a file, or the name of a shipped configuration"),
        (["--config", "quickstart.yaml", "--pruning.search.n_trials", "0"], "search.n_trials: expected 1 or more, got 0; give a positive"),
        (["--config", "quickstart.yaml", "--pruning.budget.pruned_fraction", "20"], "budget.pruned_fraction: expected a number in [0, 1)"),
        (["--config", "quickstart.yaml", "--report.compare", "[talyor]"], "report.compare: expected a known metric, got 'talyor'"),
        (["--config", "quickstart.yaml", "--pruning.plan", "no.json"], "plan no.json: expected a readable file, got No such file"),
        (["--config", "local.yaml"], "model.name_or_path: expected a folder or a hub name, got 'my-model/', which is not there"),
        (
            ["--config", "local.yaml", "--model.name_or_path", "demo"],
            "source 'my texts': path: expected a file or a folder, got 'my-texts'",
        ),
    ],
)
def test_a_bad_value_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, "fit", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("adapruner: error: ")
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("key", ["--pruning.search.n_trails=3", "--recovery.lora.rank=3", "--model.name=demo"])
def test_a_wrong_key_is_named(capsys: pytest.CaptureFixture[str], key: str) -> None:
    code, _, err = run(capsys, "fit", "--config", "quickstart.yaml", key)
    assert code == 2
    assert key.split("=")[0].split(".")[-1] in err
    assert "Traceback" not in err


def test_a_wrong_key_in_a_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = shipped_configs()["quickstart.yaml"].read_text().replace("n_trials: 48", "n_trails: 48")
    Path("mine.yaml").write_text(text)
    code, _, err = run(capsys, "fit", "--config", "mine.yaml")
    assert code == 2
    assert "n_trails" in err
    assert "Traceback" not in err


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(capsys, "fit", "--config", "quickstart.yaml", "--model.name_or_path", "./no-model")
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("adapruner: error: ")]
    assert len(lines) == 1
    assert "model.name_or_path: expected a folder or a hub name, got './no-model', which is not there; correct the path" in lines[0]
    assert "Traceback" not in err


def test_find_configs_leaves_everything_else_alone(tmp_path: Path) -> None:
    (tmp_path / "llama.yaml").write_text("seed_everything: 3\n")
    found = find_configs(
        ["fit", "--config", "llama.yaml", "-c=quickstart.yaml", "--trainer.max_steps", "3", "--config", "{a: 1}", "--config"]
    )
    quickstart = str(shipped_configs()["quickstart.yaml"])
    expected = ["fit", "--config", "llama.yaml", f"-c={quickstart}", "--trainer.max_steps", "3", "--config", "{a: 1}", "--config"]
    assert found == expected  # a file of one's own goes before a shipped one
    with pytest.raises(ConfigurationError, match=r"got 'gone.yaml'; .*Known: .*baselines/l2.yaml.* llama.yaml"):
        find_configs(["--config", "gone.yaml"])


def test_a_resumed_run_reads_the_plan_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from adapruner.callbacks.pruning_search import PruningSearchCallback

    callback, command_line = PruningSearchCallback(), PruningCLI.__new__(PruningCLI)
    command_line.config = SimpleNamespace(fit={"ckpt_path": "some/step.ckpt"})  # type: ignore[assignment]
    command_line.trainer = SimpleNamespace(callbacks=[object(), callback], strategy=SimpleNamespace(launcher=None))  # type: ignore[assignment]
    command_line.before_fit()
    assert callback.checkpoint == "some/step.ckpt"


def test_train_py_and_the_console_script_are_one_function() -> None:
    tree = ast.parse((ROOT / "train.py").read_text())
    imports: list[Any] = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [(node.module, node.names[0].name) for node in imports] == [("adapruner.cli", "main")]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"adapruner": "adapruner.cli:main"}
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "quickstrat.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("adapruner: error: --config: expected a file")
    assert "Traceback" not in done.stderr


def test_overlays_are_laid_over_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fit", "--config", "quickstart.yaml", "--config", "ablations/no-allocation.yaml", "--print_config")
    assert code == 0
    search = yaml.safe_load(out)["pruning"]["search"]
    assert search["space"]["gamma"] == [0.0, 0.0]
    assert search["n_trials"] == 48  # the base's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "base: expected at least one, got none"),
        (
            ["--config", "comapre.yaml"],
            "--config: expected a file, or the name of a shipped configuration, got 'comapre.yaml'; did you mean",
        ),
        (["--config", "quickstart.yaml"], "--config: expected a comparison, got the configuration of a run"),
        (["--config", "compare.yaml", "--base", "quickstrat.yaml"], "base: expected a file, or the name of"),
        (["--config", "compare.yaml", "--methods", "baselines/l3.yaml"], "got 'baselines/l3.yaml'; did you mean 'baselines/l2.yaml'?"),
        (["--config", "compare.yaml", "--budgets", "20"], "budgets: expected fractions in [0, 1), got 20"),
        (["--config", "compare.yaml", "--seeds", "0", "0"], "seeds: expected each once, got 0 twice"),
        (["--config", "compare.yaml", "--pruning.search.n_trials", "3"], "got '--pruning.search.n_trials'; options of fit go behind --"),
        (
            ["--config", "compare.yaml", "--", "--data.seed", "3"],
            "options: expected none that every cell sets for itself, got '--data",
        ),
        (["--config", "compare.yaml", "--", "--pruning.search.n_trails=3"], "n_trails"),
    ],
)
def test_a_comparison_that_cannot_work_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("adapruner: error: ")
    assert len(err.strip().splitlines()) == 1
    assert not list(Path.cwd().rglob("seed-*"))


def test_flags_go_over_the_file_and_behind_the_dashes_is_for_every_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.compare import command
    from tests.compare.fakes import Starter

    seen: dict[str, Any] = {}
    starter = Starter(make=lambda cell, code: _Fails(cell, seen))
    flags = ["--methods", "baselines/l2.yaml", "--budgets", "0.3", "--seeds", "4", "--", "--data.batch_size", "2"]
    code = command.run_compare(["--config", "compare.yaml", *flags], find_config, lambda methods: seen.update(methods), starter)
    assert code == 1
    assert list(seen) == ["l2", "cell"]
    assert seen["cell"].folder == Path("runs/compare/l2/0.3/seed-4").absolute()
    arguments = list(seen["cell"].arguments)
    assert arguments[arguments.index("--pruning.search.n_trials=48") + 1 :][:2] == ["--data.batch_size", "2"]  # the file's come first
    assert "failed: l2, 30.0 %, seed 4" in Path("runs/compare/comparison.md").read_text()
    again = yaml.safe_load(Path("runs/compare/comparison.yaml").read_text())
    assert again["options"] == ["--pruning.search.n_trials=48", "--data.batch_size", "2"]


class _Fails:
    looks = 2

    def __init__(self, cell: Any, seen: dict[str, Any]) -> None:
        seen["cell"] = cell

    def poll(self) -> int:
        return 3

    def end(self) -> None: ...


@pytest.mark.slow
def test_a_fit_of_the_command_line_can_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that loads everything, hence slow: what is tested is that the files of a real run are what export reads."""
    from transformers import AutoTokenizer

    from adapruner.demo import MODEL_FOLDER
    from adapruner.export.loading import load
    from tests.tiny import tiny_llama

    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    tokenizer.save_pretrained("my-model")
    tiny_llama(vocab_size=len(tokenizer), intermediate_size=320).save_pretrained("my-model")
    options = [
        "--model.name_or_path=my-model",
        "--pruning.recipe={coefficients: {l2: 1.0}}",
        "--trainer.max_steps=1",
        "--report.compare=[]",
    ]
    options += ["--data.calibration.samples_per_source=2", "--data.search.samples=4", "--pruning.reconstruction=null"]
    options += ["--data.evaluation=[{name: some, source: {name: test, demo: stdlib, split: test}, limit: 2}]", "--report.prompts=[]"]
    options += ["--data.calibration.sources=[{name: stdlib, demo: stdlib, split: calibration}]", "--recovery.lora.r=2"]
    options += ["--trainer.default_root_dir=run", "--trainer.logger=null", "--export.verify=false", "--report.compare_recovered=false"]
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "quickstart.yaml", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    main(["export", "run", "out", "--no-verify"])
    assert "takes the weights of step 1 from run/" in capfd.readouterr().out
    expected, found = load("run/model").state_dict(), load("out").state_dict()
    assert expected.keys() == found.keys()
    assert all((found[name] - tensor).abs().max() < 1e-6 for name, tensor in expected.items())


@pytest.mark.slow
def test_compare_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes that load everything, hence slow: a fixed recipe and a search on a tiny model."""
    from transformers import AutoTokenizer

    from adapruner.demo import MODEL_FOLDER
    from tests.tiny import tiny_llama

    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    tokenizer.save_pretrained("my-model")
    tiny_llama(vocab_size=len(tokenizer), intermediate_size=320).save_pretrained("my-model")
    command = ["compare", "--base", "quickstart.yaml", "--methods", "adapruner", "baselines/l2.yaml", "--budgets", "0.5", "--seeds", "1"]
    options = ["--model.name_or_path=my-model", "--pruning.search.n_trials=2", "--trainer.max_steps=1", "--pruning.search.rerank=null"]
    options += ["--data.calibration.samples_per_source=2", "--data.search.samples=4", "--pruning.reconstruction=null"]
    options += ["--data.evaluation=[{name: some, source: {name: test, demo: stdlib, split: test}, limit: 2}]"]
    options += ["--data.calibration.sources=[{name: stdlib, demo: stdlib, split: calibration}]", "--recovery.lora.r=2"]
    main([*command, "--folder", "out", "--", *options])
    record = json.loads(Path("out/comparison.json").read_text())
    assert record["failed"] == []
    assert {(r["method"], r["stage"]) for r in record["rows"]} == {
        (m, s) for m in ("adapruner", "l2") for s in ("dense", "pruned", "recovered")
    }
    assert len({r["parameters"] for r in record["rows"] if r["stage"] == "dense"}) == 1
    assert (tmp_path / "out/comparison.svg").stat().st_size > 1000
    assert not (tmp_path / "out/l2/0.5/seed-1/model").exists()
    assert json.loads(Path("out/l2/0.5/seed-1/report.json").read_text())["search"] is None
    before = {p: p.read_bytes() for p in Path("out").glob("comparison.*")}
    capsys.readouterr()
    main([*command, "--folder", "out", "--", *options])
    assert "2 done before, 0 to run" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in Path("out").glob("comparison.*")} == before
