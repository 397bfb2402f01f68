"""Lets ``save_pretrained`` of a pruned model write a folder that loads again, whatever the widths of its layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER
from adapruner.export.card import model_card
from adapruner.export.folder import PLAN_FILE, ExportRecord, export_model, list_files
from adapruner.export.quantising import group_notes
from adapruner.export.staging import is_export, scratch_beside
from adapruner.files.digests import SUMS, write_sums
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan

_WITHOUT_EFFECT = ("safe_serialization", "save_function", "token", "save_peft_format", "save_original_format")
"""Arguments of transformers' ``save_pretrained`` that change nothing in what we write."""


_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""Names of the files that hold weights, or say which do."""


class ExportingSave:
    """``save_pretrained`` of a pruned model. An object that holds the model: a pickle or a copy holds its own.

    Args:
        model: whose it is.
        plan: what the model was pruned by.
        structure: of the dense model; ``None`` where the model comes from an export, and is written as it was loaded.
    """

    __name__ = "save_pretrained"

    def __init__(self, model: Any, plan: PruningPlan, structure: ModelStructure | None = None) -> None:
        self.model, self.plan, self.structure, self.shapes = model, plan, structure, _shapes(model)

    def __call__(
        self, save_directory: str | Path, is_main_process: bool = True, *, max_shard_size: str | int = "5GB", **options: Any
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
            _save(self._write, Path(save_directory), max_shard_size)

    def _write(self, folder: Path, max_shard_size: str | int) -> ExportRecord:
        if self.structure is not None or self.shapes != _shapes(self.model):  # loaded, and its padding was taken out
            return export_model(self.model, None, self.structure, self.plan, folder, max_shard_size=max_shard_size)
        model, name = self.model, type(self.model).__name__
        folder.mkdir(parents=True, exist_ok=True)
        type(model).save_pretrained(model, folder, max_shard_size=max_shard_size)
        self.plan.save(folder / PLAN_FILE)
        stock = "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
        notes = group_notes(model)
        (folder / "README.md").write_text(model_card(self.plan, class_name=name, stock=stock, notes=notes), encoding="utf-8")
        write_sums(folder)
        return ExportRecord(folder, name, stock, notes, list_files(folder))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def save_as_export(model: Any, structure: ModelStructure | None, plan: PruningPlan) -> None:
    """From here on ``model.save_pretrained(folder)`` writes what :func:`adapruner.export.folder.export_model` writes.

    The configuration of a pruned model does not say how wide each layer is, so transformers' own ``save_pretrained`` would write a
    folder that does not load. Ours writes configuration, weights, ``plan.json`` and the model card, without a tokenizer
    (``tokenizer.save_pretrained(folder)`` adds it). Files of others in the folder stay. A copy or a pickle of the model saves that one;
    adapters of ``peft`` are saved by their own ``save_pretrained``, and the model under them again once they are merged.

    Args:
        model: a Hugging Face causal LM, pruned by ``plan``; changed in place.
        structure: of the dense model; ``None`` where the model comes from an export.
        plan: what the model was pruned by.
    """
    model.save_pretrained = ExportingSave(model, plan, structure)
    model._pruned_by = (structure, plan)


def pruned_by(model: Any) -> tuple[ModelStructure | None, PruningPlan] | None:
    """The dense model's structure, if known, and the plan of a model that this package pruned or loaded; ``None`` for any other."""
    found: tuple[ModelStructure | None, PruningPlan] | None = getattr(model, "_pruned_by", None)
    return found


def _save(write: Callable[[Path, str | int], ExportRecord], folder: Path, max_shard_size: str | int) -> None:
    """Writes the export inside the folder, then moves its files up over an earlier save; what is no longer used goes last.

    A kill in between leaves old files, new files, or both, never none; the next save clears up.
    """
    with scratch_beside(folder / "save", folder.resolve().name) as scratch:
        record = write(scratch, max_shard_size)
        earlier = is_export(folder)
        for name in sorted(record.files, key=SUMS.__eq__):  # the list of them last: what is mixed does not fit it
            if name != "README.md" or earlier or not (folder / name).exists():  # a card that somebody wrote stays
                (record.path / name).replace(folder / name)
        for old in folder.iterdir():  # a shard that is left over would be loaded, too
            if _WEIGHTS.fullmatch(old.name) and old.name not in record.files:
                old.unlink()
        if earlier:
            shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)  # it belonged to the weights that went
