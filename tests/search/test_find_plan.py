"""Which text each part of the search sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapruner import stages
from adapruner.data.from_texts import data_from_texts
from adapruner.search import find_plan as find_plan_module
from adapruner.search.config import RerankConfig, SearchConfig
from tests.tiny import random_windows, tiny_llama


def test_the_best_few_are_compared_on_the_pool_and_not_on_the_refits_own_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    data = data_from_texts(random_windows(16, 24, seed=2).input_ids, None)
    data = replace(data, reconstruction_windows=random_windows(40, 24, seed=3))
    seen: list[torch.Tensor] = []
    run = find_plan_module.run_search

    def watched(*arguments: Any, post_pruning: Any, **options: Any) -> Any:
        seen.append(post_pruning.input_ids)
        return run(*arguments, post_pruning=post_pruning, **options)

    monkeypatch.setattr(find_plan_module, "run_search", watched)
    config = SearchConfig(n_trials=4, rerank=RerankConfig(2))
    stages.search(stages.score(model, None, data, 0.3, search=config))
    assert len(seen) == 1
    assert torch.equal(seen[0], data.calibration_windows.input_ids)
