"""What makes two searches one: everything that a value depends on, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import adapruner
from adapruner.errors import ConfigurationError
from adapruner.pruning.problem import make_plan

WINDOWS = torch.randint(3, 2000, (12, 24), generator=torch.Generator().manual_seed(0))
REFIT = adapruner.ReconstructionConfig()


def scored(reconstruction: adapruner.ReconstructionConfig) -> Any:
    search = adapruner.SearchConfig(n_trials=1, space=adapruner.SearchSpace(metrics=["l2"]))
    return adapruner.stages.score("demo", calibration=WINDOWS, budget=0.3, search=search, reconstruction=reconstruction)


def test_memory_for_a_shared_stream_is_no_part_of_it() -> None:
    with_stream, without = scored(REFIT), scored(replace(REFIT, shared_gib=0.0))
    assert with_stream.identity == without.identity
    assert "shared_gib" not in with_stream.identity["reconstruction"]  # as in folders of before there was one
    assert scored(replace(REFIT, ridge=0.1)).identity != without.identity


def test_no_plan_is_made_of_statistics_that_are_let_go() -> None:
    problem = scored(REFIT).after_search().after_pruning().problem
    with pytest.raises(ConfigurationError, match="problem: expected statistics of the dense model, got none; score the model"):
        make_plan(problem, adapruner.Recipe({"l2": 1.0}))
