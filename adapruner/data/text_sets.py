"""All sets of a run, from text to token windows: what the data module and the Python API share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from adapruner.data.calibration_set import CalibrationSet, read_set
from adapruner.data.card import describe_set, leaks_in_words, sources_in_words
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.leaks import check_disjoint
from adapruner.data.options import checks_of_sets
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, check_all


@dataclass(frozen=True)
class TextSets:
    """What the sets of a run are made of; :meth:`build` reads and tokenises it.

    ``source_index`` of the calibration windows counts ``calibration.sources``, or the sources of a given set. The search windows are
    shuffled, so that any first part is a fair sample.
    """

    calibration: CalibrationData
    """The calibration pool."""
    search: SearchData
    """The objective's text."""
    recovery: RecoveryData | None = None
    """Training text, or ``None`` when nothing is trained."""
    evaluation: Sequence[EvaluationSet] = ()
    """Held-out sets."""
    seed: int = 0
    """Decides which windows are drawn."""
    allow_leak: bool = False
    """Lets sets share documents."""

    @property
    def sources(self) -> list[TextSource]:
        """Every source of every set."""
        trained = self.recovery.sources if self.recovery else []
        return [*self.calibration.sources, *self.search.sources, *trained, *(item.source for item in self.evaluation)]

    @cached_property
    def given_set(self) -> CalibrationSet | None:
        """The calibration set that another run found, where there is one."""
        return None if self.calibration.given_set is None else read_set(self.calibration.given_set)

    def check(self, *others: Callable[[], object]) -> None:
        """Everything that can be known before any text is read.

        Args:
            others: further checks, so that all that is wrong is said at once.

        Raises:
            ConfigurationError: if a number is out of range, a name stands twice, a stream has no end, or calibration has both sources
                and a given set.
            DataError: if a file or the given set cannot be read.
        """
        check_all(*checks_of_sets(self.calibration, self.search, self.recovery, self.evaluation, self.seed), *others)
        _ = self.given_set

    def build(self, tokenizer: Any) -> RunData:
        """Reads every source and cuts its text into token windows.

        Raises:
            ConfigurationError: if there are more clusters than samples.
            DataError: if a source cannot be read or is too short, or sets share documents.
        """
        c, s, r = self.calibration, self.search, self.recovery
        drawer, weights = WindowDrawer(tokenizer, self.seed), None
        if self.given_set is not None:
            windows, weights = self.given_set.to_windows(tokenizer, c.seq_len)
            pool_at, pool_sources = {c.seq_len: windows}, [f"given set {c.given_set}"]
        else:
            # each length has as many samples of a source, not as many tokens: a sample is what gets a weight
            lengths = (c.seq_len, *c.other_seq_lens)
            pool_at = {length: drawer.each("calibration", c.sources, length, c.samples_per_source) for length in lengths}
            pool_sources = sources_in_words(c.sources)
        _check_clusters(c.clusters, len(pool_at[c.seq_len]))
        search = drawer.shuffled("search", drawer.evenly("search", s.sources, s.seq_len, s.samples))
        recovery = None if r is None else drawer.evenly("recovery", r.sources, r.seq_len, r.samples)
        evaluation = {key: windows for item in self.evaluation for key, windows in drawer.joined(item).items()}
        words = {"calibration": pool_sources, "search": sources_in_words(s.sources)}
        words |= {} if r is None else {"recovery": sources_in_words(r.sources)}
        words |= {f"evaluation {item.name!r}": sources_in_words([item.source]) for item in self.evaluation}
        if not self.allow_leak:
            check_leaks(pool_at, search, recovery, evaluation, drawer.short_documents)
        return joined_sets(pool_at, search, recovery, evaluation, words, self.seed, self.allow_leak, c.clusters, weights)


def joined_sets(
    pool_at: Mapping[int, TextWindows],
    search: TextWindows,
    recovery: TextWindows | None,
    evaluation: Mapping[tuple[str, int], TextWindows],
    sources: Mapping[str, list[str]],
    seed: int,
    allow_leak: bool = False,
    clusters: int = 0,
    weights: Tensor | None = None,
) -> RunData:
    """The sets as one record, with their card and fingerprints.

    Args:
        sources: ``calibration``, ``search``, ``recovery`` or ``evaluation NAME`` -> its sources in words, for the card.
        weights: ``[n]`` with sum 1, of a given calibration set.
    """
    rows = [describe_set("calibration", "", sources["calibration"], windows) for windows in pool_at.values()]
    rows.append(describe_set("search", "", sources["search"], search))
    rows += [] if recovery is None else [describe_set("recovery", "", sources["recovery"], recovery)]
    rows += [describe_set("evaluation", name, sources[f"evaluation {name!r}"], w) for (name, _), w in evaluation.items()]
    pool_fingerprint = _pool_fingerprint(pool_at, clusters, weights)
    prints = [pool_fingerprint, *("none" if w is None else w.fingerprint for w in (search, recovery, *evaluation.values()))]
    names = " ".join(f"{name}/{window}" for name, window in evaluation)
    return RunData(
        calibration_windows=next(iter(pool_at.values())),
        search_windows=search,
        calibration_windows_at=pool_at,
        calibration_fingerprint=pool_fingerprint,
        calibration_sample_weights=weights,
        clusters=clusters,
        recovery_windows=recovery,
        evaluation_windows=evaluation,
        fingerprint=_hash(f"{' '.join(prints)} {names}"),
        seed=seed,
        card={"sets": rows, "leaks": leaks_in_words(allow_leak), "seed": seed},
    )


def check_leaks(
    pool_at: Mapping[int, TextWindows],
    search: TextWindows,
    recovery: TextWindows | None,
    evaluation: Mapping[tuple[str, int], TextWindows],
    short: Collection[str] = (),
) -> None:
    """Refuses sets that share documents; recovery may share with calibration and search.

    Args:
        short: hashes of the documents that are too short to count.

    Raises:
        DataError: naming the first two sets that do.
    """
    calibration = {"calibration": set().union(*(windows.documents for windows in pool_at.values()))}
    seen = {"search": search.documents}
    trained = {} if recovery is None else {"recovery": recovery.documents}
    held_out = {f"evaluation {name!r}": windows.documents for (name, _), windows in evaluation.items()}
    check_disjoint(calibration | seen | trained, held_out, short)
    check_disjoint(calibration, seen, short)


def _pool_fingerprint(pool_at: Mapping[int, TextWindows], clusters: int, weights: Tensor | None) -> str:
    """Over everything that a sample's weight may be searched over; that of the pool itself where there is nothing beside it."""
    parts = [windows.fingerprint for windows in pool_at.values()]
    if clusters:
        parts.append(f"{clusters} clusters")
    if weights is not None:
        parts.append(" ".join(f"{weight:.6g}" for weight in weights.tolist()))
    return parts[0] if len(parts) == 1 else _hash("/".join(parts))


def _check_clusters(clusters: int, samples: int) -> None:
    if clusters > samples:
        raise ConfigurationError(
            f"data.calibration.clusters: expected at most one per sample ({samples}), got {clusters}; give fewer clusters"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
