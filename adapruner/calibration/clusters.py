"""Groups of calibration samples by what the model makes of them, for a pool whose sources have no labels.

A sample is the mean of its last hidden states, scaled to length 1 (so that k-means compares directions); the groups are
scikit-learn's k-means. A search then weights clusters as it weights sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adapruner.calibration.pool import CalibrationGroups
from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.forward import Progress, Windows, batches, evaluation_mode


def cluster_pools(
    model: nn.Module,
    windows_at: Mapping[int, Windows],
    k: int = 8,
    seed: int = 0,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[int, CalibrationGroups]:
    """One clustering for the pool at every length, so that ``cluster 3`` means the same text at each.

    The centres come from the first pool; samples of the others join the nearest one. Clusters are numbered by their size in the
    first pool, then by their first sample. Where samples repeat, so that fewer than ``k`` differ, there are fewer clusters. The
    same model, windows and seed give the same clusters.

    Args:
        model: a Hugging Face causal LM; it is left as it was.
        windows_at: length in tokens -> samples.
        k: number of clusters.
        seed: of k-means' ten starts.
        batch_size: samples in one forward pass, which computes no logits.
        progress: called with the number of samples done, over all pools.

    Returns:
        length -> group of each sample; all lengths have the same names.

    Raises:
        ConfigurationError: if ``k`` is below 2 or above the number of samples.
        ModelError: if hidden states are not finite.
    """
    pools = list(windows_at.values())
    samples = len(pools[0].input_ids)
    if not 2 <= k <= samples:
        raise ConfigurationError(f"calibration.clusters: expected 2 to {samples}, one per sample at most, got {k}; give another number")
    features, done = [], 0
    for windows in pools:

        def advance(within: int, before: int = done) -> None:
            if progress:
                progress(before + within)

        features.append(normalize(mean_hidden_states(model, windows, batch_size=batch_size, progress=advance).double()))
        done += len(windows.input_ids)
    labels = _k_means(features, k, seed)
    counts = torch.bincount(labels[0], minlength=k)
    order = sorted(labels[0].unique().tolist(), key=lambda c: (-int(counts[c]), int((labels[0] == c).nonzero()[0])))
    rank = torch.zeros(k, dtype=torch.long)
    rank[order] = torch.arange(len(order))
    names = tuple(f"cluster {i}" for i in range(len(order)))
    return {length: CalibrationGroups(names, rank[found]) for length, found in zip(windows_at, labels, strict=True)}


def mean_hidden_states(model: nn.Module, windows: Windows, *, batch_size: int = 8, progress: Progress | None = None) -> Tensor:
    """``[n, hidden]`` float32 on the CPU: last hidden states, averaged over the positions that are not padding.

    Raises:
        ModelError: if they are not finite (the message names the sample).
    """
    backbone: Any = getattr(model, "base_model", model)  # without the head: no logits
    device = next(model.parameters()).device
    means = []
    with evaluation_mode(model):
        for rows in batches(len(windows.input_ids), batch_size, progress):
            ids, mask = windows.input_ids[rows].to(device), windows.attention_mask[rows].to(device)
            states = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
            real = mask.to(states.device)[..., None].bool()  # not a product with 0: what a model makes of padding may be nan
            means.append((states.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)).cpu())
    result = torch.cat(means)
    finite = torch.isfinite(result).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise ModelError(f"calibration: expected finite hidden states, got inf or nan on sample {bad}; use bfloat16 or float32")
    return result


def _k_means(features: list[Tensor], k: int, seed: int) -> list[Tensor]:
    """Cluster of each row ``[n]`` int64 of every table; the centres are those of the first table."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    k_means = KMeans(n_clusters=k, n_init=10, random_state=seed)
    # one thread: with more, sums are taken in another order each time, and a sample between two centres may fall either way
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer than k samples differ
        first = k_means.fit_predict(features[0].numpy())
        rest = [k_means.predict(table.numpy()) for table in features[1:]]
    return [torch.from_numpy(found).long() for found in (first, *rest)]
