"""Damages every file that a run and an export leave, in seven ways and at three moments, and looks what is made of it.

    python benchmarks/corruption_test.py --json docs/corruption_test.json

A small but whole run is killed in the search, killed in recovery, and left to its end. Of each of these folders every file in turn is cut
in half, emptied, has one bit flipped or 64 KiB zeroed, becomes that of a run with other seeds, a folder, or a link that leads nowhere.
Then whatever believes the file is run: the same command again, ``export`` and ``inspect``, and of an export ``validate`` and
:func:`adapruner.load`, too. Right: the plan, the weights and all figures are those of the undamaged run, or the command ends with exit
code 2 and one line, nothing else changed. Silent: it ends with 0 and something differs. Every try is a fork that has imported
everything; started again with the same file, the tool goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: equal runs have equal sums
sys.path.insert(0, str(Path(__file__).resolve().parent))

from corruption_checks import Command, Ended, digests, judge, of_export, of_fit, of_inspect, of_print
from damage import WAYS
from forked import become, run_command
from kill_inputs import make_inputs
from kill_test import command, write_record

MOMENTS = ("killed in the search", "killed in recovery", "finished")
SMALLER = {
    "pruning.search.n_trials": "8",
    "pruning.search.random_sets": "1",
    "pruning.search.rerank": "{candidates: 2, recovery_steps: 1}",
    "data.recovery.samples": "16",
    "data.recovery.seq_len": "32",
    "trainer.max_steps": "4",
    "checkpoint.every_n_steps": "2",
    "export.max_shard_size": "100KB",
    "export.adapters": "folder",
    "export.verify": "false",
}
OTHER = tuple(f"--{name}=7" for name in ("seed_everything", "pruning.search.seed", "data.seed", "recovery.seed"))


def run(folder: Path, work: Callable[[], None]) -> Ended:
    """In a fork, in this folder; what it says goes to files beside it."""
    out, err = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    pid = os.fork()
    if pid == 0:
        become(work, folder, {number: os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for number, file in ((1, out), (2, err))})
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def cli(*arguments: str) -> Callable[[], None]:
    """The command line as the work of a fork."""
    return lambda: run_command(list(arguments))


def killed(moment: str, work: Callable[[], None]) -> Callable[[], None]:
    """The work, ended by SIGKILL after the fifth trial, or after the checkpoint of the second step."""

    def until() -> None:
        from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
        from adapruner.search.optuna_study import OptunaStudy

        owner, name, left = (OptunaStudy, "tell", 5) if moment == MOMENTS[0] else (RecoveryCheckpointCallback, "on_train_batch_end", 3)
        inner: Any = getattr(owner, name)

        def outer(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            result, left = inner(*arguments, **options), left - 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, outer)
        work()

    return until


def load_export(folder: str) -> Callable[[], None]:
    """Prints a digest of the logits of an export."""

    def work() -> None:
        import torch

        from adapruner.errors import AdaPrunerError
        from adapruner.export.loading import load

        try:
            with torch.no_grad():
                logits = load(folder)(torch.arange(1, 17)[None]).logits
        except AdaPrunerError as error:
            print(f"adapruner: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())

    return work


class Tester:
    """Snapshots, reference and tries."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.scratch, self.seed = arguments.scratch, arguments.seed
        self.fit = [*command("quickstart.yaml", make_inputs(self.scratch / "inputs"), 1), *(f"--{k}={v}" for k, v in SMALLER.items())]
        self.snapshots: dict[str, Path] = {}
        self.others: dict[str, Path] = {}
        self.references: dict[str, Any] = {}

    def prepare(self) -> None:
        """Runs that are killed, and one that is not, of two seeds each."""
        for words, made in (((), self.snapshots), (OTHER, self.others)):
            for moment in MOMENTS:
                folder = self.scratch / f"snapshot-{len(words)}-{MOMENTS.index(moment)}"
                folder.mkdir()
                work = cli(*self.fit, *words)
                ended = run(folder, work if moment == MOMENTS[2] else killed(moment, work))
                if ended.code != (0 if moment == MOMENTS[2] else -signal.SIGKILL):
                    raise SystemExit(f"corruption_test: expected a run that is {moment}, got exit code {ended.code}: {ended.err[-2000:]}")
                made[moment] = folder
        for moment in MOMENTS:
            for name in self.files(moment):
                for made in self.commands(moment, name):
                    if made.name not in self.references:
                        folder = self.copy(moment)
                        ended = run(folder, made.work)
                        if ended.code != 0:
                            raise SystemExit(f"corruption_test: expected {made.name} to end, got {ended.code}: {ended.err[-2000:]}")
                        self.references[made.name] = made.essence(folder, ended)
                        shutil.rmtree(folder)

    def files(self, moment: str) -> list[str]:
        """Every file of a run's folder; those of its export once."""
        run_folder = self.snapshots[moment] / "run"
        return sorted(str(p.relative_to(run_folder)) for p in run_folder.rglob("*") if p.is_file() and p.name != ".lock")

    def copy(self, moment: str) -> Path:
        """A folder to damage."""
        folder = Path(tempfile.mkdtemp(prefix="try-", dir=self.scratch))
        shutil.copytree(self.snapshots[moment] / "run", folder / "run", symlinks=True)
        return folder

    def commands(self, moment: str, name: str) -> list[Command]:
        """What believes this file; the one that changes the folder last."""
        found = [Command("fit", cli(*self.fit), of_fit)]
        if moment == MOMENTS[2] and name.startswith("model/"):
            validate = ["validate", *self.fit[1:], "--model.name_or_path=run/model", "--trainer.logger=false"]
            found = [
                Command("inspect of the export", cli("inspect", "run/model", "--json"), of_inspect),
                Command("load", load_export("run/model"), of_print),
                Command("validate", cli(*validate), of_print),
                Command("export of the export", cli("export", "run/model", "out", "--no-verify"), of_export),
            ]
        elif moment == MOMENTS[2]:
            export = cli("export", "run", "out", "--no-verify")
            found = [Command("inspect", cli("inspect", "run", "--json"), of_inspect), Command("export", export, of_export), *found]
        return found

    def attempt(self, moment: str, name: str, way: str) -> dict[str, Any]:
        """One damage, and every command that believes the file."""
        folder, other = self.copy(moment), self.others[moment] / "run" / name
        record: dict[str, Any] = {"moment": moment, "file": name, "way": way}
        if way == "another run's" and not other.is_file():
            other = next(iter(sorted((self.others[moment] / "run" / name).parent.glob(f"*{Path(name).suffix}"))), folder / "run" / name)
        WAYS[way](folder / "run" / name, other, random.Random(f"{self.seed}/{moment}/{name}/{way}"))
        verdicts, before = {}, digests(folder)
        for made in self.commands(moment, name):
            ended = run(folder, made.work)
            if ended.code == 2:
                after = digests(folder)
                ended.changed = sorted(n for n in {*before, *after} if before.get(n) != after.get(n) and n != "run/.lock")
            verdicts[made.name] = judge(made, ended, folder, self.references[made.name])
            shutil.rmtree(folder / "out", ignore_errors=True)
        worst = next((v for v in ("traceback", "silent", "untidy") if v in {verdict for verdict, _ in verdicts.values()}), "right")
        record["verdict"], record["said"] = worst, {n: said for n, (v, said) in verdicts.items() if v == worst}
        for path in (folder, folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return record


def _import_all() -> None:
    """Every fork finds it imported, and the text of the page's library made."""
    import altair  # noqa: F401
    import optuna.importance
    import optuna.storages.journal  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import adapruner.cli.export
    import adapruner.cli.fit
    import adapruner.export.writing
    import adapruner.report.page  # noqa: F401
    from adapruner.report.vega import javascript

    javascript()


def summarise(record: dict[str, Any]) -> None:
    """The keys that are read first."""
    tries = record.pop("tries")
    record["tried"], record["right"] = len(tries), sum(t["verdict"] == "right" for t in tries)
    record["silent"], record["tracebacks"] = (sum(t["verdict"] == kind for t in tries) for kind in ("silent", "traceback"))
    for key in ("moment", "way"):
        names = list(dict.fromkeys(t[key] for t in tries))
        record[f"by_{key}"] = {
            n: [sum(t["verdict"] == "right" for t in tries if t[key] == n), sum(t[key] == n for t in tries)] for n in names
        }
    record["tries"] = tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the records go")
    parser.add_argument("--seed", type=int, default=0, help="of places in files")
    parser.add_argument("--only", default="", help="regular expression of 'moment/file/way'; all when empty")
    parser.add_argument("--scratch", type=Path, default=None, help="where folders go; the system's when empty")
    arguments = parser.parse_args()
    _import_all()

    arguments.scratch = Path(tempfile.mkdtemp(prefix="corruption-test-", dir=arguments.scratch)).resolve()
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"seed": arguments.seed, "tries": [], "minutes": 0.0}
    done, started = {(t["moment"], t["file"], t["way"]) for t in record["tries"]}, time.monotonic() - 60 * record["minutes"]
    tester = Tester(arguments)
    try:
        tester.prepare()
        for moment in MOMENTS:
            for name in tester.files(moment):
                for way in WAYS:
                    if (moment, name, way) in done or not re.search(arguments.only, f"{moment}/{name}/{way}"):
                        continue
                    record["tries"].append(tester.attempt(moment, name, way))
                    summarise(record)
                    record["minutes"] = round((time.monotonic() - started) / 60, 1)
                    write_record(arguments.json, record)
                    found = record["tries"][-1]
                    if found["verdict"] != "right":
                        print(f"{moment}: {name}: {way}: {found['verdict']}: {found['said']}", flush=True)
    finally:
        shutil.rmtree(arguments.scratch, ignore_errors=True)
    print(f"{record['right']} of {record['tried']} right, {record['silent']} silent, {record['tracebacks']} tracebacks")
    raise SystemExit(record["right"] != record["tried"])


if __name__ == "__main__":
    main()
