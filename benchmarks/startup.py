"""How long the program takes to start, beside ``import torch``, which it does not need for any of this.

    python benchmarks/startup.py --rounds 5

Each command is a process of its own, the commands in turns, so that a busy machine slows all of them alike; the interpreter's own
start is in every figure, and by itself in the first row. The least of the rounds is what the command costs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": ["-c", "pass"],
    "import adapruner": ["-c", "import adapruner"],
    "adapruner --help": ["train.py", "--help"],
    "adapruner --version": ["train.py", "--version"],
    "adapruner compare --help": ["train.py", "compare", "--help"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
    "adapruner fit --help": ["train.py", "fit", "--help"],
}


def seconds_of(arguments: Sequence[str]) -> float:
    """Wall-clock time of one process that has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = [{name: seconds_of(arguments) for name, arguments in COMMANDS.items()} for _ in range(parser.parse_args().rounds)]
    print(f"{'':26} {'least':>7} {'median':>7}   seconds, {len(rounds)} rounds")
    for name in COMMANDS:
        taken = [times[name] for times in rounds]
        print(f"{name:26} {min(taken):7.2f} {statistics.median(taken):7.2f}")


if __name__ == "__main__":
    main()
