"""Clusters of samples: against scikit-learn on hidden states computed one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.calibration.clusters import cluster_pools, mean_hidden_states
from adapruner.calibration.pool import CalibrationGroups
from adapruner.errors import ConfigurationError, ModelError


def cluster_samples(model: Any, windows: Any, k: int, seed: int = 0, **options: Any) -> CalibrationGroups:
    """The clusters of one pool."""
    return cluster_pools(model, {0: windows}, k, seed, **options)[0]


def slow_features(model: Any, windows: Any) -> Tensor:
    """Mean last hidden state of each sample, its padding cut off, alone in its batch; scaled to length 1."""
    rows = []
    for ids, mask in zip(windows.input_ids, windows.attention_mask, strict=True):
        with torch.no_grad():
            states = model(ids[mask.bool()][None], output_hidden_states=True).hidden_states[-1][0]
        total = torch.zeros(states.shape[1], dtype=torch.float64)
        for state in states:
            total += state.double()
        rows.append(total / total.norm())
    return torch.stack(rows)


def same_partition(left: Tensor, right: Tensor) -> bool:
    return bool(torch.equal(left[:, None] == left[None, :], right[:, None] == right[None, :]))


@pytest.mark.parametrize("padded", [False, True])
def test_equal_to_scikit_learn_on_slow_hidden_states(
    tiny_model: Callable[..., Any], token_windows: Callable[..., Any], padded: bool
) -> None:
    from sklearn.cluster import KMeans

    model, windows = tiny_model("llama_gqa_2"), token_windows(samples=8, seq_len=12, padded=padded)
    expected = KMeans(n_clusters=3, n_init=10, random_state=5).fit_predict(slow_features(model, windows).numpy())
    groups = cluster_samples(model, windows, 3, 5, batch_size=3)
    assert groups.names == ("cluster 0", "cluster 1", "cluster 2")
    assert same_partition(groups.index, torch.from_numpy(expected))
    sizes = torch.bincount(groups.index).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_two_kinds_of_text_separate(tiny_model: Callable[..., Any], token_windows: Callable[..., Any]) -> None:
    windows = token_windows(samples=14, seq_len=16)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0])
    low = torch.randint(3, 8, windows.input_ids.shape, generator=generator)
    windows.input_ids = torch.where(kinds[:, None].bool(), low, low + 40)
    groups = cluster_samples(tiny_model("llama_gqa_2"), windows, 2)
    assert torch.equal(groups.index, kinds), "the larger one is cluster 0"


def test_the_seed_decides_and_nothing_is_left_behind(tiny_model: Callable[..., Any], token_windows: Callable[..., Any]) -> None:
    model, windows = tiny_model("llama_gqa_2").train(), token_windows(samples=9, seq_len=12)
    model.model.layers[1].eval()
    seen: list[int] = []
    first = cluster_samples(model, windows, 4, 1, batch_size=4, progress=seen.append)
    assert torch.equal(first.index, cluster_samples(model, windows, 4, 1, batch_size=9).index)
    assert seen == [4, 8, 9]
    assert model.training
    assert not model.model.layers[1].training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_other_lengths_join_the_centres_of_the_first(tiny_model: Callable[..., Any], token_windows: Callable[..., Any]) -> None:
    from sklearn.cluster import KMeans

    model = tiny_model("llama_gqa_2")
    pools = {12: token_windows(samples=10, seq_len=12), 6: token_windows(samples=7, seq_len=6, seed=4)}
    seen: list[int] = []
    groups = cluster_pools(model, pools, 3, 2, batch_size=5, progress=seen.append)
    assert torch.equal(groups[12].index, cluster_samples(model, pools[12], 3, 2).index)
    assert groups[6].names == groups[12].names
    assert seen == [5, 10, 15, 17]
    oracle = KMeans(n_clusters=3, n_init=10, random_state=2).fit(slow_features(model, pools[12]).numpy())
    both = [torch.from_numpy(oracle.predict(slow_features(model, pool).numpy())) for pool in pools.values()]
    assert same_partition(torch.cat([groups[12].index, groups[6].index]), torch.cat(both))


def test_repeated_samples_make_fewer_clusters(tiny_model: Callable[..., Any], token_windows: Callable[..., Any]) -> None:
    windows = token_windows(samples=6, seq_len=12)
    windows.input_ids = windows.input_ids[torch.tensor([0, 1, 0, 0, 1, 0])]
    groups = cluster_samples(tiny_model("llama_gqa_2"), windows, 3)
    assert groups.names == ("cluster 0", "cluster 1")
    assert groups.index.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("k", [0, 1, 6])
def test_refuses_too_many_or_too_few(tiny_model: Callable[..., Any], token_windows: Callable[..., Any], k: int) -> None:
    with pytest.raises(ConfigurationError, match=f"calibration.clusters: expected 2 to 5, one per sample at most, got {k}; give another"):
        cluster_samples(tiny_model("llama_gqa_2"), token_windows(samples=5), k)


def test_names_the_sample_that_is_not_finite(tiny_model: Callable[..., Any], token_windows: Callable[..., Any]) -> None:
    model, windows = tiny_model("llama_gqa_2"), token_windows(samples=5)
    windows.input_ids[:] = 7
    windows.input_ids[3, 2] = 9
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = float("nan")
    with pytest.raises(ModelError, match="expected finite hidden states, got inf or nan on sample 3"):
        mean_hidden_states(model, windows)
