from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from adapruner import cli
from adapruner.cli import find_configs, main, shipped_configs
from adapruner.errors import ConfigurationError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may depend on the checkout being the working directory."""
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with pytest.raises(SystemExit, match=r"^\d$") as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_a_bare_name_is_found_from_anywhere_and_overrides_count(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--pruning.search.n_trials", "9", "--recovery.lora.r=3", "--data.seed=5", "--pruning.search.space.metrics=[l2]"]
    code, out, _ = run(capsys, "fit", "--config", "quickstart.yaml", *overrides, "--print_config")
    assert code == 0
    parsed = yaml.safe_load(out)
    assert parsed["model"]["name_or_path"] == "demo"
    assert parsed["pruning"]["search"]["n_trials"] == 9
    assert parsed["pruning"]["search"]["batch_size"] == 16  # the file's
    assert parsed["pruning"]["search"]["space"]["metrics"] == ["l2"]
    assert parsed["recovery"]["lora"] == {"r": 3, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    assert parsed["data"]["seed"] == 5


def test_what_was_printed_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "fit", "--config", "llama.yaml", "--print_config")
    Path("mine.yaml").write_text(out)
    code, again, _ = run(capsys, "fit", "--config", "mine.yaml", "--print_config")
    assert code == 0
    assert yaml.safe_load(again) == yaml.safe_load(out)


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fit", "--help")
    assert code == 0
    for option in ("--pruning.search.n_trials", "--recovery.lora.r", "--pruning.budget", "--report.compare", "--export.folder"):
        assert option in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quickstrat.yaml"], "got 'quickstrat.yaml'; did you mean 'quickstart.yaml'? Known: llama.yaml, local.yaml"),
        (["--config=nothing/like/it.yaml"], "--config: expected a file, or the name of a shipped configuration"),
        (["--config", "quickstart.yaml", "--pruning.search.n_trials", "0"], "search.n_trials: expected 1 or more, got 0; give a positive"),
        (["--config", "quickstart.yaml", "--pruning.budget.pruned_fraction", "20"], "budget.pruned_fraction: expected a number in [0, 1)"),
        (["--config", "quickstart.yaml", "--report.compare", "[talyor]"], "metric: expected a known metric, got 'talyor'"),
        (["--config", "quickstart.yaml", "--pruning.plan", "no.json"], "plan no.json: expected a readable file, got No such file"),
        (["--config", "local.yaml"], "source 'my texts': path: expected a file or a folder, got 'my-texts'"),
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
    assert "model.name_or_path: expected a tokenizer to load from './no-model'" in lines[0]
    assert "Traceback" not in err


def test_find_configs_leaves_everything_else_alone(tmp_path: Path) -> None:
    (tmp_path / "llama.yaml").write_text("seed_everything: 3\n")
    found = find_configs(
        ["fit", "--config", "llama.yaml", "-c=quickstart.yaml", "--trainer.max_steps", "3", "--config", "{a: 1}", "--config"]
    )
    quickstart = str(shipped_configs()["quickstart.yaml"])
    expected = ["fit", "--config", "llama.yaml", f"-c={quickstart}", "--trainer.max_steps", "3", "--config", "{a: 1}", "--config"]
    assert found == expected  # a file of one's own goes before a shipped one
    with pytest.raises(ConfigurationError, match=r"got 'gone.yaml'; .*Known: llama.yaml"):
        find_configs(["--config", "gone.yaml"])


def test_a_resumed_run_reads_the_plan_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from adapruner.callbacks.pruning_search import PruningSearchCallback

    callback, command_line = PruningSearchCallback(), cli.PruningCLI.__new__(cli.PruningCLI)
    command_line.config = SimpleNamespace(fit={"ckpt_path": "some/step.ckpt"})  # type: ignore[assignment]
    command_line.trainer = SimpleNamespace(callbacks=[object(), callback])  # type: ignore[assignment]
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
