"""What each set of a pruning run is made of: the options of :class:`adapruner.PruningDataModule`."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapruner.data.sources import TextSource


@dataclass(frozen=True)
class CalibrationData:
    """The pool whose statistics score the units; the search weights its samples.

    Exactly one of ``sources`` and ``given_set`` is given.
    """

    sources: list[TextSource] = field(default_factory=list)
    """Where samples come from; the order is that of the source weights."""
    samples_per_source: int = 64
    """Windows (instruction rows) from each source; a given set has its own."""
    seq_len: int = 128
    """Tokens in a sample. The samples of a given set are cut to it, or padded."""
    clusters: int = 0
    """Groups the pool by k-means of mean hidden states, so that a search can weight groups where sources have no labels; 0 for
    none. 8 is a good number."""
    other_seq_lens: list[int] = field(default_factory=list)
    """Further lengths in tokens that the search may choose from: each is a pool of its own with as many samples of each source, and
    costs its own pass over them."""
    given_set: str | None = None
    """The calibration set that another run found (a JSON file): its samples are the pool, its weights what the search starts from."""


@dataclass(frozen=True)
class SearchData:
    """What the search's objective is measured on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts."""
    samples: int = 64
    """Windows in all."""
    seq_len: int = 256
    """Tokens in a sample."""


@dataclass(frozen=True)
class RecoveryData:
    """What the pruned model is tuned on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts when ``samples`` is given."""
    samples: int | None = None
    """Windows (instruction rows) in all; null for everything the sources have."""
    seq_len: int = 256
    """Tokens in a sample."""


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out text whose perplexity is reported."""

    name: str
    """The name in tables."""
    source: TextSource
    """Where the text comes from."""
    windows: list[int] = field(default_factory=lambda: [128])
    """Window lengths in tokens; the set is measured once with each."""
    limit: int | None = None
    """Keep only the first so many windows of each length; null for all."""
