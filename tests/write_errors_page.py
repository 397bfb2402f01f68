"""Writes ``docs/errors.md``: runs every row of the table of bad inputs and notes what a user is told.

python -m tests.write_errors_page
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from adapruner.files.atomic import write_atomically
from tests.bad_inputs import ROWS, BadInput, command_of
from tests.spoilt import make_workspace

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
_START = "adapruner: error: "
_TOP = """# Error messages

Written by `python -m tests.write_errors_page` from the table in `tests/bad_inputs.py`: every row spoils one thing of a small
good input, and `tests/cli/test_bad_input.py` checks that the command ends with exit code 2 and this one line on stderr, behind
`adapruner: error: `, before any statistic is collected, and that no file or folder is new or changed.

A line names the argument, what was expected, what came, and the remedy. What can be checked on its own is checked before the line is
written, so that several errors come as one: of all sections of the configuration, of all sources, of all that the loaded model
decides. Three stages stop what comes behind them, because it could not be judged: reading the options, making the objects of the
sections, and reading text.

Two things show only while training: a loss or a gradient that is no number ends the run in the same way, at the first step that
it happens in, naming the step, the sample and the layer or parameter.
"""


def told(row: BadInput, good: Path, folder: Path) -> str:
    """The message of one row."""
    from adapruner.cli import main

    shutil.copytree(good, folder)
    os.chdir(folder)
    if row.spoil is not None:
        row.spoil(folder)
    errors = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.suppress(SystemExit):
            main(command_of(row))
    lines = [line for line in errors.getvalue().splitlines() if line.startswith(_START)]
    assert len(lines) == 1, f"{row.name}: {errors.getvalue()!r}"
    message = lines[0].removeprefix(_START).replace(f"{folder}/", "")  # the page tells of files, not of this machine
    assert re.search(row.message, message), f"{row.name}: {message}"
    assert str(folder) not in message, f"{row.name}: a path of this machine: {message}"
    return message


def main() -> None:
    """Writes the page."""
    lines, here = [_TOP], Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        good = Path(name).resolve() / "good"
        good.mkdir()
        make_workspace(good)
        for title, rows in ROWS.items():
            lines += [f"\n## {title}\n", "| | |", "|---|---|"]
            for number, row in enumerate(rows):
                message = told(row, good, good.parent / f"{len(lines)}-{number}").replace("|", "\\|")
                lines.append(f"| {row.name} | `` {message} `` |" if "`" in message else f"| {row.name} | `{message}` |")
        os.chdir(here)
    write_atomically(PAGE, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
