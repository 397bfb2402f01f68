"""Help and version: every command is there, and nothing heavy is loaded for them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapruner._version import __version__
from adapruner.cli.help_page import COMMANDS
from adapruner.cli.shipped_configs import shipped_configs
from tests.cli.command_line import elsewhere, run  # noqa: F401  # the former by being there

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_page_has_every_command_and_three_examples(capsys: pytest.CaptureFixture[str], option: str) -> None:
    code, out, _ = run(capsys, option)
    assert code == 0
    lines = out.splitlines()
    for command, what in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [command, what] for line in lines)
    examples = lines[lines.index("examples:") + 1 : lines.index("options:") - 1]
    assert len(examples) == 3
    for example in examples:
        assert example.split()[:2][0] == "adapruner"
        assert example.split()[1] in COMMANDS
    for config in re.findall(r"--config (\S+)", "".join(examples)):
        assert config in shipped_configs()
    assert max(map(len, lines)) <= 130


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, f"adapruner {__version__}\n")


def test_no_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys)
    assert code == 2
    assert err.startswith("adapruner: error: command: expected a known one first, got none; Known: compare, export, fit")


def test_the_help_page_loads_nothing_heavy_and_is_fast() -> None:
    """As many as are needed to see that a busy machine slows one run, not all: the best of three, the interpreter's start included."""
    code = "import sys, adapruner.cli as c\ntry:\n    c.main(['--help'])\nexcept SystemExit:\n    print(*sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    heavy = {"torch", "numpy", "lightning", "transformers", "jsonargparse", "yaml", "rich"}
    assert heavy & set(done.stdout.split()) == set()
    assert min(seconds) < 2.0


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "adapruner.cli", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"adapruner {__version__}\n"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "compare",
            (
                "--config",
                "--base",
                "--methods",
                "--budgets",
                "--seeds",
                "--folder",
                "--against",
                "--jobs",
                "-- --pruning.search.n_trials 64",
            ),
        ),
        ("inspect", ("RUN", "--json", "plan.json")),
        (
            "write-texts",
            ("MODEL", "--out", "--documents", "--tokens", "--temperature", "--seed", "--batch_size", "--dtype", "own=own.jsonl"),
        ),
        ("export", ("RUN", "DIR", "--dtype", "--max_shard_size", "--adapters", "--pad", "--gguf", "--push", "--checkpoint", "--no-verify")),
    ],
)
def test_help_of_a_command_beside_fit_loads_nothing_heavy(command: str, options: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom adapruner.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(*sorted({'torch', 'numpy', 'lightning', 'transformers', 'optuna', 'matplotlib'} & set(sys.modules)), 'loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"
    for option in options:
        assert option in done.stdout
