"""The refit held to a rotation: orthogonal Procrustes (Schoenemann 1966), as in RCPU (arXiv 2510.07782)."""

from __future__ import annotations

import torch
from torch import Tensor


def best_rotation(correlation: Tensor) -> Tensor:
    """The orthogonal R ``[out, out]`` that minimises sum_t ||R a_t - y_t||^2, float64.

    With the singular value decomposition sum_t y_t a_t^T = U S V^T it is U V^T: the only part of the error that depends on R
    is -2 tr(R^T sum_t y_t a_t^T). Reflections are allowed. Where the sum has not full rank the rotation of what no a_t
    reaches is arbitrary.

    Args:
        correlation: sum of y a^T ``[out, out]``.
    """
    left, _, right = torch.linalg.svd(correlation.double())
    rotation: Tensor = left @ right
    return rotation


def rotation_change(gram: Tensor, residual: Tensor, kept: Tensor) -> Tensor:
    """R W - W ``[out, channels]`` float32 for the kept weights W.

    Args:
        gram: sum of x x^T ``[channels, channels]``.
        residual: sum of (y - W x) x^T ``[out, channels]``.
        kept: W ``[out, channels]``.
    """
    wide = kept.double()
    correlation = (residual.double() + wide @ gram.double()) @ wide.T
    return (best_rotation(correlation) @ wide - wide).float()
