"""The five steps of docs/add-a-search-dimension.md, done to a copy of the package with the very lines that stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-search-dimension.md"

#: Steps 4 and 5, in a process that sees the changed copy only.
SCRIPT = """
import json, sys
from dataclasses import replace
import adapruner
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.problem import make_plan
from adapruner.pruning.allocation import Allocation
from adapruner.search.config import SearchConfig
from adapruner.search.space import SearchSpace
from adapruner.search.study import run_search
from pathlib import Path
from tests.tiny import prepare_problem, random_windows, tiny_llama

model = tiny_llama()
problem = prepare_problem(model, random_windows(3, 12, seed=1, sources=("books", "code")))
recipe = Recipe({"l2": 1.0}, allocation=Allocation("gamma", 0.5))
hashes = [make_plan(problem, replace(recipe, power=p)).hash for p in (1.0, 2.0)]
plain = make_plan(problem, recipe).hash
space = SearchSpace(metrics=["l2", "gate_fisher"], power=[0.5, 2.0])
config = SearchConfig(n_trials=9, chunks=1, random_sets=0, space=space)
outcome = run_search(model, problem, random_windows(4, 12, seed=2), config, Path(sys.argv[1]), {"space": space.to_dict()})
powers = [t.params["power"] for t in outcome.trials]
print(json.dumps({"where": adapruner.__file__, "plain": plain, "hashes": hashes, "powers": powers, "won": outcome.recipe.power}))
"""


def apply(hunk: str, files: list[Path]) -> str:
    """Puts one hunk into the one file that has its context; returns the file's name."""
    lines = [line.removeprefix("   ") for line in hunk.strip("\n").splitlines()]
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    fitting = [f for f in files if f.read_text().count(before) == 1]
    assert len(fitting) == 1, f"expected one file with these lines, got {len(fitting)}:\n{before}"
    fitting[0].write_text(fitting[0].read_text().replace(before, after))
    return fitting[0].name


def test_the_documented_steps(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "adapruner", tmp_path / "adapruner", symlinks=False, ignore=shutil.ignore_patterns("__pycache__", "model"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    files = [tmp_path / "adapruner" / file for file in ("pruning/recipe.py", "pruning/problem.py", "search/space.py")]
    hunks = re.findall(r"```diff\n(.*?)   ```", PAGE.read_text(), re.DOTALL)
    assert [apply(h, files) for h in hunks] == ["recipe.py", "problem.py", "space.py", "space.py", "space.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["where"].startswith(str(tmp_path))
    assert found["hashes"][0] == found["plain"]  # the default is what was before
    assert found["hashes"][1] != found["plain"]
    assert found["powers"][:2] == [1.0, 1.0]  # the seed trials
    assert all(0.5 <= p <= 2.0 for p in found["powers"])
    assert len(set(found["powers"])) > 2
    assert found["won"] in found["powers"]
