"""A training that is judged on text it does not train on: ended where that gains no more, and taken back to where it was best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.argument_checks import check_fields
from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError
from adapruner.evaluation.perplexity import batch_inputs
from adapruner.models.forward import evaluation_mode, input_device
from adapruner.models.next_token_loss import IGNORED, next_token_losses
from adapruner.progress import announce


@dataclass(frozen=True)
class EarlyStopConfig:
    """How often the training is judged on held-out text, and when it ends for it.

    >>> bool(EarlyStopConfig()), bool(EarlyStopConfig(every_n_steps=20))
    (False, True)
    """

    every_n_steps: int = 0
    """Optimizer steps between two looks at the held-out text; there is one before the first step and one behind the last, too. The weights
    of the best look are the result. 0: no looks, the last step's weights are."""
    patience: int = 3
    """Looks without a gain after which training ends."""
    least_gain: float = 0.0
    """Nats per token by which a look has to be better than the best before it to count as a gain."""
    samples: int | None = 48
    """Held-out windows to judge on, the first ones; all of them when empty. Each costs a third of a training window."""
    batch_size: int = 8
    """Windows in one forward pass of a look."""

    def __post_init__(self) -> None:
        check_fields(self, "early_stop.")
        if self.every_n_steps < 0:
            got = self.every_n_steps
            raise ConfigurationError(f"early_stop.every_n_steps: expected 0 or more, got {got}; give 20, or 0 for no looks")
        for name in ("patience", "samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"early_stop.{name}: expected 1 or more, got {value}; give a positive number")
        if not 0 <= self.least_gain < math.inf:
            raise ConfigurationError(f"early_stop.least_gain: expected a finite number of 0 or more, got {self.least_gain}; give 0.0")

    def __bool__(self) -> bool:
        """Whether the training is judged."""
        return self.every_n_steps > 0


def check_not_judged(config: EarlyStopConfig) -> None:
    """Refuses looks where other methods are to be recovered alike: those train to the end, and keep what they have then.

    Raises:
        ConfigurationError: if there are some.
    """
    if config:
        raise ConfigurationError(
            "report.compare_recovered: expected the same steps for all, got recovery.early_stop.every_n_steps "
            f"{config.every_n_steps}; leave one of them out"
        )


class EarlyStop:
    """What the looks of one training found, and the weights of the best: everything that a killed run goes on with.

    Args:
        config: with a number of steps.
        windows: how many are judged on, for the report.

    >>> stop = EarlyStop(EarlyStopConfig(every_n_steps=10, patience=2), windows=8)
    >>> for step, nll in ((0, 3.5), (10, 3.2), (20, 3.3), (30, 3.4)):
    ...     stop.look(step, nll, dict)
    >>> stop.is_over, stop.best_step
    (True, 10)
    """

    def __init__(self, config: EarlyStopConfig, windows: int) -> None:
        self.config, self.windows = config, windows
        self.looks: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}
        """Name -> value on the CPU, of every parameter that trains."""
        self._mark, self._without_gain = math.inf, 0

    @property
    def best_step(self) -> int | None:
        """Optimizer steps before the best look; ``None`` before there is one."""
        return min(self.looks, key=lambda look: _rank(look[1]))[0] if self.looks else None

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self._without_gain >= self.config.patience

    def is_due(self, step: int) -> bool:
        """Whether the text is to be looked at behind this step."""
        return step % self.config.every_n_steps == 0 and not self.has_seen(step)

    def has_seen(self, step: int) -> bool:
        """Whether the last look was behind this step."""
        return bool(self.looks) and self.looks[-1][0] == step

    def look(self, step: int, nll: float, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Notes what a look found.

        Args:
            step: optimizer steps so far.
            nll: nats per token on the held-out text.
            weights: called where it is the best so far; name -> value, copies.
        """
        if not self.looks or _rank(nll) < min(_rank(before) for _, before in self.looks):
            self.best = weights()
        self.looks.append((step, nll))
        gained = _rank(nll) < self._mark - self.config.least_gain
        self._without_gain = 0 if gained or len(self.looks) == 1 else self._without_gain + 1
        if gained:
            self._mark = nll

    def restore(self, model: nn.Module) -> None:
        """Gives the model the weights of the best look, and says so.

        Args:
            model: whole, on its device, with the parameters that trained.
        """
        with torch.no_grad():
            for name, value in self.best.items():
                model.get_parameter(name).copy_(value)
        if self.looks:
            announce(self.in_words())

    def in_words(self) -> str:
        """The line behind the training."""
        nll = dict(self.looks)
        best, last = self.best_step, self.looks[-1][0]
        assert best is not None
        back = "" if best == last else f", which is what stays; {nll[last]:.4f} behind the last, {last}"
        before = f"{self.looks[0][1]:.4f} before the first, " if self.looks[0][0] == 0 else ""
        return f"recovery: on {self.windows} held-out windows {before}{nll[best]:.4f} nats/token behind step {best}{back}"

    def to_report(self) -> dict[str, Any]:
        """JSON types."""
        looks = [[step, nll if math.isfinite(nll) else None] for step, nll in self.looks]
        return {**asdict(self.config), "windows": self.windows, "looks": looks, "best_step": self.best_step}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        looks = [list(look) for look in self.looks]
        return {"looks": looks, "best": dict(self.best), "mark": self._mark, "without_gain": self._without_gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on there."""
        self.looks = [(int(step), float(nll)) for step, nll in state["looks"]]
        self.best, self._mark, self._without_gain = dict(state["best"]), float(state["mark"]), int(state["without_gain"])


def held_out_windows(windows: Any, trained: Any, config: EarlyStopConfig) -> Any:
    """The windows that are judged on: those that share no document with the training text, at most as many as are asked for.

    Args:
        windows: the search split, or text of its own; ``input_ids``, ``labels`` and ``attention_mask``, each ``[n, seq_len]``.
        trained: likewise, what is trained on; ``None`` where nobody knows. Windows that do not say their documents
            (``document_hashes``) are taken as they are.

    Raises:
        ConfigurationError: if there are none.
    """
    if windows is None:
        raise ConfigurationError(
            "recovery.early_stop: expected held-out text to judge on, got none; give held_out, or a search before the recovery"
        )
    hashes, seen = getattr(windows, "document_hashes", None), getattr(trained, "documents", None)
    rows = list(range(len(windows.input_ids)))
    if hashes is not None and seen is not None:
        rows = [row for row in rows if not seen.intersection(hashes[row].split())]
    if not rows:
        raise ConfigurationError(
            "recovery.early_stop: expected held-out text that recovery does not train on, got documents of its text in all "
            f"{len(windows.input_ids)} windows; give the recovery, or what it is judged on, other text"
        )
    if len(rows) < len(windows.input_ids):
        announce(f"recovery is judged on {len(rows)} of {len(windows.input_ids)} held-out windows: it trains on text of the others")
    rows = rows[: config.samples]
    return SimpleNamespace(**{name: getattr(windows, name)[rows] for name in ("input_ids", "labels", "attention_mask")})


def held_out_nll(model: Any, windows: Any, batch_size: int, ranks: Ranks | None = None) -> float:
    """Nats per token, over all ranks: each takes its share of the batches, and all make the same number of forward passes, as a model that
    is spread over them needs."""
    ranks = ranks or Ranks()
    starts = range(0, len(windows.input_ids), batch_size)
    total = torch.zeros(2, dtype=torch.float64, device=input_device(model))
    with evaluation_mode(model):
        for turn in range(-(-len(starts) // ranks.size)):
            own = turn * ranks.size + ranks.rank
            start = starts[own % len(starts)]
            rows = slice(start, start + batch_size)
            labels = windows.labels[rows].to(total.device)
            nll = next_token_losses(model, labels, **batch_inputs(model, windows, rows)).double().sum()
            if own < len(starts):
                total += torch.stack([nll, (labels[:, 1:] != IGNORED).sum().double()])
    ranks.add_up(total)
    return float(total[0] / total[1])


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> a copy on the CPU, of every parameter that trains; of one that is spread over ranks the whole, which all of them ask for."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).to("cpu", copy=True) for name, p in named.items()}


def _rank(nll: float) -> float:
    """What is no number is worse than any."""
    return math.inf if math.isnan(nll) else nll
