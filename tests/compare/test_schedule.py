from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapruner.compare import process
from adapruner.compare.cells import Cell, claim, is_done, lay_out
from adapruner.compare.command import run_compare
from adapruner.compare.process import FitProcess, last_error
from adapruner.compare.process import Starter as ProcessStarter
from adapruner.compare.schedule import run_cells
from adapruner.compare.spec import devices_of_a_cell
from adapruner.errors import ConfigurationError
from adapruner.files.folder_lock import FolderLock

from .fakes import FakeRun, Silent, Starter, fake_spec, find


def test_a_killed_comparison_runs_only_what_is_missing(tmp_path: Path) -> None:
    cells = lay_out(fake_spec(tmp_path))
    killed = Starter(kill_at=5)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run_cells(cells, killed, Silent(), pause=0)
    assert [is_done(c) for c in cells] == [True] * 5 + [False] * 7
    (cells[0].folder / "checkpoints").mkdir()  # it was killed before it had put the cell in order
    again = Starter()
    outcomes = run_cells(cells, again, Silent(), pause=0)
    assert not (cells[0].folder / "checkpoints").exists()
    assert again.started == [c.title for c in cells[5:]]
    assert list(outcomes) == cells
    assert [o.seconds is None for o in outcomes.values()] == [True] * 5 + [False] * 7
    third = Starter()
    run_cells(cells, third, Silent(), pause=0)
    assert third.started == []


def test_cells_at_work_end_with_the_comparison(tmp_path: Path) -> None:
    class Endless(FakeRun):
        def poll(self) -> int | None:
            return None

    cells, starter = lay_out(fake_spec(tmp_path)), Starter(make=Endless)

    class Interrupts(Silent):
        def begun(self, cell: Cell) -> None:
            if len(starter.runs) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run_cells(cells, starter, Interrupts(), jobs=3, pause=0)
    assert [run.ended for run in starter.runs] == [True, True]


def test_a_failure_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    cells, listener = lay_out(fake_spec(tmp_path)), Silent()
    outcomes = run_cells(cells, Starter(fails={cells[1].title: 1, cells[4].title: -9}), listener, pause=0)
    failures = {c.title: o.failure for c, o in outcomes.items() if o.failure}
    assert failures == {cells[1].title: "budget: expected less, got more; prune less", cells[4].title: "ended by signal 9"}
    assert sum(is_done(c) for c in cells) == 10
    assert sum(kind == "ended" for kind, _ in listener.lines) == 12
    again = Starter()
    run_cells(cells, again, Silent(), pause=0)
    assert again.started == [cells[1].title, cells[4].title]  # failed ones are tried again


def test_a_run_without_a_report_has_failed(tmp_path: Path) -> None:
    class Quiet(FakeRun):
        def poll(self) -> int | None:
            return 0

    cells = lay_out(fake_spec(tmp_path))[:1]
    (outcome,) = run_cells(cells, Starter(make=Quiet), Silent(), pause=0).values()
    assert outcome.failure == "it ended without a report"


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_no_more_cells_at_a_time_than_jobs(tmp_path: Path, jobs: int) -> None:
    starter = Starter()
    outcomes = run_cells(lay_out(fake_spec(tmp_path)), starter, Silent(), jobs=jobs, pause=0)
    assert starter.most == jobs
    assert len(outcomes) == 12


def test_the_line_that_says_why_is_of_the_last_attempt(tmp_path: Path) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    assert last_error(cell) == "no log"
    claim(cell, ["fit"])
    log = cell.folder / "log.txt"
    log.write_text("$ adapruner fit\nadapruner: error: old trouble\n$ adapruner fit\nTraceback\nValueError: new trouble\n\n")
    assert last_error(cell) == "ValueError: new trouble"
    log.write_text("$ adapruner fit\n")
    assert last_error(cell) == "nothing was printed"
    log.write_text("$ adapruner fit\nadapruner: error: budget.pruned_fraction: expected at most 0.8, got 0.9; give 0.8 or less\n")
    assert last_error(cell) == "budgets: expected at most 0.8, got 0.9; give 0.8 or less"


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """A program in the place of this Python."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(script))


@pytest.mark.skipif(os.name != "posix", reason="a script with a shebang")
def test_a_process_writes_its_log_and_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stand_in(monkeypatch, tmp_path, "import os, sys\nprint(os.environ['OMP_NUM_THREADS'], *sys.argv[1:4])\nprint('oh', file=sys.stderr)")
    run = FitProcess(cell, threads=3)
    assert run.process.wait(timeout=60) == 0
    assert run.poll() == 0
    lines = (cell.folder / "log.txt").read_text().splitlines()
    assert lines[0].startswith("$ ")
    assert sorted(lines[1:]) == ["3 -m adapruner.cli fit", "oh"]


@pytest.mark.skipif(os.name != "posix", reason="a script with a shebang")
def test_cells_at_a_time_have_a_gpu_each_and_their_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(process, "usable_cores", lambda: 7)
    code = "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], flush=True)\ntime.sleep(600)"
    stand_in(monkeypatch, tmp_path, code)
    cells, start = lay_out(fake_spec(tmp_path)), ProcessStarter(jobs=3)

    def said(cell: Cell) -> str:
        return str(_wait_for(lambda: (cell.folder / "log.txt").read_text().splitlines()[1]))

    running = [start(cell) for cell in cells[:3]]
    try:
        assert [said(cell) for cell in cells[:3]] == ["4 2", "6 2", "4 2"]
        running[1].end()
        running.append(start(cells[3]))
        assert said(cells[3]) == "6 2"
    finally:
        for process_at_work in running:
            process_at_work.end()
    named, alone = ProcessStarter(jobs=1, devices=["6"]), ProcessStarter(jobs=1)
    assert (named.devices, named.threads, alone.devices, alone.threads) == (("6",), None, (), None)
    assert ProcessStarter(jobs=3, devices_of_a_cell="2").devices == ()  # a cell that asks for two would find one


@pytest.mark.parametrize(
    ("options", "base", "expected"),
    [
        ((), "", "auto"),
        ((), "trainer: {devices: 2}", "2"),
        (("--trainer.devices=4",), "trainer: {devices: 2}", "4"),
        (("--trainer.devices", "3"), "", "3"),
    ],
)
def test_devices_of_a_cell_by_arguments_then_base(tmp_path: Path, options: tuple[str, ...], base: str, expected: str) -> None:
    spec = fake_spec(tmp_path, options=list(options))
    (tmp_path / "base.yaml").write_text(f"model: {{name_or_path: demo}}\n{base}\n")
    assert devices_of_a_cell(spec) == expected


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_all_cells_at_work(tmp_path: Path) -> None:
    code = (
        "import signal, sys, pathlib\nfrom adapruner.compare import process\nfrom adapruner.compare.command import run_compare\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it, and what it starts does too
        "from tests.compare.fakes import fake_spec, find\n"
        "folder = pathlib.Path(sys.argv[1])\nscript = folder / 'python'\n"
        "script.write_text('#!/bin/sh\\necho $$\\nexec sleep 600\\n')\nscript.chmod(0o755)\nprocess.sys.executable = str(script)\n"
        "spec = fake_spec(folder)\n"
        "words = ['--base', str(spec.base), '--methods', 'adapruner', '--budgets', '0.2', '--seeds', '0', '1', '2', '--jobs', '2']\n"
        "run_compare([*words, '--folder', str(folder / 'out')], find)\n"
    )
    root = Path(__file__).parent.parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def children() -> list[int]:
        logs = sorted((tmp_path / "out").glob("*/*/seed-*/log.txt"))
        found = [int(log.read_text().splitlines()[1]) for log in logs]
        return found if len(found) == 2 else []

    pids = _wait_for(children)
    assert not any(map(_is_gone, pids))
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert all(map(_is_gone, pids))
    assert len(list((tmp_path / "out").glob("*/*/seed-*"))) == 2  # the third was never begun


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_ending_a_process_ends_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    code = "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\ntime.sleep(600)"
    stand_in(monkeypatch, tmp_path, code)
    run, log = FitProcess(cell), cell.folder / "log.txt"
    child = _wait_for(lambda: int(log.read_text().splitlines()[1]))
    assert run.poll() is None
    run.end()
    assert run.process.returncode == -9
    _wait_for(lambda: _is_gone(child))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_a_comparison_killed_outright_leaves_no_run_behind(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom adapruner.compare import process\nfrom tests.compare.fakes import fake_spec\n"
        "from adapruner.compare.cells import lay_out\n"
        "folder = pathlib.Path(sys.argv[1])\nscript = folder / 'python'\n"
        "script.write_text('#!/bin/sh\\nexec sleep 600\\n')\nscript.chmod(0o755)\nprocess.sys.executable = str(script)\n"
        "print(process.FitProcess(lay_out(fake_spec(folder))[0]).process.pid, flush=True)\ntime.sleep(600)\n"
    )
    root = Path(__file__).parent.parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not _is_gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_for(lambda: _is_gone(child))


def test_one_comparison_at_a_time_in_a_folder(tmp_path: Path) -> None:
    spec, starter = fake_spec(tmp_path), Starter()
    spec.folder.mkdir()
    lists = ("--methods", "adapruner", "--budgets", "0.2", "--seeds", "0")
    arguments = ["--base", str(spec.base), *lists, "--folder", str(spec.folder)]
    lock = FolderLock()
    lock.take(spec.folder)
    with pytest.raises(ConfigurationError, match=r"^folder: expected no other run at work in .*out, got one; wait for it"):
        run_compare(arguments, find, start=starter)
    assert starter.started == []
    lock.release()
    assert run_compare(arguments, find, start=starter) == 0
    lock.take(spec.folder)  # the comparison gave it back
    lock.release()


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _wait_for(condition):  # type: ignore[no-untyped-def]
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if result := condition():
                return result
        except (IndexError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError("nothing happened in 30 seconds")
