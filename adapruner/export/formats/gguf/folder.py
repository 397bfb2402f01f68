"""An exported Hugging Face folder as the GGUF writer reads it: configuration, shapes of tensors, one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.loading import read_header, weight_files


@dataclass(frozen=True)
class ExportedFolder:
    """What lies in a folder; weights stay on disk until they are asked for."""

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    dtype: str
    """The embedding's, as safetensors names it: ``F32``, ``F16``, ``BF16``."""
    files: dict[str, Path] = field(repr=False)
    """Tensor name -> file."""

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return "lm_head.weight" not in self.shapes or bool(self.config.get("tie_word_embeddings"))

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from disk."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def read_folder(path: str | Path) -> ExportedFolder:
    """Opens every safetensors file of the folder for its header.

    Raises:
        ModelError: if the configuration or the weights are missing or damaged.
    """
    path, embedding = Path(path), "model.embed_tokens.weight"
    config = read_json(path / "config.json")
    if not config:
        raise ModelError(f"folder: expected an exported model, got {path} without config.json; check the path")
    headers = {file: read_header(file) for file in weight_files(path)}
    tensors = {name: (shape, dtype, file) for file, header in headers.items() for name, (shape, dtype) in header.items()}
    if embedding not in tensors:
        raise ModelError(f"folder: expected a decoder with {embedding}, got none in {path}; export a Llama, Mistral, Qwen2 or Qwen3")
    shapes, files = {name: shape for name, (shape, _, _) in tensors.items()}, {name: file for name, (_, _, file) in tensors.items()}
    return ExportedFolder(path, config, shapes, tensors[embedding][1], files)


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
