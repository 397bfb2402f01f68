"""Block Influence: 1 - cosine of a layer's input and output. ShortGPT, Men et al., arXiv 2403.03853."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from adapruner.errors import ModelError
from adapruner.models.forward import Progress, Windows, observe
from adapruner.models.tracing import find_decoder_layers
from adapruner.pruning.layer_scores import register_layer_score


@register_layer_score
class BlockInfluence:
    """How far a layer turns the residual stream; one that leaves its direction as it was has 0."""

    name = "block_influence"

    def score(self, model: Any, windows: Windows, *, batch_size: int = 8, progress: Progress | None = None) -> Tensor:
        """``[layers]`` float64 in [0, 2]: the mean over tokens. One forward pass, which keeps no activations.

        Raises:
            DataError: if there is no token.
            ModelError: if hidden states are not finite.
        """
        _, layers = find_decoder_layers(model)
        sums, place = torch.zeros(len(layers), dtype=torch.float64), {layer: index for index, layer in enumerate(layers)}

        def add(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any, counted: Tensor) -> None:
            before, after = arguments[0] if arguments else keywords["hidden_states"], output[0] if isinstance(output, tuple) else output
            cosine = cosine_similarity(before.float(), after.float(), dim=-1)
            sums[place[layer]] += (cosine * counted).sum().double().cpu()

        tokens = observe(model, dict.fromkeys(layers, add), windows, batch_size, progress)
        if not bool(torch.isfinite(sums).all()):
            raise ModelError("model: expected finite hidden states on the calibration windows, got others; load it in another dtype")
        return 1.0 - sums / tokens
