"""Whether a folder holds a model, and what was loaded is that model: transformers only warns of weights that belong to another."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapruner.errors import ModelError

_COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "vocab_size",
    "head_dim",
    "n_layer",
    "n_head",
    "n_embd",
)
"""Numbers of ``config.json`` that a decoder cannot be built with unless they are 1 or more."""
_HARMLESS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|masked_bias|position_ids|causal_mask|(attn|attention|self_attention)\.bias|num_batches_tracked)$"
)
"""Buffers that older files carry and that a model works out by itself; transformers passes over those of some classes only."""
INDEX, ADAPTER = "model.safetensors.index.json", "adapter_config.json"


def check_model_folder(folder: Path) -> None:
    """Refuses what transformers would load as something else, or fail at with an error of its own.

    Raises:
        ModelError: if the folder holds adapters, its configuration counts nothing, or its index of shards is damaged.

    >>> check_model_folder(Path("a hub name"))
    """
    if (folder / ADAPTER).is_file():
        base = _object(folder / ADAPTER).get("base_model_name_or_path")
        raise ModelError(
            f"model.name_or_path: expected a model, got adapters of {base!r} in {str(folder)!r}; give that model, or merge them first: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)"
        )
    if (folder / "config.json").is_file():
        _check_counts(folder / "config.json")
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        _check_index(folder)


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: if it has none.
    """
    try:
        record = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model.name_or_path: expected a JSON object in {str(file)!r}, got damage ({str(error)[:80]}); restore the file"
        ) from None
    if not isinstance(record, dict):
        raise ModelError(f"model.name_or_path: expected a JSON object in {str(file)!r}, got {type(record).__name__}; restore the file")
    return record


def _check_counts(file: Path) -> None:
    record = _object(file)
    for key in _COUNTS:
        value = record.get(key)
        if isinstance(value, str | int | float) and (type(value) is not int or value < 1):  # a list has one for each layer
            raise ModelError(f"model.name_or_path: expected {key} of 1 or more in {str(file)!r}, got {value!r:.40}; restore the file")


def _check_index(folder: Path) -> None:
    shards = _object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(
            f"model.name_or_path: expected weight_map with a file for each tensor in {str(folder / INDEX)!r}, got {shards!r:.40}; "
            "restore the file"
        )
    for name in sorted(set(shards.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(
                f"model.name_or_path: expected the file {name!r} that {INDEX} names in {str(folder)!r}, got none; restore the checkpoint"
            )


def check_loaded(model: Any, found: Mapping[str, Any], name_or_path: str) -> None:
    """Refuses a model whose file has other tensors than the configuration builds; ``from_pretrained`` only warns.

    Args:
        model: what was loaded.
        found: the second result of ``from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)``.
        name_or_path: for the message.

    Raises:
        ModelError: if a tensor is missing, has another shape, or has no place in the model; or if adapters were attached.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model.name_or_path: expected a model, got adapters in {name_or_path!r}; merge them with their model first")
    words = f"model.name_or_path: expected every tensor of {type(model).__name__} in {name_or_path!r}, got"
    if found["missing_keys"]:
        raise ModelError(f"{words} none for {_first(found['missing_keys'])}: they would be random; restore the checkpoint")
    if found["mismatched_keys"]:
        name, got, expected = sorted(found["mismatched_keys"])[0]
        more = f" and {len(found['mismatched_keys']) - 1} more" if len(found["mismatched_keys"]) > 1 else ""
        raise ModelError(
            f"model.name_or_path: expected shape {tuple(expected)} for {name} in {name_or_path!r}, got {tuple(got)}{more}: weights of "
            "another config.json; restore the checkpoint"
        )
    unexpected = [name for name in found["unexpected_keys"] if not _HARMLESS.search(name)]
    if unexpected:
        raise ModelError(
            f"{words} also {_first(unexpected)}, which config.json has no place for: another model; restore config.json or the weights"
        )


def _first(names: Any) -> str:
    ordered = sorted(names)
    return f"{ordered[0]}{f' and {len(ordered) - 1} more' if len(ordered) > 1 else ''}"
