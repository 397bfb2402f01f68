"""First and second moments of a projection's inputs: what a closed-form refit and OBS scores need of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class InputMoments:
    """Sums over tokens, float32, linear in the weights of the tokens."""

    gram: Tensor
    """``[channels, channels]``: sum of x x^T."""
    total: Tensor
    """``[channels]``: sum of x."""
    tokens: Tensor
    """Scalar: sum of the weights, the number of tokens where all weigh 1."""

    @classmethod
    def empty(cls, channels: int, device: torch.device | None = None) -> InputMoments:
        """Nothing seen yet."""
        return cls(torch.zeros(channels, channels, device=device), torch.zeros(channels, device=device), torch.zeros((), device=device))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All sums; what several processes saw adds up."""
        return self.gram, self.total, self.tokens

    def add(self, inputs: Tensor, weights: Tensor) -> None:
        """Takes in the tokens of a batch.

        Args:
            inputs: ``[..., channels]``, any dtype.
            weights: how much each token counts, broadcast over the leading dimensions of ``inputs``; 0 for padding.
        """
        rows = inputs.detach().float().flatten(0, -2)
        counts = weights.to(rows.device, torch.float32).expand(inputs.shape[:-1]).flatten()
        weighted = rows * counts[:, None]
        self.gram.addmm_(weighted.T, rows)
        self.total += weighted.sum(0)
        self.tokens += counts.sum()

    def plus(self, other: InputMoments) -> InputMoments:
        """The moments of both sets of tokens together."""
        return InputMoments(self.gram + other.gram, self.total + other.total, self.tokens + other.tokens)

    def at(self, channels: Tensor) -> InputMoments:
        """The moments of some of the channels ``[k]``."""
        return InputMoments(self.gram.index_select(0, channels).index_select(1, channels), self.total[channels], self.tokens)
