"""One run at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapruner.errors import ConfigurationError
from adapruner.files.folder_lock import FolderLock

REFUSED = r"^folder: expected no other run at work in .*, got one; wait for it, end it, or choose another folder$"


def test_a_second_one_waits_for_the_first_to_end(tmp_path: Path) -> None:
    first, second = FolderLock(), FolderLock()
    first.take(tmp_path)
    first.take(tmp_path)  # it is ours
    with pytest.raises(ConfigurationError, match=REFUSED):
        second.take(tmp_path)
    first.release()
    second.take(tmp_path)
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = "import os, sys; from adapruner.files.folder_lock import FolderLock; from pathlib import Path; "
    code += "lock = FolderLock(); lock.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    mine = FolderLock()
    with pytest.raises(ConfigurationError, match=REFUSED):
        mine.take(tmp_path)
    process.kill()
    process.wait()
    mine.take(tmp_path)
    mine.release()
