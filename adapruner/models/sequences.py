"""Some feed-forward networks (OPT, mixtures of experts) see one long row of tokens; statistics are kept per sequence."""

from __future__ import annotations

from torch import Tensor


def in_sequences(states: Tensor, batch: int) -> Tensor:
    """``[batch, seq_len, channels]``, from that or from ``[batch * seq_len, channels]``.

    >>> import torch
    >>> in_sequences(torch.zeros(6, 4), 2).shape
    torch.Size([2, 3, 4])
    """
    return states if states.ndim == 3 else states.view(batch, -1, states.shape[-1])
