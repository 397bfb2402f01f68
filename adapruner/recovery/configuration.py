"""The settings of the closed-form reconstruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError

if TYPE_CHECKING:  # options are read before torch is
    from torch import Tensor

Form = Literal["sequential", "local"]
Constraint = Literal["ridge", "rotation"]
RelativeTo = Literal["channel", "mean"]
#: Strengths by form, and those to choose among: docs/refit.md has what they rest on.
CANDIDATES = (0.02, 0.1, 0.5, 2.0)
RIDGES: dict[Form, float] = {"sequential": 0.5, "local": 0.1}
_TINY = 1e-30
#: Least sum of squares that a penalty is relative to, as a part of the mean: a channel that is never seen has no reason to change.
_UNSEEN = 1e-4


@dataclass(frozen=True)
class Ridge:
    """A ridge penalty: how strong, and relative to what.

    >>> import torch
    >>> Ridge().of(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    tensor([2., 1.])
    >>> Ridge(0.01, "mean").of(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    tensor([0.0300, 0.0300])
    """

    strength: float = 0.5
    relative_to: RelativeTo = "channel"

    def of(self, gram: Tensor) -> Tensor:
        """lambda of each channel ``[channels]``, for a Gram matrix ``[channels, channels]``; a channel that is hardly ever seen is held by
        a part of the mean."""
        squares = gram.diagonal()
        mean = squares.mean().clamp_min(_TINY)
        return self.strength * (squares.clamp_min(_UNSEEN * mean) if self.relative_to == "channel" else mean.expand_as(squares))


#: Fields that decide what a refit takes, and nothing of its result.
WITHOUT_EFFECT = frozenset({"shared_gib", "states_gib", "states_folder"})


@dataclass(frozen=True)
class ReconstructionConfig:
    """Form, strength and size of the refit.

    >>> ReconstructionConfig(ridge=0.1).form
    'sequential'
    """

    ridge: float | None = None
    """lambda, the same for all projections; more of it stays nearer to the kept weights. null: each chooses among ``candidates``."""
    relative_to: RelativeTo = "channel"
    """What the ridge is relative to. ``channel``: each input channel's own sum of squares, as if inputs were standardised. ``mean``: the
    mean over channels, which holds those of large activations loosely and those of small ones fast (SlimGPT's damping, usually 0.01)."""
    samples: int | None = None
    """Calibration windows to use; all of them when empty. More is better and costs time in proportion."""
    batch_size: int = 8
    """Windows in one forward pass of a layer."""
    form: Form = "sequential"
    """``sequential``: inputs of the pruned model so far, the dense residual stream as target, so that earlier errors are
    corrected too. ``local``: inputs and outputs of the dense model; takes less memory, and is weaker."""
    constraint: Constraint = "ridge"
    """``ridge``: any weights, held near the kept ones. ``rotation``: the kept weights, turned in the output space by an
    orthogonal matrix, which overfits few windows less and repairs less (RCPU, arXiv 2510.07782)."""
    candidates: list[float] | None = None
    """Ridges among which each projection chooses, by its error on every eighth window, before it is refitted on all; goes before ``ridge``.
    null: 0.02, 0.1, 0.5 and 2 where no ridge is given; much text for few channels wants little, little text for many wants much. []: no
    choice, 0.5 for all, or 0.1 in the local form."""
    shared_gib: float = 1.0
    """Memory that the dense model's hidden states on the windows may take, behind every attention and every layer, while several plans of
    it are refitted: computed once instead of for each, with the same result. On a GPU they lie on it, where four times as much is free. 0
    computes them again for each."""
    states_gib: float = 8.0
    """Memory on the model's device that the hidden states of the refit's windows may take; more than that is kept in files, with the same
    result, so that thousands of windows fit beside any model. 0 keeps all of them in files."""
    states_folder: str | None = None
    """Folder of these files, on a fast disk; the system's folder for temporary files when empty, which some systems keep in memory. Nothing
    is left in it."""
    only_if_better: bool = True
    """Whether the refit is left out where the search split, which it does not see, has a lower cross entropy without it. Costs two
    evaluations of that split. What a report compares is refitted in any case."""
    intercept: bool = True
    """Whether the bias of an output projection that has one is refitted too, without a penalty; else it stays."""

    @property
    def penalty(self) -> Ridge:
        """The penalty on what changes, where nothing is to choose."""
        return Ridge(RIDGES[self.form] if self.ridge is None else self.ridge, self.relative_to)

    @property
    def choices(self) -> list[float]:
        """The strengths that each projection chooses among; none where there is one for all."""
        if self.candidates is not None:
            return self.candidates
        return [] if self.ridge is not None or self.constraint == "rotation" else list(CANDIDATES)

    @property
    def in_trials(self) -> Ridge:
        """The penalty of the local refit inside a search's trials, which chooses nothing: the ridge that is given, else 0.1."""
        return Ridge(RIDGES["local"] if self.ridge is None else self.ridge, self.relative_to)

    def __post_init__(self) -> None:
        check_fields(self, "reconstruction.")
        if self.ridge is not None and not _is_strength(self.ridge):
            raise ConfigurationError(f"reconstruction.ridge: expected a positive number, got {self.ridge}; leave it out")
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ConfigurationError(
                f"reconstruction: expected batch_size and samples above 0, got {self.batch_size}, {self.samples}; give positive numbers"
            )
        if not 0 <= self.shared_gib < math.inf:
            raise ConfigurationError(f"reconstruction.shared_gib: expected a finite number of 0 or more, got {self.shared_gib}; give 1.0")
        if not self.states_gib >= 0:
            raise ConfigurationError(f"reconstruction.states_gib: expected a number of 0 or more, got {self.states_gib}; give 8.0")
        if self.form not in ("sequential", "local"):
            raise ConfigurationError(f"reconstruction.form: expected 'sequential' or 'local', got {self.form!r}; name one of them")
        if self.relative_to not in ("channel", "mean"):
            raise ConfigurationError(f"reconstruction.relative_to: expected 'channel' or 'mean', got {self.relative_to!r}; name one")
        if self.constraint not in ("ridge", "rotation"):
            raise ConfigurationError(f"reconstruction.constraint: expected 'ridge' or 'rotation', got {self.constraint!r}; name one")
        if not all(_is_strength(c) for c in self.candidates or ()):
            raise ConfigurationError(f"reconstruction.candidates: expected positive numbers, got {self.candidates}; give [0.1, 1.0]")
        if self.candidates and self.constraint == "rotation":
            raise ConfigurationError(
                f"reconstruction.candidates: expected none with constraint 'rotation', got {self.candidates}; leave them out"
            )


def strength_of(config: ReconstructionConfig) -> dict[str, object]:
    """What a report says of a refit's strength: ``candidates``, a ``ridge``, or neither where the kept weights are only turned."""
    if config.constraint == "rotation":
        return {}
    return {"candidates": config.choices} if config.choices else {"ridge": config.penalty.strength}


def strength_in_words(ridge: float | None, candidates: Sequence[float] = ()) -> str:
    """How a refit was held near the kept weights.

    >>> strength_in_words(0.5), strength_in_words(None, [0.02, 0.5]), strength_in_words(None)
    ('ridge 0.5', 'ridge chosen for each projection among 0.02, 0.5', 'a rotation')
    """
    if candidates:
        return f"ridge chosen for each projection among {', '.join(f'{c:g}' for c in candidates)}"
    return "a rotation" if ridge is None else f"ridge {ridge:g}"


def deciding_values(config: ReconstructionConfig) -> dict[str, object]:
    """All fields that a refit's result depends on."""
    values = {name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT}
    return {**values, "candidates": config.choices, "ridge": config.penalty.strength, "in trials": config.in_trials.strength}


def _is_strength(value: float) -> bool:
    return math.isfinite(value) and value > 0
