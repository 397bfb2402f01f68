from __future__ import annotations

from typing import Any

import pytest

from adapruner.data.windows import TextWindows
from adapruner.pruning.problem import PruningProblem
from tests.tiny import prepare_problem, random_windows, tiny_llama


@pytest.fixture(scope="package")
def model() -> Any:
    """Dense; every search must leave it so."""
    return tiny_llama(attention_bias=True)


@pytest.fixture(scope="package")
def problem(model: Any) -> PruningProblem:
    return prepare_problem(model, random_windows(4, 16, seed=1, sources=("books", "code", "wiki")))


@pytest.fixture(scope="package")
def windows() -> TextWindows:
    return random_windows(8, 16, seed=2)
