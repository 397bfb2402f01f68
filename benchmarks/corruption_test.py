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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: equal runs have equal sums
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_checks import facts
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
#: In figures, what a clock or a path says.
_VOLATILE = re.compile(r"second|resumed|latency|_ms|created|command|per_second|energy|memory|bytes|hardware|versions|path|throughput")


@dataclass
class Ended:
    """A command at its end."""

    code: int
    out: str
    err: str
    changed: list[str] = field(default_factory=list)
    """Files that it changed, where it was refused."""


def run(folder: Path, work: Callable[[], None]) -> Ended:
    """In a fork, in this folder; what it says goes to files beside it."""
    out, err = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    pid = os.fork()
    if pid == 0:
        _child(folder, work, out, err)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _child(folder: Path, work: Callable[[], None], out: Path, err: Path) -> None:
    """Never returns."""
    code = 1
    try:
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(folder)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def cli(*arguments: str) -> Callable[[], None]:
    """The command line as the work of a fork."""

    def work() -> None:
        from adapruner.cli import main

        sys.argv = ["adapruner", *arguments]
        main(list(arguments))

    return work


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


# ---------------------------------------------------------------------------------------------------------------------- seven ways
def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, Path, random.Random], None]:
    def damage(file: Path, other: Path, draw: random.Random) -> None:
        file.write_bytes(change(file.read_bytes(), draw))

    return damage


def _one_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _zeros(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(max(1, min(len(content) // 2, len(content) - (1 << 15))))
    return content[:place] + bytes(min(1 << 16, len(content) - place)) + content[place + (1 << 16) :]


def _to_folder(file: Path, other: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _to_link(file: Path, other: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to("leads/nowhere")


WAYS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "half": _bytes(lambda content, _: content[: len(content) // 2]),
    "empty": _bytes(lambda content, _: b""),
    "one bit": _bytes(_one_bit),
    "64 KiB of zeros": _bytes(_zeros),
    "another run's": lambda file, other, _: file.write_bytes(other.read_bytes()) and None,
    "a folder": _to_folder,
    "a dangling link": _to_link,
}


# ------------------------------------------------------------------------------------------------------------------------ judgement
def steady(value: Any) -> Any:
    """Figures without what a clock says."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if not _VOLATILE.search(key) and key not in ("digest", "cost", "measured")}
    return [steady(item) for item in value] if isinstance(value, list) else value


def digests(folder: Path) -> dict[str, str]:
    """File -> digest of its content, of everything in a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def of_fit(folder: Path, ended: Ended) -> Any:
    """What a run is for."""
    report = json.loads((folder / "run/report.json").read_text())
    chosen = json.loads((folder / "run/calibration_set.json").read_text())
    return [facts(folder / "run"), steady(report), chosen["samples"], _card(folder / "run/model")]


def of_export(folder: Path, ended: Ended) -> Any:
    """Weights, plan and model card of what was written."""
    weights = {name: digest for name, digest in digests(folder / "out").items() if name.endswith(".safetensors")}
    return [weights, json.loads((folder / "out/plan.json").read_text())["hash"], _card(folder / "out")]


def of_inspect(folder: Path, ended: Ended) -> Any:
    """What is printed."""
    return steady(json.loads(ended.out))


def of_print(folder: Path, ended: Ended) -> Any:
    """Lines with figures."""
    return [line for line in ended.out.splitlines() if re.search(r"\d", line) and not re.search(r"seconds|it/s|/s\b", line)]


def _card(folder: Path) -> str:
    text = (folder / "README.md").read_text()
    clock = re.compile(r"latency|ms\b|memory|GiB|tokens/s|second|^\| (dense|pruned) \| [\d,]+ \| [\d,]+ \|", re.IGNORECASE)
    return "\n".join(line for line in text.splitlines() if not clock.search(line))


@dataclass
class Command:
    """Something that believes what is in a folder."""

    name: str
    work: Callable[[], None]
    essence: Callable[[Path, Ended], Any]


def judge(made: Command, ended: Ended, folder: Path, reference: Any) -> tuple[str, str]:
    """``right``, ``silent``, ``traceback`` or ``untidy``, and what shows it."""
    said = [line for line in ended.err.splitlines() if line.startswith("adapruner: error: ")]
    if "Traceback (most recent call last)" in ended.err + ended.out or ended.code not in (0, 2):
        return "traceback", (ended.err.strip().splitlines() or [f"exit code {ended.code}"])[-1]
    if ended.code == 2:
        one = len(said) == 1 and re.fullmatch(r"adapruner: error: .+: expected .+, got .+; .+", said[0])
        return ("right", said[0]) if one and not ended.changed else ("untidy", f"{said or ended.err[-200:]}, changed {ended.changed}")
    try:
        found = made.essence(folder, ended)
    except (OSError, ValueError, KeyError) as error:
        return "silent", f"{type(error).__name__}: {error}"
    notes = [
        line
        for line in ended.out.splitlines()
        if "damaged" in line or "not as fit wrote it" in line or "starts anew" in line or "leaves seeds out" in line
    ]
    if found == reference:
        return "right", (notes or ["the same result"])[0]
    if made.name.startswith("inspect") and json.loads(ended.out)["remarks"]:
        return "right", json.loads(ended.out)["remarks"][0]
    if made.name == "export" and notes and found[:2] == reference[:2]:  # the model card lacks what is damaged, and that is said
        return "right", notes[0]
    return "silent", f"exit code 0, another result: {_difference(found, reference)}"


def _difference(found: Any, reference: Any, where: str = "") -> str:
    """The first place in which two results differ."""
    if isinstance(found, dict) and isinstance(reference, dict):
        pairs = [(key, found.get(key), reference.get(key)) for key in {**found, **reference}]
    elif isinstance(found, list) and isinstance(reference, list) and len(found) == len(reference):
        pairs = list(zip(range(len(found)), found, reference, strict=True))
    elif isinstance(found, str) and isinstance(reference, str) and "\n" in found:
        return _difference(found.splitlines(), reference.splitlines(), where)
    else:
        return f"{where}: {str(found)[:150]} != {str(reference)[:150]}"
    return next((_difference(one, other, f"{where}/{key}") for key, one, other in pairs if one != other), "")


# ----------------------------------------------------------------------------------------------------------------------------- tries
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
