"""The ten changes in a copy of the package, with the page's lines in the very files that the page's table names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REGISTRIES
from .contributing import CHANGES, CODE, HUNKS, ROOT, read_table

SCRIPT = """
import json
import torch
import adapruner
from adapruner.recovery.checkpoint_contents import describe_pruning, fit_to_checkpoint
from tests.extension.conftest import REGISTRIES
from tests.tiny import tiny_llama

model, other = tiny_llama(), tiny_llama()
model.generation_config.update(temperature=0.25)
fit_to_checkpoint(other, json.loads(json.dumps(describe_pruning(model, None))), None)
print(json.dumps({
    "where": adapruner.__file__,
    "known": {change: registry.find(name).__module__ for change, (registry, name) in REGISTRIES.items()},
    "temperature": other.generation_config.temperature,
}))
"""


def test_the_table_has_the_ten_and_at_most_two_files_each() -> None:
    table = read_table()
    assert list(table) == list(CHANGES)
    assert len(table) == 10
    for change, (files, group) in table.items():
        assert 1 <= len(files) <= 2
        for file in files:
            there = ROOT / file
            assert there.parent.joinpath("__init__.py").is_file() if there.name == "NAME.py" else there.is_file(), file
        assert bool(CODE[change]) != bool(HUNKS[change])
        assert group == (REGISTRIES[change][0].group if change in REGISTRIES else ""), change


def test_every_path_on_the_page_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:adapruner|callbacks|tests|docs|benchmarks|configs)/[\w/.-]*)`|\]\((docs/[\w.-]+)\)", page))
    paths = {first or second for first, second in named}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path.replace("NAME.py", "__init__.py")).exists()] == []


@pytest.mark.parametrize("change", REGISTRIES)
def test_an_example_is_a_few_lines(change: str) -> None:
    lines = [line for line in CODE[change].splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 10


def test_each_is_known_from_its_first_file_alone(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "model")
    shutil.copytree(ROOT / "adapruner", tmp_path / "adapruner", symlinks=False, ignore=ignored)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=ignored)
    shutil.copy(ROOT / "CONTRIBUTING.md", tmp_path)
    for change, (files, _) in read_table().items():
        file = tmp_path / files[0].replace("NAME", "added_by_the_test")
        assert file.exists() == (not files[0].endswith("NAME.py"))
        content = file.read_text() if file.exists() else ""
        for hunk in HUNKS[change]:
            before = "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] in " -")
            after = "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] in " +")
            assert content.count(before) == 1, before
            content = content.replace(before, after)
        code = CODE[change]
        if content:  # a function in a file that has the decorator
            code = "\n".join(line for line in code.splitlines() if not line.startswith("from adapruner")) + "\n"
        file.write_text(content + code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["where"].startswith(str(tmp_path))
    assert list(found["known"]) == list(REGISTRIES)
    by_class = [module.rpartition(".")[2] for change, module in found["known"].items() if "class " in CODE[change]]
    assert by_class == ["added_by_the_test"] * 7
    assert found["temperature"] == 0.25
