"""An exported Hugging Face folder as the GGUF writer reads it: configuration, shapes of tensors, one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from adapruner.errors import ModelError


@dataclass(frozen=True)
class ExportedFolder:
    """What lies in a folder; weights stay on disk until they are asked for."""

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    dtype: str
    """Of the embedding, as safetensors names it: ``F32``, ``F16``, ``BF16``."""
    files: dict[str, str] = field(repr=False)
    """Tensor name -> file."""

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return "lm_head.weight" not in self.shapes or bool(self.config.get("tie_word_embeddings"))

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from disk."""
        from safetensors import safe_open

        with safe_open(self.path / self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def read_folder(path: str | Path) -> ExportedFolder:
    """Opens every safetensors file of the folder for its header.

    Raises:
        ModelError: if the configuration or the weights are missing or damaged.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    if not config:
        raise ModelError(f"folder: expected an exported model, got {path} without config.json; check the path")
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    dtypes: dict[str, str] = {}
    for name in _weight_files(path):
        for tensor, (shape, dtype) in _header(path / name).items():
            shapes[tensor], files[tensor], dtypes[tensor] = shape, name, dtype
    embedding = "model.embed_tokens.weight"
    if embedding not in shapes:
        raise ModelError(f"folder: expected a decoder with {embedding}, got none in {path}; export a Llama, Mistral, Qwen2 or Qwen3")
    return ExportedFolder(path, config, shapes, dtypes[embedding], files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        ModelError: if the file is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"folder: expected JSON in {path}, got damage ({error}); export again") from None
    if not isinstance(found, dict):
        raise ModelError(f"folder: expected a JSON object in {path}, got a {type(found).__name__}; export again")
    return found


def _weight_files(path: Path) -> list[str]:
    index = read_json(path / "model.safetensors.index.json").get("weight_map", {"": "model.safetensors"})
    return sorted(set(index.values()))


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape and dtype."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights: expected whole safetensors, got damage or nothing at {file} ({error}); export again") from None
