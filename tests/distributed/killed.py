"""``python -m tests.distributed.killed FOLDER MODEL``: search and recovery under torchrun's variables; never ends."""

import sys
from pathlib import Path

from tests.distributed.runs import KILLED_AT, fit, two_ranks

if __name__ == "__main__":
    fit(Path(sys.argv[1]), Path(sys.argv[2]), pause_at=KILLED_AT, **two_ranks("ddp"))
