"""What each set of a pruning run is made of: the options of :class:`adapruner.PruningDataModule`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapruner.argument_checks import check_fields, check_type
from adapruner.data.text_source import TextSource
from adapruner.errors import ConfigurationError, nearest

#: Below so many windows a perplexity says little of its text.
TRUSTED_WINDOWS = 20


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

    def __post_init__(self) -> None:
        check_fields(self, "data.calibration.")


@dataclass(frozen=True)
class ReconstructionData:
    """What the refit after the surgery sees, where that is more than the calibration pool. More text is the surest way to a better refit:
    it costs time in proportion, and no memory (``pruning.reconstruction.states_gib``)."""

    sources: list[TextSource] = field(default_factory=list)
    """Where windows come from; the calibration pool's own sources when empty. The weights that a search gives sources count here too, by
    their names; a source that the pool has not counts like the mean of the others."""
    samples_per_source: int = 256
    """Windows from each source."""
    seq_len: int | None = None
    """Tokens in a window; those of the calibration samples when empty."""

    def __post_init__(self) -> None:
        check_fields(self, "data.reconstruction.")


@dataclass(frozen=True)
class SearchData:
    """What the search's objective is measured on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts, or in ``shares``."""
    samples: int = 64
    """Windows in all."""
    seq_len: int = 256
    """Tokens in a sample."""
    shares: dict[str, float] = field(default_factory=dict)
    """Name of a source -> how much it counts: the objective is a mean over samples, of which it has so many more than a source of 1, which
    those have that are not named."""

    def __post_init__(self) -> None:
        check_fields(self, "data.search.")
        check_shares(self.shares, [source.name for source in self.sources])


def check_shares(shares: dict[str, float], names: list[str]) -> None:
    """Refuses shares of sources that are not there, and those that are no positive numbers.

    Raises:
        ConfigurationError: in both cases.
    """
    for name, share in shares.items():
        if name not in names:
            raise ConfigurationError(f"data.search.shares: expected names of sources, got {name!r}; {nearest(name, names)}")
        if not 0 < share < math.inf:
            raise ConfigurationError(
                f"data.search.shares: expected positive numbers, got {share} for {name!r}; leave the source out instead"
            )


@dataclass(frozen=True)
class RecoveryData:
    """What the pruned model is tuned on."""

    sources: list[TextSource]
    """Where samples come from, in equal parts when ``samples`` is given."""
    samples: int | None = None
    """Windows (instruction rows) in all; null for everything the sources have."""
    seq_len: int = 256
    """Tokens in a sample."""

    def __post_init__(self) -> None:
        check_fields(self, "data.recovery.")


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out text whose perplexity is reported: any text by its ``source``, or one of :data:`KNOWN_SETS` by its name alone.

    Raises:
        ConfigurationError: if there is no source and the name is not a known one, or a source and a path.
    """

    name: str
    """The name in tables. Without a source: ``wikitext2`` (test), ``ptb`` (validation) or ``c4`` (the first 1,100 documents of the
    validation split)."""
    source: TextSource = None  # type: ignore[assignment]  # filled in for known names, so that nobody meets None
    """Where the text comes from; may be left out for a known name."""
    windows: list[int] = field(default_factory=lambda: [128])
    """Window lengths in tokens; the set is measured once with each. The usual ones are 128 (LLM-Pruner) and 2048."""
    limit: int | None = None
    """Keep only the first so many windows of each length; null for all."""
    path: str | None = None
    """A file or folder with the rows of a known set, instead of the hub."""

    def __post_init__(self) -> None:
        check_type("data.evaluation.source", self.source, TextSource | None)
        for name, hint in {"name": str, "path": str | None}.items():
            check_type(f"data.evaluation.{name}", getattr(self, name), hint)
        if self.source is not None and self.path is not None:
            raise ConfigurationError(f"data.evaluation.{self.name}.path: expected none with a source, got {self.path!r}; set source.path")
        if self.source is None:
            object.__setattr__(self, "source", known_source(self.name, self.path))
        check_fields(self, "data.evaluation.")


#: The sets of the literature. WikiText2 and PTB as LLM-Pruner (arXiv 2305.11627) reads them; C4 is the part that GPTQ (arXiv
#: 2210.17323) and its successors take. PTB's own repository still rests on a loading script: its parquet branch does not.
KNOWN_SETS: dict[str, dict[str, Any]] = {
    "wikitext2": {"hub": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "split": "test"},
    "ptb": {
        "hub": "ptb-text-only/ptb_text_only",
        "config": "penn_treebank",
        "split": "validation",
        "revision": "refs/convert/parquet",
        "column": "sentence",
    },
    "c4": {"hub": "allenai/c4", "config": "en", "split": "validation", "documents": 1100, "streaming": True},
}
"""Name -> the options of its :class:`~adapruner.data.text_source.TextSource`."""


def known_source(name: str, path: str | None = None) -> TextSource:
    """Where one of :data:`KNOWN_SETS` is read from.

    Args:
        name: of the set.
        path: a file or folder with the same rows (.parquet, .jsonl, .json, .csv, .txt); ``None`` for the hub. Files with columns have the
            hub's (``sentence`` in PTB, ``text`` in the others).

    Raises:
        ConfigurationError: if the name is unknown.

    >>> known_source("c4", "c4/validation.jsonl").documents
    1100
    """
    if name not in KNOWN_SETS:
        raise ConfigurationError(
            f"data.evaluation.{name}: expected a source, or a known name without one, got neither; {nearest(name, KNOWN_SETS)}"
        )
    source = TextSource(name=name, **KNOWN_SETS[name])
    if path is None:
        return source
    plain = Path(path).name.removesuffix(".gz").endswith((".txt", ".md"))
    return TextSource(name=name, path=path, column="text" if plain else source.column, documents=source.documents)
