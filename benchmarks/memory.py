"""How much memory the stages take, as ratios to what the same model takes anyway.

    python benchmarks/memory.py --json performance.json                # SmolLM2-135M in float32
    python benchmarks/memory.py --json performance.json --model demo   # quick

Figures go under ``memory`` into the file; its other keys stay. Every stage and every yardstick runs in a process of its own
(``memory_cases.py``), in the same run, on the same windows in the same batches, and is measured in the same way. The targets:

- scoring (two batches, all statistics of a default search) takes at most 1.25 times a plain forward with the backward to the activations;
- a trial of the search, from the recipe to its value, takes at most 1.1 times the bare forward with its loss, with and without the local
  refit;
- the sequential refit takes what ``reconstruction_gib`` says of it, within 15 %;
- surgery takes at most 1.1 times the weights;
- after 20 batches the scoring has taken at most 1.05 times what it had after 2, statistics apart, which are kept for every sample.

What is compared is the model's weights and what comes on top of them while the stage runs: Python and its libraries do not count. The
ratio of the parts on top alone stands beside it, not judged. Yardsticks are the model's own forward and loss, as anyone would call them;
since stages compute the loss a part of the vocabulary's logits at a time, ``ratio_same_loss`` is to the same passes with that loss, so
that the parts' gain and what a stage adds can be told apart. Gram matrices of a search are there before and after its trials; they are
left out of the ratio and said as ``held_gib``. The leak is looked for in what comes on top, where it would be seen.

``--ballast 2000`` holds 2000 MiB in every stage but no yardstick, in the scoring after each batch: every check then fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from memory_cases import ALLOCATOR, GIB, add_options

from adapruner.files.atomic import write_atomically

Found = dict[str, Any]
"""What a process of ``memory_cases.py`` says, in bytes."""


@dataclass(frozen=True)
class Check:
    """A stage, what it is compared with, and the target."""

    name: str
    case: str
    target: str
    judge: Callable[[Found, Callable[[str], Found]], Found]
    """What the stage took, and how to measure another -> a row with ``ratio`` and ``met``."""


def compare_with(yardstick: str, most: float) -> Callable[[Found, Callable[[str], Found]], Found]:
    """To plain passes, weights included."""

    def judge(found: Found, measure: Callable[[str], Found]) -> Found:
        plain, same_loss = measure(yardstick), measure(f"{yardstick}, loss in parts")
        ratio = total(found) / total(plain)
        return {
            "ratio": ratio,
            "met": ratio <= most,
            "ratio_same_loss": total(found) / total(same_loss),
            "ratio_on_top": found["increment"] / max(1, plain["increment"]),
            "ratio_on_top_same_loss": found["increment"] / max(1, same_loss["increment"]),
            "gib": total(found) / GIB,
            "yardstick_gib": total(plain) / GIB,
            "yardstick_same_loss_gib": total(same_loss) / GIB,
        }

    return judge


def compare_with_estimate(within: float) -> Callable[[Found, Callable[[str], Found]], Found]:
    """To what the package says before."""

    def judge(found: Found, _: Callable[[str], Found]) -> Found:
        ratio = total(found) / found["expected"]
        on_top = found["increment"] / (found["expected"] - found["weights"])
        gib = {"gib": total(found) / GIB, "yardstick_gib": found["expected"] / GIB}
        return {"ratio": ratio, "met": abs(ratio - 1) <= within, "ratio_on_top": on_top, **gib}

    return judge


def compare_with_weights(most: float) -> Callable[[Found, Callable[[str], Found]], Found]:
    """To the weights themselves."""

    def judge(found: Found, _: Callable[[str], Found]) -> Found:
        ratio = total(found) / found["weights"]
        return {"ratio": ratio, "met": ratio <= most, "gib": total(found) / GIB, "yardstick_gib": found["weights"] / GIB}

    return judge


def compare_on_top(fewer: str, most: float) -> Callable[[Found, Callable[[str], Found]], Found]:
    """To the same with fewer samples, without what is kept for each."""

    def judge(found: Found, measure: Callable[[str], Found]) -> Found:
        more, less = (one["increment"] - one["held"] for one in (found, measure(fewer)))
        return {"ratio": more / less, "met": more <= most * less, "gib": more / GIB, "yardstick_gib": less / GIB}

    return judge


CHECKS = (
    Check("scoring", "scoring", "<= 1.25", compare_with("backward", 1.25)),
    Check("trial", "trial", "<= 1.1", compare_with("forward", 1.1)),
    Check("trial with the local refit", "trial, refitted", "<= 1.1", compare_with("forward", 1.1)),
    Check("sequential refit", "refit", "1 +- 0.15", compare_with_estimate(0.15)),
    Check("surgery", "surgery", "<= 1.1", compare_with_weights(1.1)),
    Check("leak", "scoring, 20 small batches", "<= 1.05", compare_on_top("scoring, 2 small batches", 1.05)),
)


def total(found: Found) -> int:
    """The weights and what came on top."""
    return int(found["weights"] + found["increment"])


def measuring(options: argparse.Namespace) -> Callable[[str], Found]:
    """Case -> what it took in a fresh process; a yardstick that several checks share is measured once."""
    given = [argument for name, value in vars(options).items() if name not in ("json", "only") for argument in (f"--{name}", str(value))]
    given = [argument.replace("_", "-") if argument.startswith("--") else argument for argument in given]

    @cache
    def measure(case: str) -> Found:
        command = [sys.executable, str(Path(__file__).with_name("memory_cases.py")), case, *given]
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True, check=True)
        found: Found = json.loads(done.stdout.splitlines()[-1])
        return found

    return measure


def run(options: argparse.Namespace) -> list[Found]:
    """A row for each check, printed as it is there."""
    measure, rows = measuring(options), []
    print(f"{'':28}{'target':>10}{'ratio':>8}{'':>8}  GiB, and of the yardstick", flush=True)
    for check in CHECKS:
        if options.only and check.name not in options.only:
            continue
        found = measure(check.case)
        row = {"check": check.name, "target": check.target, **check.judge(found, measure), "held_gib": found["held"] / GIB}
        rows.append(row)
        verdict = "met" if row["met"] else "missed"
        print(f"{check.name:28}{check.target:>10}{row['ratio']:8.3f}{verdict:>8}  {row['gib']:.3f}, {row['yardstick_gib']:.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="these checks alone")
    add_options(parser)
    options = parser.parse_args()
    rows = run(options)
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"CPU, {platform.machine()}"
    setting = {name: str(value) for name, value in vars(options).items() if name not in ("json", "only")}
    record: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    record["memory"] = {"device": device, "torch": torch.__version__, "setting": setting, "rows": rows}
    write_atomically(options.json, json.dumps(record, indent=2) + "\n")
    sys.exit(not all(row["met"] for row in rows))


if __name__ == "__main__":
    main()
