"""Evaluation shared out over ranks against evaluation in one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DistributedSampler, SequentialSampler

from adapruner.data.padding_rows import share_out, with_padding_rows
from adapruner.data.windows import IGNORED
from adapruner.data_module import PruningDataModule
from adapruner.evaluation.perplexity import evaluate_nll, token_nll
from tests.tiny import random_windows, tiny_llama


class MadeData(PruningDataModule):
    """Windows made on the spot, for the rank that a Trainer would say."""

    def __init__(self, windows: int, ranks: int = 1, rank: int = 0, batch_size: int = 2) -> None:
        LightningDataModule.__init__(self)
        self.batch_size, self.num_workers, self.seed = batch_size, 0, 0
        self.search_windows = random_windows(windows, 12, seed=1)
        self.evaluation_windows = {("held out", 12): random_windows(windows, 12, seed=2)}
        if ranks > 1:
            place = {"num_replicas": ranks, "rank": rank}
            self.trainer = SimpleNamespace(strategy=SimpleNamespace(distributed_sampler_kwargs=place))  # type: ignore[assignment]


def summed(model: Any, loader: Any) -> tuple[float, int, int]:
    """NLL in nats, predicted tokens, and batches of one rank."""
    nll, tokens, batches = 0.0, 0, 0
    for batch in loader:
        with torch.no_grad():
            total, count = token_nll(model(**batch, use_cache=False).logits, batch["labels"])
        nll, tokens, batches = nll + total.item(), tokens + count, batches + 1
    return nll, tokens, batches


@pytest.mark.parametrize(("windows", "ranks"), [(7, 2), (6, 2), (1, 2), (9, 4), (2, 5)])
def test_all_ranks_together_count_every_window_once(windows: int, ranks: int) -> None:
    model = tiny_llama().eval()
    for name in ("search_windows", "evaluation_windows"):
        parts = []
        for rank in range(ranks):
            data = MadeData(windows, ranks, rank)
            parts.append(summed(model, data.val_dataloader() if name == "search_windows" else data.test_dataloader()[0]))
        given = data.search_windows if name == "search_windows" else data.evaluation_windows["held out", 12]
        expected = evaluate_nll(model, given)
        assert sum(part[1] for part in parts) == expected.tokens
        assert sum(part[0] for part in parts) == pytest.approx(expected.nll_sum, rel=1e-6)
        assert len({part[2] for part in parts}) == 1  # equally many forwards


def test_lightning_finds_its_sampler_there_already() -> None:
    """Else it would put in one that repeats windows."""
    for rank in range(2):
        data = MadeData(5, ranks=2, rank=rank)
        for loader in (data.val_dataloader(), *data.test_dataloader()):
            assert isinstance(loader.sampler, DistributedSampler)
            assert list(loader.sampler) == list(range(rank, 6, 2))


def test_one_process_serves_the_windows_themselves() -> None:
    data = MadeData(5)
    loader = data.val_dataloader()
    assert loader.dataset is data.search_windows
    assert isinstance(loader.sampler, SequentialSampler)
    assert share_out(data.search_windows, 1, 0) == (data.search_windows, None)


def test_padding_rows_stand_behind_the_windows_and_count_nothing() -> None:
    windows = random_windows(3, 8, seed=0)
    windows.text_bytes = torch.tensor([5, 6, 7])
    padded = with_padding_rows(windows, 5)
    assert torch.equal(padded.input_ids, windows.input_ids[[0, 1, 2, 0, 0]])
    assert torch.equal(padded.labels[:3], windows.labels)
    assert (padded.labels[3:] == IGNORED).all()
    assert padded.attention_mask.all()  # a row without a token would have no attention to give
    assert padded.text_bytes is not None
    assert padded.text_bytes.tolist() == [5, 6, 7, 0, 0]
    assert (windows.labels != IGNORED).all()  # the given ones are as they were
    assert windows.text_bytes.tolist() == [5, 6, 7]
    assert with_padding_rows(windows, 3) is windows
