"""An export taken up again as a model to measure or to go on with: no code of its folder is run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter
from adapruner.export.folder import PLAN_FILE, is_export
from adapruner.export.loading import load
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.recovery.lora import merge_lora


@dataclass(frozen=True)
class ExportedModel:
    """The model of an export, adapters that lay beside it merged, and the plan that it was pruned by."""

    model: Any
    plan: PruningPlan


def open_export(source: str | Path, dtype: str = "auto", attn_implementation: str | None = None) -> ExportedModel | None:
    """The model of a folder that adapruner exported; ``None`` where it is no such folder.

    Args:
        source: a folder, or a hub name.
        dtype: ``auto`` (as saved) or a torch type's name.
        attn_implementation: as in ``from_pretrained``; the library's choice when empty.

    Raises:
        ModelError: if the export is damaged, or has no such attention.
        PlanError: if its plan is missing or was changed.
    """
    folder = Path(source)
    if not folder.is_dir() or not is_export(folder):
        return None
    model = load(folder, dtype)
    if attn_implementation:
        try:
            model.set_attn_implementation(attn_implementation)
        except (ValueError, ImportError) as error:
            raise ModelError(
                f"model.attn_implementation: expected one that this model has, got {attn_implementation!r} ({str(error)[:120]}); "
                "give sdpa or eager"
            ) from None
    if (folder / ADAPTER_FOLDER).is_dir():
        model = merge_lora(attach_adapter(model, folder / ADAPTER_FOLDER))
    return ExportedModel(model, read_plan(folder / PLAN_FILE))


def check_can_be_pruned(source: str | Path) -> None:
    """Refuses an export whose layers have widths of their own: the structure of one layer would not be that of the others.

    Raises:
        ConfigurationError: if it is one.
    """
    folder = Path(source)
    if not folder.is_dir() or not is_export(folder):
        return
    if "pruned_shapes" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise ConfigurationError(
            f"model.name_or_path: expected a model with equally wide layers to prune, got the export {folder} with layers of different "
            "widths; give the dense model, or export with --pad"
        )
