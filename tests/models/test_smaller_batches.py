"""Memory that runs out, of a device that does not hold more than two sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.smaller_batches import in_parts, with_smaller_batches, within_memory
from adapruner.pruning.budget import Budget
from adapruner.search.config import SearchConfig
from adapruner.search.options import pruning_options
from adapruner.search.score import score_model
from adapruner.stages import data_from_texts
from tests.tiny import random_windows, tiny_llama


@contextmanager
def small_device(model: Any, holds: int) -> Iterator[list[int]]:
    """A forward of more sequences than the device holds fails; yields the sizes of those that did not."""
    sizes: list[int] = []

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        if len(given) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(given))

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


def out_of_memory_above(holds: int) -> Callable[[int], int]:
    def work(size: int) -> int:
        if size > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    return work


@pytest.mark.parametrize(("holds", "found"), [(9, 8), (4, 4), (3, 2), (1, 1)])
def test_the_batch_is_halved_until_it_fits(holds: int, found: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_smaller_batches(out_of_memory_above(holds), 8, "statistics") == found
    assert capsys.readouterr().out.count("does not hold batches of") == {8: 0, 4: 1, 2: 2, 1: 3}[found]


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    assert within_memory(lambda: out_of_memory_above(0)(1)) is None
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        with_smaller_batches(out_of_memory_above(0), 4, "statistics")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        in_parts(lambda rows: out_of_memory_above(0)(rows.stop - rows.start), slice(0, 4))


def test_other_errors_pass() -> None:
    def fails(size: int) -> int:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        with_smaller_batches(fails, 4, "statistics")


def test_an_evaluation_goes_on_in_parts_and_finds_the_same() -> None:
    model, windows = tiny_llama(), random_windows(11, 16, seed=3)
    expected = evaluate_nll(model, windows, 4)
    with small_device(model, 2) as sizes:
        found = evaluate_nll(model, windows, 4)
    assert sizes == [2, 2, 2, 2, 1, 2]
    assert found.tokens == expected.tokens
    assert found.nll == pytest.approx(expected.nll, rel=1e-6)


def test_scoring_begins_again_with_smaller_batches_and_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_llama()
    data = data_from_texts(random_windows(8, 16, seed=1).input_ids, None, search=random_windows(4, 16, seed=2).input_ids)
    options = pruning_options(Budget(0.3), SearchConfig(n_trials=1), statistics_batch_size=8)
    expected = score_model(model, data, options).problem.statistics.to_tensors()
    with small_device(model, 2):
        found = score_model(model, data, options).problem.statistics.to_tensors()
    assert "statistics: the device's memory does not hold batches of 4; goes on with 2" in capsys.readouterr().out
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
