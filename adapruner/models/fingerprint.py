"""Short names for a model's very weights: what a plan, a study and cached statistics are valid for."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from adapruner.files.tensor_file import update_digest

_SAMPLED = 64


def fingerprint_model(model: nn.Module) -> str:
    """16 hex digits over every parameter's name, shape and 64 evenly spaced values (as float32).

    Part of a plan's hash, which is why it stays as it is; weights that were changed between these values need
    :func:`digest_weights`. The same on every device; it differs for another checkpoint of the same architecture and for the same
    checkpoint loaded in another precision.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        picks = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), device=flat.device, dtype=torch.float64).long()
        digest.update(f"{name}:{tuple(parameter.shape)}:".encode())
        if not flat.is_meta:
            digest.update(flat[picks].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_weights(model: nn.Module) -> str:
    """32 hex digits over every bit of every parameter; tensor by tensor, on as many threads as Torch computes with.

    1.2 GB a second and thread (SHA-256): a second for a model of 1 GB, 11 s for one of 7 billion parameters in bfloat16 on one thread.

    >>> from adapruner.models.loading import load_language_model
    >>> model = load_language_model("demo")
    >>> before = digest_weights(model)
    >>> with torch.no_grad():
    ...     _ = model.model.layers[0].mlp.up_proj.weight[3, 5].add_(1.0)  # none of the 64 that the fingerprint looks at
    >>> digest_weights(model) == before
    False
    """

    def of_one(named: tuple[str, Tensor]) -> bytes:
        digest = hashlib.sha256()
        update_digest(digest, *named)
        return digest.digest()

    with ThreadPoolExecutor(min(torch.get_num_threads(), os.cpu_count() or 1)) as threads:
        parts = list(threads.map(of_one, model.named_parameters()))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]
