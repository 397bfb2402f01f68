"""LoRA adapters beside the model instead of merged into it: a folder that any ``peft`` reads."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.errors import ModelError
from adapruner.export.folder import ExportRecord, export_model, list_files
from adapruner.export.options import ExportOptions
from adapruner.files.atomic import write_atomically
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.lora import LoRAConfig, attach_lora

ADAPTER_FOLDER = "adapter"
"""Inside an export."""
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (_CONFIG, _WEIGHTS, "README.md")
_CARD = """\
---
library_name: peft
tags: [lora, adapruner]
---

# LoRA recovery of the pruned model in the folder above

```python
from peft import PeftModel

model = PeftModel.from_pretrained(pruned_model, "adapter")  # .merge_and_unload() adds them to the weights
```
"""


def has_adapters(model: Any) -> bool:
    """Whether adapters are attached."""
    return hasattr(model, "peft_config") and hasattr(model, "unload")


def without_adapters(model: Any) -> Any:
    """The model under the adapters, as a model of its own that shares every tensor with it; ``model`` stays as it is.

    Merging ``model`` afterwards gives its layers new tensors and does not reach this one. A model without adapters comes back.
    """
    if not has_adapters(model):
        return model
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    shared |= {id(b): b for b in model.buffers()}  # deepcopy takes what is in its memo for copied
    plain = copy.deepcopy(model, shared).unload()
    if hasattr(plain, "peft_config"):
        del plain.peft_config  # else save_pretrained looks for adapters
    return plain


def save_adapter(adapted: Any, folder: Path) -> None:
    """Writes the adapters as ``peft`` does: ``adapter_config.json`` and safetensors.

    The configuration names no base model: theirs is the folder above, wherever it lies.
    """
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    record = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    targets = record["target_modules"]
    changes = {"base_model_name_or_path": None, "target_modules": targets if isinstance(targets, str) else sorted(targets)}
    write_atomically(folder / _CONFIG, json.dumps({**record, **changes}, indent=2) + "\n")
    write_atomically(folder / "README.md", _CARD)


def export_either(
    model: Any, tokenizer: Any, structure: ModelStructure, plan: PruningPlan, folder: Path, options: ExportOptions, card: dict[str, Any]
) -> ExportRecord:
    """:func:`adapruner.export.folder.export_model`, adapters that are attached in a folder of their own inside."""
    card = {**card, "adapter": ADAPTER_FOLDER} if has_adapters(model) else card
    sizes: dict[str, Any] = {"dtype": options.dtype, "max_shard_size": options.max_shard_size, "pad": options.pad}
    record = export_model(without_adapters(model), tokenizer, structure, plan, folder, card=card, **sizes)
    if has_adapters(model):
        save_adapter(model, folder / ADAPTER_FOLDER)
    return replace(record, files=list_files(folder))


def attach_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapters of a folder on it, their values included.

    Raises:
        ModelError: if the folder is damaged, or its adapters are for another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        targets = record["target_modules"]
        settings = LoRAConfig(r=record["r"], alpha=record["lora_alpha"], dropout=record["lora_dropout"], target_modules=targets)
        stored = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"adapters: expected a whole folder of adapters, got damage in {folder} ({error}); export again") from None
    adapted = attach_lora(model, settings)
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in stored.items()}
    wanted = {name: tensor.shape for name, tensor in adapted.state_dict().items() if ".lora_" in name}
    if wanted != {name: tensor.shape for name, tensor in named.items()}:
        raise ModelError(f"adapters: expected adapters of the model beside them, got others in {folder}; export both again")
    adapted.load_state_dict(named, strict=False)
    return adapted
