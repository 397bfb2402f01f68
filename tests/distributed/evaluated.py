"""``python -m tests.distributed.evaluated FOLDER MODEL``, under torchrun's variables or alone: what ``test`` and ``validate`` measure."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lightning import Trainer

from adapruner.module import PrunableCausalLM
from tests.distributed.runs import TinyData, two_ranks
from tests.tiny import random_windows

WINDOWS, BATCH = 7, 2
"""Two ranks get four windows each, one of them silent."""


class OddData(TinyData):
    """Sets that two ranks do not divide."""

    def __init__(self) -> None:
        super().__init__(BATCH)
        self.search_windows = random_windows(WINDOWS, 16, seed=2)
        self.evaluation_windows = {("a", 16): random_windows(WINDOWS, 16, seed=6), ("b", 8): random_windows(1, 8, seed=7)}


def evaluate(folder: Path, model: Path, **options: Any) -> dict[str, list[Any]]:
    """Command -> NLL in nats and predicted tokens of each loader."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module, found = PrunableCausalLM(str(model), dtype="float32"), {}
    for command in ("test", "validate"):
        trainer = Trainer(default_root_dir=folder, accelerator="cpu", **quiet, **{"devices": 1, **options})
        getattr(trainer, command)(module, datamodule=OddData(), verbose=False)
        found[command] = [[result.nll_sum, result.tokens] for _, result in sorted(module.measured.items())]
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / f"evaluated{os.environ['RANK']}.json").write_text(json.dumps(evaluate(place, Path(sys.argv[2]), **two_ranks("ddp"))))
