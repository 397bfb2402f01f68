"""From a dense model, its data and a budget to the problem that every trial solves: all statistics, collected once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapruner.calibration.clusters import cluster_pools
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks, is_rank_zero
from adapruner.freed_memory import give_back_freed_memory
from adapruner.importance.gram import GramMatrices, gram_gib
from adapruner.importance.statistics import UnitStatistics, statistics_per_sample
from adapruner.models.smaller_batches import with_smaller_batches
from adapruner.models.units import ModelStructure
from adapruner.progress import announce, progress_bar
from adapruner.pruning.bias_compensation import count_added_biases
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import COSTS
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.problem import PruningProblem
from adapruner.search.device_latency import FILE as LATENCY_FILE
from adapruner.search.device_latency import measure_table, read_or_measure_table
from adapruner.search.distributed_statistics import share_grams, share_statistics
from adapruner.search.statistics_cache import read_or_collect

GRAMS = "grams.safetensors"


@dataclass
class ProblemBuilder:
    """Everything a problem is made from; :meth:`build` collects what is needed and not already in the run folder.

    ``seconds`` afterwards says what the collecting took, by kind; 0 where a file was taken.
    """

    model: Any
    structure: ModelStructure
    data: RunData
    budget: Budget
    model_name: str
    fingerprint: str
    folder: Path | None
    """Where statistics are kept and looked for; ``None``: nowhere."""
    seed: int = 0
    batch_size: int = 8
    weights: str = ""
    """Digest of every weight of the dense model."""
    seconds: dict[str, float] = field(default_factory=dict)
    _table: LatencyTable | None = None

    @property
    def lengths(self) -> dict[int, Any]:
        """Length in tokens -> the pool's windows at that length, its first length first."""
        first = self.data.calibration_windows
        return {int(first.input_ids.shape[1]): first, **self.data.calibration_windows_at}

    def pools(self) -> dict[int, CalibrationPool]:
        """One pool for each length; clusters run through the model."""
        windows_at = self.lengths
        base, k = self.data.calibration_sample_weights, self.data.clusters
        clusters: dict[int, CalibrationGroups] = {}
        if k:
            with progress_bar("clusters", sum(len(w.input_ids) for w in windows_at.values())) as advance:
                clusters = cluster_pools(self.model, windows_at, k, self.seed, batch_size=self.batch_size, progress=advance)
        return {n: CalibrationPool.of_windows(w, clusters.get(n), base) for n, w in windows_at.items()}

    def without_statistics(self) -> PruningProblem:
        """For a plan that is given: nothing is scored, so the passes over the pool are saved."""
        base = self.data.calibration_sample_weights
        pool = CalibrationPool.of_windows(self.data.calibration_windows, None, base)
        return self._problem(UnitStatistics.nothing(), pool, {}, None)

    def build(self, pools: dict[int, CalibrationPool], needs: frozenset[str], needed_lengths: list[int], grams: bool) -> PruningProblem:
        """The problem, with statistics of the first length and of the others that are needed.

        Args:
            needs: names of :data:`adapruner.importance.statistics.STATISTICS`.
            needed_lengths: lengths in tokens that a recipe may ask for.
            grams: whether trials are refitted.
        """
        first = next(iter(pools))
        statistics = {n: self._statistics(n, needs) for n in dict.fromkeys([first, *needed_lengths])}
        others = {n: (found, pools[n]) for n, found in statistics.items()}
        return self._problem(statistics[first], pools[first], others, self._grams(pools[first]) if grams else None)

    def bytes_to_write(self, needs: frozenset[str] | None, needed_lengths: list[int], grams: bool) -> int:
        """What :meth:`build` would add to the run folder at least; what is there already is not written again."""
        if self.folder is None or needs is None:
            return 0
        missing = [n for n in dict.fromkeys([next(iter(self.lengths)), *needed_lengths]) if not self._statistics_file(n).exists()]
        samples = sum(len(self.lengths[n].input_ids) for n in missing)
        size = 4 * samples * statistics_per_sample(self.structure, needs)
        return size + (int(self.gram_gib() * 2**30) if grams and not (self.folder / GRAMS).exists() else 0)

    def gram_gib(self) -> float:
        """Memory that the Gram matrices of the pool's sources would take."""
        return gram_gib(self.structure, len(self.data.calibration_windows.source_names))

    def _problem(self, statistics: UnitStatistics, pool: CalibrationPool, others: Any, grams: GramMatrices | None) -> PruningProblem:
        sizes = measure_sizes(self.model, self.structure)
        costs = self.budget.costs(self.structure, sizes=sizes, latency=self._latency())
        return PruningProblem(
            self.structure,
            statistics,
            pool,
            self.budget,
            self.model_name,
            self.fingerprint,
            self.seed,
            self.weights,
            costs=costs,
            added_biases=count_added_biases(self.model, self.structure),
            sizes=sizes,
            latency=self._table,
            grams=grams,
            other_lengths=others,
        )

    def _latency(self) -> LatencyTable | None:
        if not COSTS.find(self.budget.of).timed:
            return None

        def measure() -> LatencyTable:
            announce("times the dense model and its layers at several widths")
            return measure_table(self.model, self.structure, self.budget.seq_len)

        if self._table is None:
            key = f"2:{self.fingerprint}:{self.weights}:{self.budget.seq_len}"
            self._table = read_or_measure_table(self._file(LATENCY_FILE), key, measure, write=is_rank_zero())
        return self._table

    def _statistics(self, length: int, needs: frozenset[str]) -> UnitStatistics:
        windows = self.lengths[length]
        file = None if self.folder is None else self._statistics_file(length)
        key = f"3:{self.fingerprint}:{self.weights}:{windows.fingerprint}:{','.join(sorted(needs))}"

        def collect(batch_size: int) -> Any:
            with progress_bar("statistics", len(windows.input_ids)) as advance:
                return share_statistics(self.model, self.structure, windows, needs, batch_size, advance)

        return UnitStatistics.from_tensors(self._kept("statistics", file, key, collect))

    def _grams(self, pool: CalibrationPool) -> GramMatrices:
        windows = self.data.calibration_windows
        key = f"2:{self.fingerprint}:{self.weights}:{windows.fingerprint}"

        def collect(batch_size: int) -> Any:
            with progress_bar("Gram matrices", len(windows.input_ids)) as advance:
                parts = len(pool.sources.names)
                return share_grams(self.model, self.structure, windows, pool.sources.index, parts, batch_size, advance)

        return GramMatrices.from_tensors(self._kept("Gram matrices", self._file(GRAMS), key, collect))

    def _kept(self, what: str, file: Path | None, key: str, collect: Callable[[int], Any]) -> Any:
        def collect_all() -> Any:
            if Ranks().size > 1:  # where one runs out of memory, the others wait for it
                return collect(self.batch_size)
            return with_smaller_batches(collect, self.batch_size, what)

        started = time.monotonic()
        tensors, from_file = read_or_collect(file, key, collect_all, write=is_rank_zero())
        give_back_freed_memory()
        self.seconds[what] = self.seconds.get(what, 0.0) + (0.0 if from_file else time.monotonic() - started)
        if from_file:
            announce(f"takes the {what} of {len(self.data.calibration_windows.input_ids)} calibration samples from {file}")
        return tensors

    def _statistics_file(self, length: int) -> Path:
        assert self.folder is not None
        first = length == next(iter(self.lengths))
        return self.folder / ("statistics.safetensors" if first else f"statistics-{length}.safetensors")

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name
