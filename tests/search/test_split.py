"""Windows for the second look alone: no trial sees them, and they alone decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.pruning.problem import PruningProblem
from adapruner.recovery.post_pruning import PostPruning, reconstructed
from adapruner.recovery.reconstruction import ReconstructionConfig
from adapruner.search.config import RerankConfig, SearchConfig
from adapruner.search.space import SearchSpace
from adapruner.search.split import split_windows
from adapruner.search.study import SearchOutcome, run_search
from tests.tiny import random_windows

CALIBRATION = random_windows(4, 16, seed=1, sources=("books", "code", "wiki"))
SPACE = SearchSpace(metrics=["l1", "gate_fisher"])


def config(held_out: int, trials: int = 10) -> SearchConfig:
    return SearchConfig(n_trials=trials, random_sets=0, early_stopping="none", rerank=RerankConfig(3, held_out=held_out), space=SPACE)


def search(model: Any, problem: PruningProblem, windows: Any, held_out: int, folder: Path) -> SearchOutcome:
    post_pruning = PostPruning.of_windows(CALIBRATION, ReconstructionConfig(), None)
    return run_search(model, problem, windows, config(held_out), folder, {}, post_pruning=post_pruning)


def test_every_window_goes_to_one_side(windows: TextWindows) -> None:
    seen, apart = split_windows(windows, config(3))
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(torch.cat([getattr(seen, name), getattr(apart, name)]), getattr(windows, name))
    assert len(apart.input_ids) == 3
    assert split_windows(windows, config(0)) == (windows, windows)
    assert split_windows(windows, SearchConfig(rerank=None)) == (windows, windows)


def test_trials_see_the_first_part_and_the_last_part_decides(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path
) -> None:
    found = search(model, problem, windows, 3, tmp_path / "apart")
    alone = search(model, problem, windows.select(range(len(windows) - 3)), 0, tmp_path / "alone")
    assert [t.value for t in found.trials] == [t.value for t in alone.trials]
    last = windows.select(range(len(windows) - 3, len(windows)))
    values = {c.trial: c.reconstructed for c in found.candidates}
    with reconstructed(model, problem, found.plan, PostPruning.of_windows(CALIBRATION, ReconstructionConfig(), None)):
        assert values[found.best.trial] == pytest.approx(evaluate_nll(model, last).nll, abs=1e-5)
    assert values[found.best.trial] == min(values.values())  # type: ignore[type-var]


@pytest.mark.parametrize("held_out", [8, 9])
def test_trials_must_keep_something(windows: TextWindows, held_out: int) -> None:
    with pytest.raises(DataError, match=rf"^search.rerank.held_out: expected fewer than the 8 windows .*, got {held_out}; give fewer"):
        split_windows(windows, config(held_out))


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^search.rerank.held_out: expected 0 or more windows, got -1; give 0"):
        RerankConfig(held_out=-1)
