"""What a killed writer leaves of the journal, and what a search makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adapruner.errors import ConfigurationError, StudyError
from adapruner.files.digests import sealed
from adapruner.search.journal import FILE, SEAL, check_journal, fail_killed, open_study, seal_of
from adapruner.search.statistics_cache import read_or_collect

IDENTITY = {"model": "f00d"}


def test_killed_while_the_journal_was_made(tmp_path: Path) -> None:
    """Optuna makes the file, then the study: an empty journal is none, and so is half of its first line."""
    for content in ("", '{"op_code": 0, "worker'):
        (tmp_path / FILE).write_text(content)
        check_journal(tmp_path, IDENTITY)
        assert open_study(tmp_path, IDENTITY, 1).user_attrs == {"identity": IDENTITY}
        (tmp_path / FILE).unlink()


def test_killed_while_it_held_the_lock(tmp_path: Path) -> None:
    """Optuna would wait half a minute for the dead process to give it back."""
    open_study(tmp_path, IDENTITY, 1)
    (tmp_path / f"{FILE}.lock").symlink_to(FILE)
    started = time.monotonic()
    study = open_study(tmp_path, IDENTITY, 1)
    study.ask()
    assert time.monotonic() - started < 20
    assert not (tmp_path / f"{FILE}.lock").is_symlink()


def test_a_study_that_is_there_is_opened_without_a_write(tmp_path: Path) -> None:
    """It may be another search's, which this one has no business in."""
    open_study(tmp_path, IDENTITY, 1)
    before = (tmp_path / FILE).read_bytes()
    check_journal(tmp_path, IDENTITY)
    open_study(tmp_path, IDENTITY, 1)
    with pytest.raises(StudyError, match=r"to have the same model \(f00d\), got beef; choose another run folder"):
        open_study(tmp_path, {"model": "beef"}, 1)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_last_line_is_refused(tmp_path: Path) -> None:
    """Optuna takes it for one that is being written, and stumbles once the next follows."""
    open_study(tmp_path, IDENTITY, 1).ask()
    journal = tmp_path / FILE
    journal.write_bytes(journal.read_bytes()[:-9] + b"#######}\n")
    with pytest.raises(StudyError, match=r"expected a sound journal in .*, got damage in its last line; move it away"):
        check_journal(tmp_path, IDENTITY)


def test_a_trial_that_was_changed_on_disk_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path, IDENTITY, 1)
    trial = study.ask()
    trial.suggest_float("gamma", 0.0, 1.0)
    trial.set_user_attr("plan_hash", "ab")
    trial.set_user_attr(SEAL, seal_of("COMPLETE", trial.params, 2.25, "ab"))
    study.tell(trial, 2.25)
    assert len(open_study(tmp_path, IDENTITY, 1).trials) == 1
    journal = tmp_path / FILE
    journal.write_text(journal.read_text().replace("2.25", "1.25"))
    with pytest.raises(StudyError, match=r"expected a sound journal in .*, got damage in line 7 \(its digest is of other content"):
        check_journal(tmp_path, IDENTITY)
    lines = [sealed(json.loads(line)) for line in journal.read_text().splitlines()]  # each line by itself is sound again
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StudyError, match=r"expected a sound journal in .*, got damage \(trial 0 was changed\); move it away"):
        open_study(tmp_path, IDENTITY, 1)


def test_a_trial_that_was_running_is_put_aside(tmp_path: Path) -> None:
    study = open_study(tmp_path, IDENTITY, 1)
    study.ask()
    fail_killed(study)
    again = open_study(tmp_path, IDENTITY, 1)
    assert [t.state.name for t in again.trials] == ["FAIL"]
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_statistics_on_a_full_disk_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    def full(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    file = tmp_path / "statistics.safetensors"
    with pytest.raises(
        ConfigurationError, match=r"folder: expected to write .*statistics.safetensors, got .*No space left on device.*; make"
    ):
        read_or_collect(file, "key", lambda: {"a": torch.ones(2)}, write=True)
    assert not list(tmp_path.iterdir())


def test_the_first_search_of_a_process_holds_nothing_after_it() -> None:
    """Optuna's import keeps frames, which keep what is in them; in another process, since here it may be imported already."""
    program = """if True:
        import gc, sys, weakref
        from adapruner.search.journal import open_study

        class Model:
            pass

        def search():
            model = Model()
            open_study(None, {}, 1)
            return weakref.ref(model)

        assert "optuna" not in sys.modules
        held = search()
        gc.collect()
        sys.exit(held() is not None)
    """
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
