"""The same comparison twice, the second killed half-way and started again: whether both give the same table.

    python benchmarks/compare_twice.py --json compare_twice.json

Three methods at two budgets with three seeds on the demo model, a few trials each. The first comparison runs through. The second,
in a folder of its own, gets a SIGKILL once half of its cells are done and, where a search is among those left, in the middle of that
search; the same command then goes on. ``equal`` says whether ``comparison.json``, ``.csv`` and ``.md`` have the same bytes, without
the columns and the table of what the runs took.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from adapruner.compare.cells import Cell, is_done, lay_out
from adapruner.compare.command import make_parser
from adapruner.compare.costs import TITLE as COST_TITLE
from adapruner.compare.spec import make_spec
from adapruner.compare.summary import Row

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("comparison.json", "comparison.csv", "comparison.md")


def command_of(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """``adapruner compare`` over small searches."""
    options = [f"--pruning.search.n_trials={arguments.trials}", f"--trainer.max_steps={arguments.steps}", "--data.search.samples=16"]
    lists = {"--methods": arguments.methods, "--budgets": arguments.budgets, "--seeds": arguments.seeds}
    flags = [word for flag, values in lists.items() for word in (flag, *map(str, values))]
    return ["compare", "--base", "quickstart.yaml", *flags, "--folder", str(folder), "--", *options]


def cells_of(command: list[str]) -> list[Cell]:
    """Every cell of a command, in the order in which they are run."""
    from adapruner.cli.shipped_configs import find_config

    own, options = command[1 : command.index("--")], command[command.index("--") + 1 :]
    values = {key: value for key, value in vars(make_parser().parse_args(own)).items() if value is not None}
    return lay_out(make_spec({**values, "options": options}, find_config))


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own; what it prints is added to ``log``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "adapruner.cli", *command], cwd=ROOT, env=environment, stdout=out, stderr=out)


def run_through(command: list[str], log: Path) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    code = start(command, log).wait()
    if code:
        raise SystemExit(f"compare ended with code {code}, see {log}")
    return time.monotonic() - began


def kill_half_way(command: list[str], log: Path) -> dict[str, Any]:
    """Starts it and ends it once half of the cells are done and the next has begun to search; what was there then."""
    cells = cells_of(command)
    process = start(command, log)
    while process.poll() is None:
        done = sum(map(is_done, cells))
        at_work = [cell for cell in cells if _in_search(cell) and not is_done(cell)]
        if done >= len(cells) // 2 and at_work:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return {"cells_done": done, "in": at_work[0].title, "trials_done": _trials(at_work[0])}
        time.sleep(0.05)
    raise SystemExit(f"compare ended before it could be killed half-way, see {log}: put a method that searches last")


def _in_search(cell: Cell) -> bool:
    """Whether it has some trials: a cell without a search is not waited for."""
    return _trials(cell) >= 2


def _trials(cell: Cell) -> int:
    try:
        return max(0, len((cell.folder / "trials.csv").read_text().splitlines()) - 1)
    except OSError:
        return 0


def measured(file: Path) -> str:
    """The file without times and memory, which differ from run to run."""
    text = file.read_text()
    if file.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        return json.dumps([{name: row[name] for name in Row.__dataclass_fields__} for row in rows])
    if file.suffix == ".md":
        return "\n## ".join(part for part in text.split("\n## ") if not part.startswith(COST_TITLE))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare-twice"), help="where both comparisons go; emptied first")
    parser.add_argument("--methods", nargs="+", default=["baselines/l2.yaml", "ablations/data-only.yaml", "adapruner"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="of recovery")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first, second = folder / "through", folder / "killed"
    seconds = {"through": run_through(command_of(arguments, first), folder / "through.log")}
    again = command_of(arguments, second)
    killed = kill_half_way(again, folder / "killed.log")
    seconds["resumed"] = run_through(again, folder / "killed.log")
    different = [name for name in TABLES if measured(first / name) != measured(second / name)]
    record = {
        "equal": not different,
        "different": different,
        "methods": arguments.methods,
        "budgets": arguments.budgets,
        "seeds": arguments.seeds,
        "cells": len(cells_of(again)),
        "trials": arguments.trials,
        "failed": len(json.loads((second / TABLES[0]).read_text())["failed"]),
        "killed": killed,
        "seconds": seconds,
        "machine": platform.machine(),
    }
    temporary = arguments.json.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(arguments.json)
    print(json.dumps(record, indent=1))
    raise SystemExit(0 if record["equal"] else 1)


if __name__ == "__main__":
    main()
