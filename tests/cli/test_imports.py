"""``--import``: a user's own file is known before a configuration is read; what cannot be imported is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli import main
from adapruner.cli.imports import import_all, take_imports
from adapruner.compare import command
from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import METRICS
from adapruner.pruning.plan import read_plan
from tests.compare.fakes import FakeRun, fake_spec
from tests.spoilt import make_workspace

METRIC = """\
from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import fixed_rows, stack_members


@register_metric
class Reversed:
    name, paper, needs = "reversed_l2", "an example", frozenset()

    def score(self, inputs):
        return -stack_members(inputs, fixed_rows(inputs, "l2"))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    METRICS.remove("reversed_l2")


def test_a_file_finds_those_beside_my_file_and_leaves_none_behind(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "beside_my_file.py").write_text("VALUE = 3\n")
    (place / "mine" / "my_file.py").write_text("from beside_my_file import VALUE\n")
    before = sys.dont_write_bytecode
    import_all(["mine/my_file.py", "mine/my_file.py", "json.tool"])
    assert sys.modules["my_file"].VALUE == 3
    assert sorted(path.name for path in (place / "mine").iterdir()) == ["beside_my_file.py", "my_file.py"]
    assert sys.dont_write_bytecode is before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, r"expected a Python file, got 'gone\.py', which is not there; correct the path"),
        ("csv.py", "", r"expected a file with a name of its own, got 'csv\.py': 'csv' is .*csv\.py; rename it"),
        ("no_such_module", None, r"expected a Python file or an installed module, got 'no_such_module', which is neither"),
        ("json.no_such_module", None, r"expected a Python file or an installed module, got 'json\.no_such_module', which is neither"),
        ("torn.py", "x = (\n", r"expected torn\.py to be importable, got SyntaxError in line 1: "),
        ("needs.py", "\nimport no_such_module", r"got ModuleNotFoundError in line 2: No module named 'no_such_module'; correct it"),
        ("fails.py", "def f():\n    raise OSError('lost')\n\nf()\n", r"got OSError in line 2: lost; correct it"),
        (
            "twice.py",
            METRIC.replace("reversed_l2", "l2"),
            r"got ConfigurationError.*: metric: expected a new name, got 'l2', which is taken",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(place: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (place / name).write_text(content)
    with pytest.raises(ConfigurationError, match=f"^--import: {message}" if message.startswith("expected") else message):
        import_all([name])


@pytest.mark.parametrize("words", [["--import"], ["--import", "--config=a.yaml"], ["--import="]])
def test_an_import_of_nothing_is_one_line(words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^--import: expected a Python file or the name of a module, got none"):
        take_imports(words)


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict", "compare", "export"])
def test_every_command_that_runs_something_takes_it(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([name, "--import", "gone.py", "--import=other.py"])
    assert "--import: expected a Python file, got 'gone.py'" in capsys.readouterr().err


def test_a_run_prunes_by_a_users_metric(place: Path) -> None:
    make_workspace(place)
    (place / "my_metrics.py").write_text(METRIC)
    options = ["--pruning.recipe={coefficients: {reversed_l2: 1.0}}", "--pruning.reconstruction=null", "--recovery=null"]
    main(["fit", "--config", "base.yaml", "--import", "my_metrics.py", *options, "--report=null", "--export=null"])
    assert read_plan(place / "run" / "plan.json").recipe["coefficients"] == {"reversed_l2": 1.0}


def test_a_comparison_passes_it_on_and_no_file_can_name_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_spec(place)
    (place / "my_file.py").write_text("VALUE = 3\n")
    arguments = ["--base", "base.yaml", "--methods", "l2.yaml", "--budgets", "0.2", "--seeds", "0", "--folder", "out"]
    seen: list[Any] = []

    def start(cell: Any) -> FakeRun:
        seen.append(cell)
        return FakeRun(cell)

    def run(imports: list[str]) -> int:
        return command.run_compare(arguments, lambda name, argument: name, start=start, imports=imports)

    assert run(["my_file.py"]) == 0
    assert seen[0].arguments[:2] == ("fit", "--import=my_file.py")
    written = (place / "out" / "comparison.yaml").read_text()
    assert written.splitlines()[0].endswith("comparison.yaml --import my_file.py")
    assert "import" not in "".join(written.splitlines()[1:])
    assert run(["my_file.py"]) == 0
    assert len(seen) == 1  # it was done
    (place / "my_file.py").write_text("VALUE = 4\n")
    with pytest.raises(ConfigurationError, match=r"folder: expected the same imports as in .*cell\.json, got another"):
        run(["my_file.py"])
    (place / "compare.yaml").write_text("base: base.yaml\nmethods: [l2.yaml]\nbudgets: [0.2]\noptions: {import: my_file.py}\n")
    with pytest.raises(ConfigurationError, match=r"options: expected none that every cell sets for itself, got '--import=my_file\.py'"):
        command.run_compare(["--config", "compare.yaml"], lambda name, argument: name)


@pytest.mark.slow
def test_a_comparison_runs_fits_that_know_the_file(place: Path) -> None:
    """A process that loads everything, hence slow: that the real ``fit`` of a cell imports the file."""
    make_workspace(place)
    (place / "my_metrics.py").write_text(METRIC)
    (place / "own.yaml").write_text("pruning: {recipe: {coefficients: {reversed_l2: 1.0}}, reconstruction: null}\nrecovery: null\n")
    arguments = ["--base", "base.yaml", "--methods", "own.yaml", "--budgets", "0.3", "--seeds", "0", "--folder", "out"]
    train = Path(__file__).parents[2] / "train.py"
    done = subprocess.run(
        [sys.executable, str(train), "compare", "--import", "my_metrics.py", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_plan(place / "out/own/0.3/seed-0/plan.json").recipe["coefficients"] == {"reversed_l2": 1.0}
