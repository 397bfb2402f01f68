"""The examples run as a user's, in a folder of their own, against what a wheel installs; shorter where their options allow it."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.test_packaging import ROOT, build, copy_source, run_python

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "python_api.ipynb"
#: Seconds; a minute each on idle cores, which those of a test run are not.
TIMEOUT = 900
#: File -> its arguments here, and what it must have written.
PROGRAMS = {
    "lightning_project.py": (["--trials", "2", "--steps", "2"], "runs/lightning_project/model/config.json"),
    "chat_model.py": (["--trials", "2", "--steps", "2"], "runs/chat_model/model/config.json"),
    "iterative_pruning.py": (["--rounds", "2", "--steps", "1"], "runs/iterative_pruning/round-2/config.json"),
    "distillation.py": (["--steps", "4"], "runs/distillation/half-and-half/config.json"),
}
#: File -> the rows of the table that it prints in the end, whose last numbers are perplexities.
TABLES: dict[str, list[str]] = {
    "iterative_pruning.py": ["dense", "at once", "rounds=2", "a loop, trained in each round"],
    "distillation.py": ["dense", "pruned and refitted", "cross entropy", "half and half", "divergence alone"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel holds, in a folder on the path: no checkout is near."""
    pytest.importorskip("build")
    wheel = build("wheel", copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def cells(kind: str) -> list[str]:
    record: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in record["cells"] if cell["cell_type"] == kind]


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == {*PROGRAMS, NOTEBOOK.name}
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*PROGRAMS, NOTEBOOK.name) if name not in page] == []


@pytest.mark.slow  # a whole run of the demo model: half a minute each on two cores
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, installed: Path, tmp_path: Path) -> None:
    arguments, written = PROGRAMS[name]
    printed = run_python([str(EXAMPLES / name), *arguments], tmp_path, search_path=installed, timeout=TIMEOUT)
    assert (tmp_path / written).is_file(), printed
    loaded = f"import adapruner; print(adapruner.__file__, adapruner.load({str((tmp_path / written).parent)!r}).num_parameters())"
    file, parameters = run_python(["-c", loaded], tmp_path, search_path=installed).split()
    assert file.startswith(str(installed))
    assert 2_000_000 < int(parameters) < 3_900_000  # the demo has 4,033,728
    check_table(TABLES.get(name, []), printed.splitlines())


def check_table(rows: list[str], printed: list[str]) -> None:
    """The last lines are a row for each model, whose perplexities differ: each was really another one."""
    found = {re.split(r"\s{2,}", line)[0]: re.findall(r"\d+\.\d\d", line) for line in printed[-len(rows) :]} if rows else {}
    assert list(found) == rows
    assert len(set(map(tuple, found.values()))) == len(rows)
    assert all(20 < float(value) < 200 for values in found.values() for value in values)


@pytest.mark.slow  # as above
def test_the_cells_of_the_notebook_run_in_order(installed: Path, tmp_path: Path) -> None:
    first, *rest = cells("code")
    assert first == "TRIALS, STEPS, FRACTION = 24, 20, 0.4"
    # What a notebook shows of a cell's last line is not shown here.
    script = "\n\n".join(["TRIALS, STEPS, FRACTION = 2, 2, 0.4", *rest, "assert left < 0.8 * dense", "print('perplexity', recovered)"])
    (tmp_path / "cells.py").write_text(script)
    printed = run_python(["cells.py"], tmp_path, search_path=installed, timeout=TIMEOUT)
    assert "parameters before" in printed
    assert (tmp_path / "python_api_out" / "config.json").is_file()


def test_the_notebook_is_one_and_holds_no_output() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    record = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in record["cells"])
    assert len(cells("markdown")) > 5
