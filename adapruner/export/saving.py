"""Lets ``save_pretrained`` of a pruned model write a folder that loads again, whatever the widths of its layers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER
from adapruner.export.folder import export_model
from adapruner.export.staging import is_export, scratch_beside
from adapruner.files.digests import SUMS
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan

_WITHOUT_EFFECT = ("safe_serialization", "save_function", "token", "save_peft_format", "save_original_format")
"""Arguments of transformers' ``save_pretrained`` that change nothing in what we write."""


_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""Names of the files that hold weights, or say which do."""


def save_as_export(model: Any, structure: ModelStructure, plan: PruningPlan) -> None:
    """From here on ``model.save_pretrained(folder)`` writes what :func:`adapruner.export.folder.export_model` writes.

    The configuration of a pruned model does not say how wide each layer is, so transformers' own ``save_pretrained`` would write a
    folder that does not load. Ours writes configuration, weights, ``plan.json`` and the model card, without a tokenizer
    (``tokenizer.save_pretrained(folder)`` adds it). Files of others in the folder stay. A copy of the model saves the copy; adapters
    of ``peft`` are saved by their own ``save_pretrained``, and the model under them again once they are merged.

    Args:
        model: a Hugging Face causal LM, pruned by ``plan``; changed in place.
        structure: of the dense model.
        plan: what the model was pruned by.
    """

    def save_pretrained(
        self: Any, save_directory: str | Path, is_main_process: bool = True, *, max_shard_size: str | int = "5GB", **options: Any
    ) -> None:
        """Writes the pruned model; see :func:`adapruner.export.saving.save_as_export`.

        Raises:
            ConfigurationError: for an argument that a pruned model cannot follow.
            ModelError: if the model is no longer at the widths of its plan, or has adapters.
        """
        refused = [name for name, value in options.items() if name not in _WITHOUT_EFFECT and value not in (None, False)]
        if refused:
            raise ConfigurationError(
                f"save_pretrained: expected save_directory, is_main_process and max_shard_size for a pruned model, got {refused[0]}; "
                "leave it out"
            )
        if is_main_process:
            _save(self, structure, plan, Path(save_directory), max_shard_size)

    # A bound method: copy.deepcopy binds it to the copy. The closure, and so the structure and the plan, is shared.
    model.save_pretrained = MethodType(save_pretrained, model)
    model._pruned_by = (structure, plan)


def pruned_by(model: Any) -> tuple[ModelStructure, PruningPlan] | None:
    """The dense model's structure and the plan of a model that :func:`save_as_export` was called with; ``None`` for any other."""
    found: tuple[ModelStructure, PruningPlan] | None = getattr(model, "_pruned_by", None)
    return found


def _save(model: Any, structure: ModelStructure, plan: PruningPlan, folder: Path, max_shard_size: str | int) -> None:
    """Writes the export inside the folder, then moves its files up over an earlier save; what is no longer used goes last.

    A kill in between leaves old files, new files, or both, never none; the next save clears up.
    """
    with scratch_beside(folder / "save", folder.resolve().name) as scratch:
        record = export_model(model, None, structure, plan, scratch, max_shard_size=max_shard_size)
        earlier = is_export(folder)
        for name in sorted(record.files, key=SUMS.__eq__):  # the list of them last: what is mixed does not fit it
            if name != "README.md" or earlier or not (folder / name).exists():  # a card that somebody wrote stays
                (record.path / name).replace(folder / name)
        for old in folder.iterdir():  # a shard that is left over would be loaded, too
            if _WEIGHTS.fullmatch(old.name) and old.name not in record.files:
                old.unlink()
        if earlier:
            shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)  # it belonged to the weights that went
