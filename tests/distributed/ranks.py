"""``python -m tests.distributed.ranks FOLDER MODEL``, under torchrun's variables: all runs of two ranks, one after the other."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapruner.errors import AdaPrunerError
from adapruner.pruning.plan import read_plan
from tests.distributed.runs import KILLED_AT, describe, fit, two_ranks


def refusal(folder: Path, model: Path, **options: Any) -> str:
    try:
        fit(folder, model, **two_ranks("ddp"), **options)
    except AdaPrunerError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def other_plan(folder: Path, plan: Path, rank: int) -> Path:
    """On rank 1 a plan that keeps another channel."""
    if rank == 0:
        return plan
    given = read_plan(plan)
    gone = set(range(given.units["0.ffn"])) - set(given.kept["0.ffn"])
    kept = sorted([*given.kept["0.ffn"][1:], min(gone)])
    replace(given, kept={**given.kept, "0.ffn": kept}).save(folder / "other.json")
    return folder / "other.json"


def main(folder: Path, model: Path) -> None:
    rank, killed = int(os.environ["RANK"]), folder / "killed"
    plan = killed / "plan.json"
    found: dict[str, Any] = {}

    def run(name: str, where: Path, strategy: str, **options: Any) -> None:
        trainer = fit(where, model, **two_ranks(strategy), **options)
        found[name] = describe(trainer, folder / f"{name}.{rank}.pt")

    run("search", killed, "ddp", resume=None)
    run("resumed", folder / "elsewhere", "ddp", resume=killed / f"step={KILLED_AT}.ckpt")
    run("fsdp2", folder / "fsdp2", "fsdp2", plan=plan)
    run("fsdp2-resumed", folder / "fsdp2-resumed", "fsdp2", resume=folder / "fsdp2" / f"step={KILLED_AT}.ckpt")
    run("fsdp2-last", folder / "fsdp2-last", "fsdp2", resume=folder / "fsdp2" / "checkpoints" / "last.ckpt")
    for name, strategy in (("fsdp1", "fsdp1"), ("fsdp1-shards", "fsdp1 sharded")):
        run(name, folder / name, strategy, plan=plan)
        run(f"{name}-resumed", folder / f"{name}-resumed", strategy, resume=folder / name / f"step={KILLED_AT}.ckpt")
        run(f"{name}-last", folder / f"{name}-last", strategy, resume=folder / name / "checkpoints" / "last.ckpt")
    run("bf16", folder / "bf16", "ddp", dtype="bfloat16")
    for strategy in ("ddp", "fsdp1"):
        run(f"{strategy}-bf16", folder / f"{strategy}-bf16", strategy, plan=folder / "bf16" / "plan.json", dtype="bfloat16")
    found["plans differ"] = refusal(folder / "differ", model, plan=other_plan(folder, plan, rank))
    found["journal of one"] = refusal(folder / "searched", model)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
