"""The same command on a finished run says so and does nothing; whatever is other than then makes it go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli import finished_run, main
from adapruner.cli.finished_run import FILE, AskedRun
from adapruner.files.digests import opened, sealed
from tests.spoilt import make_workspace

WORDS = ("--config", "base.yaml", "--model.name_or_path", "model", "--trainer.default_root_dir", "run", "--report.prompts", "[a b]")
ROOT = Path(__file__).parents[2]


def make_run(folder: Path) -> None:
    """Files as a run reads and leaves them, all of them written a while ago."""
    for name in ("base.yaml", "model/weights", "text/a.txt", "text/more/b.txt", "run/plan.json", "run/model/weights"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("seed_everything: 1\ndata: {calibration: {sources: [{name: a, path: text}]}}\n")
        os.utime(folder / name, (1_000_000_000, 1_000_000_000))


def asked(*more: str, words: tuple[str, ...] = WORDS, command: str = "fit") -> AskedRun | None:
    return AskedRun.of(command, [*words, *more], [])


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    run = asked()
    assert run is not None
    assert not run.is_finished()
    run.note()


@pytest.mark.usefixtures("finished")
def test_the_same_once_more_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/run.log").write_text("what is written at any time, and what came since, is no change")
    Path("run/notes.txt").write_text("mine")
    run = asked()
    assert run is not None
    assert run.is_finished()
    said = " ".join(capsys.readouterr().out.split())
    assert "run: this run is finished, nothing has changed since" in said
    assert "model: run/model; in short: adapruner inspect run" in said
    assert "to measure and export again, delete run/finished.json;" in said
    assert "or give another by --trainer.default_root_dir" in said
    Path("run/report_measurements.json").touch()
    pruned = asked(command="prune")
    assert pruned is not None
    assert pruned.is_finished()
    said = " ".join(capsys.readouterr().out.split())
    assert "delete run/report_measurements.json;" in said
    assert "or give another by --out" in said


def rewrite(record: Callable[[dict[str, Any]], Any]) -> None:
    content = opened(json.loads(Path("run", FILE).read_text()))
    record(content)
    Path("run", FILE).write_text(json.dumps(sealed(content)))


CHANGES: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "an option": (lambda: None, ("--report.speed_batches", "[2]"), "report.speed_batches is not as then"),
    "a value": (lambda: None, ("--report.prompts", "[c]"), "report.prompts is not as then"),
    "two": (lambda: None, ("--report.prompts", "[c]", "--data.seed=3"), "data.seed, report.prompts are not as then"),
    "the configuration": (lambda: Path("base.yaml").write_text("seed_everything: 2\n"), (), "seed_everything are not as then"),
    "the model": (lambda: Path("model/weights").write_text("other"), (), "model/weights is not as it was"),
    "new text": (lambda: Path("text/more/c.txt").write_text("new"), (), "text/more/c.txt is not as it was"),
    "text of the same size": (lambda: os.utime("text/more/b.txt"), (), "text/more/b.txt is not as it was"),
    "text gone": (lambda: Path("text/a.txt").unlink(), (), "text/a.txt is not as it was"),
    "a result": (lambda: Path("run/model/weights").write_text("half"), (), "run/model/weights is not as the run left it"),
    "a result gone": (lambda: shutil.rmtree("run/model"), (), "run/model/weights is not as the run left it"),
    "the code": (lambda: rewrite(lambda record: record.update(code=[1, 2, 3])), (), "adapruner's own code is not as it was"),
    "the release": (lambda: rewrite(lambda record: record.update(version="0.0.9")), (), "adapruner 0.0.9 made it, and this is"),
}


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_other_than_then_is_named_and_the_run_goes_on(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, more, said = CHANGES[name]
    change()
    run = asked(*more)
    assert run is not None
    assert not run.is_finished()
    text = " ".join(capsys.readouterr().out.split())
    assert "run: its run is finished, and goes on all the same, since" in text
    assert said in text


@pytest.mark.usefixtures("finished")
def test_the_order_of_options_may_matter(capsys: pytest.CaptureFixture[str]) -> None:
    run = asked(words=(*WORDS[:2], *WORDS[4:], *WORDS[2:4]))
    assert run is not None
    assert not run.is_finished()
    assert "its options stand in another order" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("finished")
def test_a_folder_at_work_and_a_damaged_record_are_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    run = asked()
    assert run is not None
    Path("run/.lock").touch()
    assert not run.is_finished()
    Path("run/.lock").unlink()
    assert run.is_finished()
    Path("run", FILE).write_text(Path("run", FILE).read_text().replace("1000000000", "1000000001", 1))
    capsys.readouterr()
    assert not run.is_finished()
    assert "run/finished.json is damaged: the run goes on" in capsys.readouterr().out


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    "more",
    [
        ("--checkpoint.resume", "false"),
        ("--trainer.max_time", "00:01:00:00"),
        ("--trainer.fast_dev_run", "true"),
        ("--print_config",),
        ("--data.search.sources", "[{name: all, path: .}]"),  # the run folder is in it
        ("--config", "{nothing"),
    ],
)
def test_what_is_never_done_or_not_known(more: tuple[str, ...]) -> None:
    assert asked(*more) is None


@pytest.mark.usefixtures("finished")
def test_one_of_several_processes_does_not_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert asked() is None


@pytest.mark.usefixtures("finished")
def test_what_an_import_reads_is_not_known() -> None:
    assert AskedRun.of("fit", WORDS, []) is not None
    assert AskedRun.of("fit", WORDS, ["json"]) is None


@pytest.mark.usefixtures("finished")
def test_options_by_environment_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    assert asked() is None


@pytest.mark.usefixtures("finished")
def test_the_working_directory_is_no_run_folder_to_look_at() -> None:
    assert asked("--trainer.default_root_dir", ".") is None


@pytest.mark.usefixtures("finished")
def test_a_link_that_leads_nowhere_is_passed_over() -> None:
    Path("text/gone.txt").symlink_to("nowhere")
    run = asked()
    assert run is not None
    assert run.is_finished()


@pytest.mark.parametrize("name", ["behind/new.py", "page.html", "page.jinja", "table.json"])
def test_own_code_is_looked_at_behind_links_and_with_its_templates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "package/behind").symlink_to("../callbacks")
    (tmp_path / "package/one.py").touch()
    monkeypatch.setattr(finished_run, "_PACKAGE", tmp_path / "package")
    before = finished_run._code()
    (tmp_path / "package" / name).write_text("1")
    assert finished_run._code() != before


@pytest.mark.usefixtures("finished")
def test_what_was_written_elsewhere_counts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/weights").write_text("exported")
    run = asked("--export.folder", "out")
    assert run is not None
    run.note()
    assert run.is_finished()
    assert "model: out;" in capsys.readouterr().out
    Path("out/weights").unlink()
    assert not run.is_finished()
    assert "out/weights is not as the run left it" in capsys.readouterr().out


def test_a_real_run_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    words = ["fit", "--config", "base.yaml", "--trainer.max_steps=2"]
    main(words)
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    assert Path("run", FILE) in before
    capsys.readouterr()
    again = "import sys; from adapruner.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", again, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    said = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr
    assert "run: this run is finished" in said
    assert "report: run/report.html" in said
    assert said.endswith("False\n")  # an answer within a second or two: torch was not loaded
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before
    main([*words, "--report.prompts=[w1]"])
    said = capsys.readouterr().out
    assert "report.prompts is not as then" in said
    assert "trials from the study" in said  # what is known is not made again
    assert json.loads(Path("run/report.json").read_text())["generations"][0]["prompt"] == "w1"
