"""A short name for a model's very weights: what a plan, a study and cached statistics are valid for."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLED = 64


def fingerprint_model(model: nn.Module) -> str:
    """16 hex digits over every parameter's name, shape and 64 evenly spaced values (as float32).

    Cheap at any size (64 values a tensor), the same on every device; it differs for another checkpoint of the same
    architecture and for the same checkpoint loaded in another precision.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        picks = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), device=flat.device, dtype=torch.float64).long()
        digest.update(f"{name}:{tuple(parameter.shape)}:".encode())
        if not flat.is_meta:
            digest.update(flat[picks].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
