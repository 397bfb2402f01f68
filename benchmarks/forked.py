"""The body of a fork: its output goes to files, its work runs in a folder, and it ends as a process of its own would."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def become(work: Callable[[], object], folder: Path, outputs: dict[int, int]) -> NoReturn:
    """In a child, right after ``os.fork()``: does the work and ends the process with the work's exit code.

    Args:
        work: what is done; ``SystemExit`` gives the exit code, any other exception a traceback and exit code 1.
        folder: where it is done.
        outputs: file descriptor, 1 or 2 -> the open one that it becomes.
    """
    code = 1
    try:
        for number, opened in outputs.items():
            os.dup2(opened, number)
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


def run_command(arguments: list[str]) -> None:
    """The command line with these arguments."""
    from adapruner.cli import main

    sys.argv = ["adapruner", *arguments]
    main(arguments)
