"""All sets of a run, from text to token windows: what the data module and the Python API share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from adapruner.data.bos import check_policy
from adapruner.data.calibration_set import CalibrationSet, read_set
from adapruner.data.card import describe_set, leaks_in_words, sources_in_words
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.leaks import check_leaks
from adapruner.data.options import checks_of_sets
from adapruner.data.run_data import RunData
from adapruner.data.sets import TRUSTED_WINDOWS, CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, check_all
from adapruner.progress import announce


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
    bos: str = "auto"
    """Which windows begin with the tokenizer's begin-of-text token, see :data:`adapruner.data.bos.POLICIES`."""
    reconstruction: ReconstructionData | None = None
    """What the refit sees, or ``None`` where that is the calibration pool."""
    take_fewer: bool = False
    """Takes what there is where a source has less text than asked for, down to a few windows, and says so in one line."""

    @property
    def sources(self) -> list[TextSource]:
        """Every source of every set."""
        trained = self.recovery.sources if self.recovery else []
        refitted = self.reconstruction.sources if self.reconstruction else []
        return [*self.calibration.sources, *refitted, *self.search.sources, *trained, *(item.source for item in self.evaluation)]

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
        check_all(
            partial(check_policy, self.bos),
            *checks_of_sets(self.calibration, self.search, self.recovery, self.evaluation, self.seed, self.reconstruction),
            *others,
        )
        _ = self.given_set

    def build(self, tokenizer: Any) -> RunData:
        """Reads every source and cuts its text into token windows.

        Raises:
            ConfigurationError: if there are more clusters than samples.
            DataError: if a source cannot be read or is too short, or sets share documents.
        """
        drawer = WindowDrawer(tokenizer, self.seed, self.take_fewer, self.bos)
        c, s, r = self.calibration, self.search, self.recovery
        pool_at, weights = self._pool(drawer)
        search = drawer.shuffled("search", drawer.evenly("search", s.sources, s.seq_len, s.samples, s.shares))
        refit = self._refit(drawer)
        recovery = None if r is None else drawer.evenly("recovery", r.sources, r.seq_len, r.samples)
        evaluation = {key: windows for item in self.evaluation for key, windows in drawer.joined(item).items()}
        if drawer.short_of:
            announce(f"less text than asked for: {', '.join(drawer.short_of)}")
        few = [f"{name!r} {len(found)}" for (name, _), found in evaluation.items() if len(found) < TRUSTED_WINDOWS]
        if few:
            said = f"{', '.join(few)} windows, less than {TRUSTED_WINDOWS}; give more, or shorter documents"
            announce(f"too little held-out text to trust a perplexity of: {said}")
        if drawer.limited:
            announce(f"measures perplexity of {', of '.join(drawer.limited)} (data.evaluation's limit)")
        pool_fingerprint = _pool_fingerprint(pool_at, c.clusters, weights)
        prints = [pool_fingerprint, *("none" if w is None else w.fingerprint for w in (search, recovery, *evaluation.values()))]
        prints += [] if refit is None else [f"refit {refit.fingerprint}"]
        names = " ".join(f"{name}/{window}" for name, window in evaluation)
        data = RunData(
            calibration_windows=pool_at[c.seq_len],
            search_windows=search,
            calibration_windows_at=pool_at,
            calibration_fingerprint=pool_fingerprint,
            calibration_sample_weights=weights,
            clusters=c.clusters,
            reconstruction_windows=refit,
            recovery_windows=recovery,
            evaluation_windows=evaluation,
            fingerprint=_hash(f"{' '.join(prints)} {names}"),
            seed=self.seed,
        )
        if not self.allow_leak:
            check_leaks(data, drawer.short_documents)
        return replace(data, card=self._card(data))

    def _pool(self, drawer: WindowDrawer) -> tuple[dict[int, TextWindows], Tensor | None]:
        """The calibration windows at every length, and the weights of a given set."""
        c = self.calibration
        weights = None
        if self.given_set is not None:
            windows, weights = self.given_set.to_windows(drawer.tokenizer, c.seq_len, drawer.bos)
            pool_at = {c.seq_len: windows}
        else:
            # each length has as many samples of a source, not as many tokens: a sample is what gets a weight
            lengths = (c.seq_len, *c.other_seq_lens)
            pool_at = {length: drawer.each("calibration", c.sources, length, c.samples_per_source) for length in lengths}
        samples = len(pool_at[c.seq_len])
        if c.clusters > samples:
            got = f"expected at most one per sample ({samples}), got {c.clusters}"
            raise ConfigurationError(f"data.calibration.clusters: {got}; give fewer clusters")
        return pool_at, weights

    def _refit(self, drawer: WindowDrawer) -> TextWindows | None:
        """The refit's own windows, sorted by source as the pool is."""
        c, r = self.calibration, self.reconstruction
        return None if r is None else drawer.each("reconstruction", r.sources or c.sources, r.seq_len or c.seq_len, r.samples_per_source)

    def _card(self, data: RunData) -> dict[str, Any]:
        given, sources = self.calibration.given_set, self.calibration.sources
        words = sources_in_words(sources) if given is None else [f"given set {given}"]
        rows = [describe_set("calibration", "", words, windows) for windows in data.calibration_windows_at.values()]
        rows.append(describe_set("search", "", sources_in_words(self.search.sources), data.search_windows))
        if self.reconstruction is not None:
            refitted = sources_in_words(self.reconstruction.sources or sources)
            rows.append(describe_set("reconstruction", "", refitted, data.reconstruction_windows))
        if self.recovery is not None:
            rows.append(describe_set("recovery", "", sources_in_words(self.recovery.sources), data.recovery_windows))
        held_out = {item.name: sources_in_words([item.source]) for item in self.evaluation}
        rows += [describe_set("evaluation", name, held_out[name], windows) for (name, _), windows in data.evaluation_windows.items()]
        return {"sets": rows, "leaks": leaks_in_words(self.allow_leak), "seed": self.seed}


def _pool_fingerprint(pool_at: Mapping[int, TextWindows], clusters: int, weights: Tensor | None) -> str:
    """Over everything that a sample's weight may be searched over; that of the pool itself where there is nothing beside it."""
    parts = [windows.fingerprint for windows in pool_at.values()]
    if clusters:
        parts.append(f"{clusters} clusters")
    if weights is not None:
        parts.append(" ".join(f"{weight:.6g}" for weight in weights.tolist()))
    return parts[0] if len(parts) == 1 else _hash("/".join(parts))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
