"""Names that no local file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.files.paths import check_folder_path, check_path
from tests.complaints import complaint


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/run", "expected a local path, got 's3://bucket/run'"),
        ("file:///tmp/run", "expected a local path"),
        ("memory://run", "expected a local path"),
        ("a\0b", "with a NUL in it"),
        ("x" * 256, "got one of 256 characters"),
        ("é" * 128, "got one of 128 characters"),
        ("x/" * 2048, "got one of 4096 characters"),
        (5, "expected a path, got 5"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_refused(path: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^folder: .*{message}"):
        check_path("folder", path)


@pytest.mark.parametrize("path", [None, "", "a", "a/b:c", "C:\\run", "x" * 255, "organisation/model", Path("a")])
def test_what_passes(path: Any) -> None:
    assert complaint(check_path, "folder", path) is None


def test_what_is_in_the_way_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here").symlink_to(".")
    for path, what in {
        "file": "a file",
        "file/a/b": "a file",
        "gone": "a link",
        "gone/a": "a link",
        "loop": "a link",
        "loop/a": "a link",
    }.items():
        with pytest.raises(ConfigurationError, match=f"^folder: expected a folder, got {what}"):
            check_folder_path("folder", path)
    for path in (None, "new/er", "here/new", "."):
        check_folder_path("folder", path)
