"""How long the program takes to answer what needs no model, beside ``import torch``, which it does not need for any of this.

    python benchmarks/startup.py --json docs/performance.json --page docs/performance.md

Each command is a process of its own, the commands in turns, so that a busy machine slows all of them alike; the interpreter's own
start is in every figure, and by itself in the first row. The least of the rounds is what the command costs. A first round that fills the
file cache is not counted. Every answer is read: a command that fails, or a misspelt option that is not refused by its name, ends the
program.

A command may take 1.5 s. On a machine so busy that ``import torch`` itself takes more than 3 s, it may take half of that; and nowhere
as long as ``import torch``, however quick the machine is: whatever takes that long has imported something heavy. Where one takes longer,
the exit status is 1, and figures are written all the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import between_markers

from adapruner.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1.5
"""What a command may take where the machine has time for it."""
BUSY_SHARE = 0.5
"""Of the time of ``import torch``: what it may take where that is more."""
YARDSTICK = "import torch"
BEGIN, END = "<!-- start-up: written by benchmarks/startup.py -->", "<!-- start-up: end -->"


@dataclass(frozen=True)
class Command:
    """A process, and what it has to answer."""

    arguments: Sequence[str]
    answer: str = ""
    """Stands in what it prints, on either stream."""
    status: int = 0
    judged: bool = True
    """Whether the target is for it; the others are there to compare with."""


#: ``train.py`` is what the script ``adapruner`` runs, in a checkout that nobody installed.
COMMANDS: dict[str, Command] = {
    "python -c pass": Command(["-c", "pass"], judged=False),
    YARDSTICK: Command(["-c", "import torch"], judged=False),
    "import lightning": Command(["-c", "import lightning"], judged=False),
    "import adapruner": Command(["-c", "import adapruner"]),
    "adapruner --version": Command(["train.py", "--version"], "adapruner"),
    "adapruner --help": Command(["train.py", "--help"], "prune"),
    "adapruner prune --help": Command(["train.py", "prune", "--help"], "--texts"),
    "adapruner fit --help": Command(["train.py", "fit", "--help"], "--pruning"),
    "adapruner compare --help": Command(["train.py", "compare", "--help"], "--against"),
    "adapruner write-texts --help": Command(["train.py", "write-texts", "--help"], "--documents"),
    "adapruner fit --pruning.serach 3": Command(["train.py", "fit", "--pruning.serach", "3"], "pruning.search", 2),
    "adapruner fit --report.compare [wanda]": Command(["train.py", "fit", "--report.compare", "[wanda]"], "wanda_sp", 2),
    "adapruner prune ./my-modle --texts docs": Command(["train.py", "prune", "./my-modle", "--texts", "docs"], "is not there", 2),
    "adapruner prune my-model --txets my-texts": Command(["train.py", "prune", "my-model", "--txets", "my-texts"], "--texts", 2),
}


def limit(torch_seconds: float) -> float:
    """Seconds that a command may take where ``import torch`` takes so many.

    >>> [limit(seconds) for seconds in (1.0, 2.0, 8.0)]
    [1.0, 1.5, 4.0]
    """
    return min(torch_seconds, max(SECONDS, BUSY_SHARE * torch_seconds))


def seconds_of(name: str, command: Command) -> float:
    """Wall-clock time of one process; ends the program where it does not answer what it should."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command.arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - started
    said = done.stdout + done.stderr
    if done.returncode != command.status or command.answer not in said:
        sys.exit(f"{name}: expected status {command.status} and {command.answer!r} in the answer, got {done.returncode} and:\n{said}")
    return taken


def judge(rounds: Sequence[Mapping[str, float]], commands: Mapping[str, Command]) -> list[dict[str, Any]]:
    """A row for each command: seconds, the ratio to ``import torch`` and, where there is a target, whether it is met."""
    taken = {name: [times[name] for times in rounds] for name in commands}
    torch_seconds = min(taken[YARDSTICK])
    rows = []
    for name, command in commands.items():
        least = min(taken[name])
        row = {"command": name, "seconds": least, "median": statistics.median(taken[name]), "ratio": least / torch_seconds}
        if command.judged:
            row |= {"limit": limit(torch_seconds), "met": least <= limit(torch_seconds)}
        rows.append(row)
    return rows


def render(record: Mapping[str, Any]) -> str:
    """The table of the page, in Markdown."""
    lines = [
        f"The least of {record['rounds']} rounds (their median in brackets); {record['cores']} cores, {record['machine']}, load "
        f"{record['load']:.1f} before, Python {record['python']}, torch {record['torch']}.",
        "",
        f"| | seconds | of `{YARDSTICK}` | at most |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        verdict = "" if "met" not in row else f"{row['limit']:.1f} s" + ("" if row["met"] else ", **missed**")
        lines.append(f"| `{row['command']}` | {row['seconds']:.2f} ({row['median']:.2f}) | {row['ratio']:.2f} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file whose key startup gets the figures; its other keys stay")
    parser.add_argument("--page", type=Path, help="a page that gets the table, between its markers")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rounds = [{name: seconds_of(name, command) for name, command in COMMANDS.items()} for _ in range(given.rounds + 1)][1:]
    versions = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": load}
    record = {**versions, **machine, "rounds": len(rounds), "rows": judge(rounds, COMMANDS)}
    print(render(record))
    if given.json is not None:
        figures = json.loads(given.json.read_text()) if given.json.exists() else {}
        write_atomically(given.json, json.dumps({**figures, "startup": record}, indent=1) + "\n")
    if given.page is not None:
        write_atomically(given.page, between_markers(given.page.read_text(encoding="utf-8"), BEGIN, END, render(record)))
    missed = [row["command"] for row in record["rows"] if not row.get("met", True)]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
