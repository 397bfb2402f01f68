"""Which whole decoder layers may go: one score of layers, one file, one paper.

A user's own is a class like :class:`~adapruner.pruning.layer_scores.block_influence.BlockInfluence`, registered by the same decorator:

>>> import torch
>>> @register_layer_score
... class LastFirst:
...     name = "last_first"
...
...     def score(self, model, windows, *, batch_size=8, progress=None):
...         return -torch.arange(model.config.num_hidden_layers, dtype=torch.float64)
>>> "last_first" in LAYER_SCORES
True
>>> LAYER_SCORES.remove("last_first")
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from adapruner.models.forward import Progress, Windows
from adapruner.registry import Registry


class LayerScore(Protocol):
    """Scores whole decoder layers."""

    name: str

    def score(self, model: Any, windows: Windows, *, batch_size: int = 8, progress: Progress | None = None) -> Tensor:
        """``[layers]`` float64: the layers of the lowest scores are removed first.

        Args:
            model: a Hugging Face causal LM; it is left as it was.
            windows: calibration samples, ``[n, seq_len]``; padding does not count.
            batch_size: samples in one forward pass.
            progress: called with the number of samples done.
        """


LAYER_SCORES: Registry[LayerScore] = Registry("layer score", __name__, "adapruner.layer_scores")
register_layer_score = LAYER_SCORES.add_class
