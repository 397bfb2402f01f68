"""Scripts in processes of their own: a time limit, no launcher's variables, everything they started ended with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_LAUNCHERS = ("TORCHELASTIC", "SLURM", "PL_", "PYTEST_XDIST", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "NODE_")
_VARIABLES = ("RANK", "WORLD_SIZE")


def clean_environment() -> dict[str, str]:
    """This process's environment, as if no launcher had started it."""
    kept = {k: v for k, v in os.environ.items() if k not in _VARIABLES and not k.startswith(_LAUNCHERS)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(arguments: Sequence[str], log: Path, seconds: float, ranks: int = 1, until: Callable[[], bool] | None = None) -> None:
    """``python ARGUMENTS``, once for each rank under the variables that torchrun would set.

    Args:
        until: asked again and again; once true, all are killed, and that is the end that is expected.
    """
    environment, processes = clean_environment(), []
    if ranks > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        environment |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    with log.open("w") as out:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            command = [sys.executable, *arguments]
            started = subprocess.Popen(command, cwd=ROOT, env={**environment, **own}, stdout=out, stderr=out, start_new_session=True)
            processes.append(started)
    end, killed = time.monotonic() + seconds, False
    try:
        while any(p.poll() is None for p in processes) and time.monotonic() < end and not killed:
            if any(p.poll() for p in processes) or (until is not None and (killed := until())):
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    codes = [p.wait() for p in processes]
    expected = [-signal.SIGKILL] if until is not None else [0]
    assert codes == expected * ranks, f"{codes} {log.read_text()[-4000:]}"
