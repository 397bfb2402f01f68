"""Whether a model will do as GGUF, asked of the dense model: before hours of pruning, not after them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.formats.gguf.folder import ExportedFolder
from adapruner.export.formats.gguf.layout import read_layout
from adapruner.export.formats.gguf.tokenizer import read_vocabulary

_EMBEDDING, _GATE = "model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"
_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def check_feasible(model: Any, tokenizer: Any, *, irregular: bool, output_bias: bool, argument: str = "gguf") -> None:
    """Refuses a model of which :func:`adapruner.export.formats.gguf.write_gguf` could write no pruned form; nothing is kept on disk.

    The export that will be is described as if it were there: the model's configuration, its tokenizer, and the shapes of its tensors
    with what pruning may change of them.

    Args:
        model: the dense causal LM, or one that will be pruned again.
        tokenizer: that the export will carry.
        irregular: whether layers may come out with widths of their own.
        output_bias: whether output projections may get biases.
        argument: of the message.

    Raises:
        ConfigurationError: with what is in the way.
    """
    if tokenizer is None:
        raise ConfigurationError(f"{argument}: expected a tokenizer, which a GGUF file holds, got none; give one, or leave {argument} out")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with TemporaryDirectory() as name:
        try:
            _describe(Path(name), model, tokenizer, _as_pruned(shapes, irregular, output_bias))
        except ModelError as error:
            reason = str(error).replace(f" in {name}", "")  # a folder that nobody knows
            raise ConfigurationError(
                f"{argument}: expected a model that GGUF holds, got another ({reason}); or leave {argument} out"
            ) from None


def _describe(folder: Path, model: Any, tokenizer: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where the export would be refused."""
    if _EMBEDDING not in shapes:
        raise ModelError(f"model: expected a decoder with {_EMBEDDING}, got a {type(model).__name__}; use transformers")
    config = model.config.to_dict()
    read_layout(ExportedFolder(folder, config, dict(shapes), "F32", {}))
    tokenizer.save_pretrained(folder)
    read_vocabulary(folder, config, shapes[_EMBEDDING][0])


def _as_pruned(shapes: Mapping[str, tuple[int, ...]], irregular: bool, output_bias: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of an export that is the hardest to hold: one layer narrower than the others, a bias on each output projection."""
    found = dict(shapes)
    if irregular and _GATE in found and "model.layers.1.mlp.gate_proj.weight" in found:
        found[_GATE] = (found[_GATE][0] - 1, *found[_GATE][1:])
    if output_bias:
        found |= {f"model.layers.0.{role}.bias": found[_EMBEDDING][1:] for role in _OUTPUTS}
    return found
