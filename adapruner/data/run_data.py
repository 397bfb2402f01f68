"""The data of a run: :class:`RunData` holds its sets, :class:`PruningData` is what a data module must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from adapruner.errors import DataError


@runtime_checkable
class PruningData(Protocol):
    """Two sets of token windows, each with ``input_ids``, ``labels`` and ``attention_mask`` (int64 ``[n, seq_len]``), ``source_names``,
    ``source_index`` (``[n]``) and a ``fingerprint``: what :class:`adapruner.data.windows.TextWindows` has.

    Everything else that :class:`RunData` lists is taken where it is there, under the same name.
    """

    calibration_windows: Any
    """The pool whose statistics score the units."""
    search_windows: Any
    """What the search's objective is measured on; another text than the pool's."""


@dataclass(frozen=True)
class RunData:
    """The sets of one run. Only the first two are needed; see :class:`PruningData`."""

    calibration_windows: Any
    search_windows: Any
    calibration_windows_at: Mapping[int, Any]
    """Length in tokens -> the pool at that length; the first is ``calibration_windows``."""
    calibration_fingerprint: str
    """16 hex digits over everything that a sample's weight may be searched over; that of ``calibration_windows`` where there is nothing
    beside them: one length, no clusters, no given set."""
    calibration_sample_weights: Tensor | None = None
    """``[n]`` float32 with sum 1, the weights of a given set; ``None`` where all samples start alike."""
    clusters: int = 0
    """Number of k-means groups of the pool whose weights are searched; 0 for none."""
    reconstruction_windows: Any = None
    """What the refit sees; ``None`` where that is the pool."""
    recovery_windows: Any = None
    """Training text; ``None`` where there is none, or a loader serves it."""
    evaluation_windows: Mapping[tuple[str, int], Any] = field(default_factory=dict)
    """(name, window in tokens) -> held-out text."""
    fingerprint: str | None = None
    """16 hex digits over every window of every set, and the weights of a given one; ``None`` where they are not known."""
    seed: int | None = None
    """What the windows were drawn with."""
    card: Mapping[str, Any] | None = None
    """What text every set holds, as JSON types: ``sets`` (a row for each set and window length), ``leaks`` and ``seed``."""

    @property
    def refitted_on(self) -> Any:
        """The windows that the refit sees: its own, or the pool's."""
        return self.calibration_windows if self.reconstruction_windows is None else self.reconstruction_windows

    @property
    def refit_fingerprint(self) -> str | None:
        """Of the refit's own windows; ``None`` where it sees the pool, whose fingerprint the study's identity has."""
        return getattr(self.reconstruction_windows, "fingerprint", None)

    @classmethod
    def of(cls, data: Any) -> RunData:
        """From a data module (or any object) that offers :class:`PruningData`; a :class:`RunData` is itself.

        Raises:
            DataError: if one of the two sets is missing.
        """
        if isinstance(data, RunData):
            return data
        for name in ("calibration_windows", "search_windows"):
            if not hasattr(data, name):
                raise DataError(f"data: expected a data module with {name}, got {type(data).__name__}; use adapruner.PruningDataModule")
        pool, card = data.calibration_windows, getattr(data, "card", None)
        return cls(
            calibration_windows=pool,
            search_windows=data.search_windows,
            calibration_windows_at=getattr(data, "calibration_windows_at", {int(pool.input_ids.shape[1]): pool}),
            calibration_fingerprint=getattr(data, "calibration_fingerprint", pool.fingerprint),
            calibration_sample_weights=getattr(data, "calibration_sample_weights", None),
            clusters=int(getattr(getattr(data, "calibration", None), "clusters", 0) or 0),
            reconstruction_windows=getattr(data, "reconstruction_windows", None),
            recovery_windows=getattr(data, "recovery_windows", None),
            evaluation_windows=getattr(data, "evaluation_windows", {}),
            fingerprint=getattr(data, "fingerprint", None),
            seed=getattr(data, "seed", None),
            card=card() if callable(card) else card,
        )
