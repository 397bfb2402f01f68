"""Kills a small but whole run at random moments, starts the same command again, and compares it with one left alone.

    python benchmarks/kill_test.py --json docs/kill_test.json --kills 50 --two-process-kills 10 --seed 0

Every kill has a run folder of its own: the run is killed once (SIGKILL, one time in four SIGTERM; of two processes the first,
the second or both), at a moment that is uniform within one of its stages; the stages take turns. Then the same command runs to
its end. Survived: it ended with code 0, with the plan, the perplexities and the very weights of the uninterrupted run; at most
one trial (for each process) and one checkpoint interval were done twice, and nothing was scored again; no temporary file and no
half-written one is left; the export loads. One record for each kill goes into the file as it is made; started again, the tool
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: equal runs have equal sums
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_checks import export_loads, facts, half_written, leftovers
from kill_inputs import SOURCES, make_inputs
from kill_runs import Lived, draw_aim, live
from kill_watch import STAGES

TRIALS, STEPS, EVERY = 24, 12, 4
#: A run of every stage in seconds: two metrics on two sources, short windows, two epochs of recovery with dropout.
SMALL = {
    "data.calibration.samples_per_source": "8",
    "data.calibration.seq_len": "64",
    "data.search.samples": "16",
    "data.search.seq_len": "64",
    "data.recovery.samples": "64",
    "data.recovery.seq_len": "64",
    "pruning.search.n_trials": str(TRIALS),
    "pruning.search.space.metrics": "[l2, gate_fisher]",
    "pruning.search.random_sets": "2",
    "pruning.search.rerank": "{candidates: 3, recovery_steps: 2}",
    "pruning.reconstruction.samples": "8",
    "recovery.lora.dropout": "0.1",
    "checkpoint.every_n_steps": str(EVERY),
    "report.compare": "[l2]",
    "report.latency_repeats": "1",
    "report.latency_seq_len": "32",
    "trainer.max_steps": str(STEPS),
    "trainer.default_root_dir": "run",
    "trainer.enable_progress_bar": "false",
}


def command(config: str, inputs: Path, processes: int) -> list[str]:
    """The arguments of ``fit``; run in a folder of its own."""

    def source(name: str, low: float, high: float) -> str:
        return f"{{name: {name}, path: {inputs / name}.jsonl, demo: null, split: train, part: [{low}, {high}]}}"

    changes = {
        "model.name_or_path": str(inputs / "base"),
        "data.calibration.sources": f"[{', '.join(source(name, 0.0, 0.3) for name in SOURCES)}]",
        "data.search.sources": f"[{source(SOURCES[0], 0.3, 0.5)}]",
        "data.recovery.sources": f"[{source(SOURCES[0], 0.5, 0.8)}]",
        "data.evaluation": f"[{{name: test, source: {source(SOURCES[0], 0.8, 1.0)}, limit: 8, windows: [64]}}]",
        **SMALL,
    }
    many = {"trainer.devices": "2", "trainer.strategy": "ddp"} if processes == 2 else {}
    return ["fit", "--config", config, *(f"--{key}={value}" for key, value in {**changes, **many}.items())]


def judge(record: dict[str, Any], first: Lived, second: Lived, run: Path, reference: dict[str, Any], processes: int) -> None:
    """Completes the record of a kill."""
    record["restart_code"] = max(second.codes, key=abs)
    record["trials_redone"] = first.trials + second.trials - TRIALS
    record["steps_redone"] = first.steps + second.steps - STEPS
    record["scored_again"] = second.scored > 0 and record["stage"] not in ("start", "scoring")
    record["leftovers"], record["half_written"] = leftovers(run), half_written(run)
    try:
        found = facts(run)
    except (OSError, ValueError, KeyError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    for key in ("plan", "perplexity", "rows", "weights", "trials", "steps"):
        record[f"{key}_equal"] = found.get(key) == reference["facts"][key]
    record["export_loads"] = (run / "model").is_dir() and export_loads(run)
    sound = all(record[f"{key}_equal"] for key in ("plan", "perplexity", "rows", "weights", "trials", "steps")) and record["export_loads"]
    cheap = record["trials_redone"] <= processes and record["steps_redone"] <= EVERY and not record["scored_again"]
    clean = not record["leftovers"] and not record["half_written"] and record["code"] != 0 and record["restart_code"] == 0
    record["survived"] = bool(sound and cheap and clean)


def kill_once(index: int, processes: int, reference: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One kill and the restart; missed kills, where the run was faster than the reference, are aimed again, earlier."""
    draw = random.Random(f"{arguments.seed}/{processes}/{index}")
    stage = STAGES[(index + arguments.seed) % len(STAGES)]
    aim = draw_aim(reference["timeline"], reference["seconds"], stage, processes, draw)
    line = command(arguments.config, arguments.inputs, processes)
    while True:
        folder = Path(tempfile.mkdtemp(prefix="kill-test-", dir=arguments.scratch))
        first = live(line, folder, processes, aim)
        if first.killed_in is not None:
            break
        aim.offset, aim.ranks = aim.offset / 2, (0,)  # the last to end
        shutil.rmtree(folder)
    second = live(line, folder, processes, None)
    record = {
        "seed": f"{arguments.seed}/{processes}/{index}",
        "moment": round(first.killed_at, 2),
        "stage": first.killed_in,
        "aimed_at": stage,
        "signal": signal.Signals(aim.signal).name,
        "processes": processes,
        "killed": list(aim.ranks),
        "code": max((first.codes[rank] for rank in aim.ranks), key=abs),
        "seconds": round(first.seconds + second.seconds, 1),
        **({"peer": first.peer} if first.peer else {}),
    }
    judge(record, first, second, folder / "run", reference, processes)
    if record["survived"]:
        shutil.rmtree(folder)
    else:
        record["kept"] = folder.name
    return record


def refer(processes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run that nothing interrupts."""
    folder = Path(tempfile.mkdtemp(prefix="kill-test-whole-", dir=arguments.scratch))
    lived = live(command(arguments.config, arguments.inputs, processes), folder, processes, None)
    if any(lived.codes):
        raise SystemExit(f"kill_test: expected the uninterrupted run to end, got the codes {lived.codes}; see {folder}")
    found = {"seconds": round(lived.seconds, 2), "timeline": lived.timeline, "facts": facts(folder / "run")}
    shutil.rmtree(folder)
    return found


def summarise(record: dict[str, Any]) -> None:
    runs = record["runs"]
    record["kills"], record["survived"] = len(runs), sum(r["survived"] for r in runs)
    record["plans_equal"] = sum(r["plan_equal"] for r in runs)
    record["trials_lost"] = max((r["trials_redone"] for r in runs), default=0)
    record["steps_lost"] = max((r["steps_redone"] for r in runs), default=0)
    for key in ("stage", "signal"):
        names = sorted({r[key] for r in runs})
        record[f"by_{key}"] = {n: [sum(r["survived"] for r in runs if r[key] == n), sum(r[key] == n for r in runs)] for n in names}


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the records go")
    parser.add_argument("--config", default="quickstart.yaml")
    parser.add_argument("--kills", type=int, default=50, help="of runs in one process")
    parser.add_argument("--two-process-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=None, help="where run folders go; the system's when empty")
    arguments = parser.parse_args()
    import adapruner.cli.fit  # noqa: F401  (every fork finds it imported)

    arguments.scratch = Path(arguments.scratch or tempfile.gettempdir()).resolve()
    arguments.inputs = make_inputs(arguments.scratch / "kill-test-inputs")
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"runs": [], "reference": {}}
    asked = [(1, index) for index in range(arguments.kills)] + [(2, index) for index in range(arguments.two_process_kills)]
    done = {r["seed"] for r in record["runs"]}
    for processes, index in asked:
        if f"{arguments.seed}/{processes}/{index}" in done:
            continue
        if str(processes) not in record["reference"]:
            record["reference"][str(processes)] = refer(processes, arguments)
        started = time.monotonic()
        found = kill_once(index, processes, record["reference"][str(processes)], arguments)
        record["runs"].append(found)
        summarise(record)
        write_record(arguments.json, record)
        said = "survived" if found["survived"] else f"DID NOT SURVIVE, see {found['kept']}"
        print(f"{found['seed']}: {found['signal']} in {found['stage']} at {found['moment']} s: {said} ({time.monotonic() - started:.0f} s)")
    print(f"{record['survived']} of {record['kills']} survived")
    raise SystemExit(record["survived"] != record["kills"])


if __name__ == "__main__":
    main()
