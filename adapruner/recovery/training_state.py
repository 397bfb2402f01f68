"""The state of a recovery without a Trainer: where it is, what it goes on from after a kill, and whether it is over."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapruner.files.digests import DamagedError
from adapruner.progress import announce
from adapruner.recovery.checkpoint_contents import read_contents
from adapruner.recovery.early_stop import EarlyStop, held_out_nll, trained_weights
from adapruner.recovery.last_checkpoint import random_state, set_random_state, write_checkpoint
from adapruner.recovery.time_budget import TimeBudget, seconds_of
from adapruner.recovery.training_bar import Ending

if TYPE_CHECKING:
    from adapruner.recovery.training import RecoveryConfig

FILE = Path("checkpoints") / "recovery.pt"


class TrainingState:
    """Adapters, optimizer, place in the data, random numbers, time and looks at held-out text: what a checkpoint holds.

    Args:
        adapted: the model in training mode, with what trains asking for gradients.
        loader: of its batches; says where it is in the text.
        config: as of :func:`adapruner.recovery.training.train_recovery`.
        folder: the run folder; ``None`` keeps nothing.
        identity: what the result depends on; a checkpoint of another is left alone.
        judged_on: held-out windows; ``None`` where it is not judged.
    """

    def __init__(
        self, adapted: Any, loader: Any, config: RecoveryConfig, folder: Path | None, identity: dict[str, Any], judged_on: Any
    ) -> None:
        self.adapted, self.loader, self.config = adapted, loader, config
        self.file, self.identity = None if folder is None else folder / FILE, identity
        named = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        self.trained, self.parameters = named, list(named.values())
        self.device = self.parameters[0].device
        self.optimizer, self.scheduler = config.build_optimizer(self.parameters)
        self.step, self.history, self.seconds = 0, list[tuple[int, float]](), 0.0
        self.tokens = 0
        self.judged_on, self.looks = judged_on, None if judged_on is None else EarlyStop(config.early_stop, len(judged_on.input_ids))
        self.budget = TimeBudget(seconds_of(config.time_budget) or math.inf, config.most_steps)
        self._started, self._saved = time.monotonic(), 0
        self._had_ended: Ending | None = None
        """What ended the training that the checkpoint is of, where that still holds."""

    def finished(self, loss: float, tokens: int) -> None:
        """After an optimizer step."""
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.history.append((self.step, loss))
        self.budget.after_step(self.step, self.seconds + time.monotonic() - self._started)
        self.look()
        if self.step % self.config.every_n_steps == 0:
            self.save()

    @property
    def ended_by(self) -> Ending | None:
        """What ends the training here; ``None`` where it goes on."""
        if self._had_ended is not None:
            return self._had_ended
        if self.config.most_steps is not None and self.step >= self.config.most_steps:
            return "steps"
        if self.budget.is_over:
            return "time budget"
        return "early stop" if self.looks is not None and self.looks.is_over else None

    def look(self) -> None:
        """At the held-out text, where it is due, and behind the last step."""
        if self.looks is not None and (self.looks.is_due(self.step) or (self.ended_by and not self.looks.has_seen(self.step))):
            nll = held_out_nll(self.adapted, self.judged_on, self.config.early_stop.batch_size)
            self.looks.look(self.step, nll, lambda: trained_weights(self.adapted))

    def save(self) -> None:
        """Writes the checkpoint whole, where there is a folder and something new."""
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        if self.file is None or self.step == self._saved:
            return
        record = {
            "identity": self.identity,
            "step": self.step,
            "history": [list(row) for row in self.history],
            "seconds": self.seconds,
            "ended_by": self.ended_by,
            "time_budget": seconds_of(self.config.time_budget),
            "tokens": self.tokens,
            "adapters": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loader": self.loader.state_dict(),
            "looks": None if self.looks is None else self.looks.state_dict(),
            "random": random_state(),
        }
        write_checkpoint(record, self.file, remedy="make room, the same call goes on from the checkpoint before")
        self._saved = self.step

    def resume(self) -> None:
        """Goes on from the checkpoint of a run of the same identity, if there is one."""
        if self.file is None or not self.file.is_file():
            return
        try:
            record = read_contents(self.file, ours=True)
        except (DamagedError, OSError) as error:
            announce(f"recovery starts anew: {self.file} is damaged ({error})")
            return
        if record.get("identity") != self.identity or record["step"] > (self.config.most_steps or math.inf):
            announce(f"recovery starts anew: {self.file} was written under other settings")
            return
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(record["adapters"][name])
        self.optimizer.load_state_dict(record["optimizer"])
        self.scheduler.load_state_dict(record["scheduler"])
        self.loader.load_state_dict(record["loader"])
        self.step, self.seconds, self.tokens = record["step"], record["seconds"], record["tokens"]
        self.history, self._saved = [(int(step), float(loss)) for step, loss in record["history"]], record["step"]
        self.budget.used = self.seconds
        given = seconds_of(self.config.time_budget)
        if record.get("ended_by") == "time budget" and given is not None and given <= (record.get("time_budget") or 0.0):
            self._had_ended = "time budget"  # the pace, by which the next step would not fit, is not known any more
        if self.looks is not None:
            self.looks.load_state_dict(record["looks"])
        set_random_state(record["random"])
        announce(f"recovery goes on from step {self.step} in {self.file}")
