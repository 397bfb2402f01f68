"""Loads an export without running code from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapruner.errors import ModelError
from adapruner.export.expert_widths import has_uneven_experts
from adapruner.export.folder import MARK, PLAN_FILE, is_export
from adapruner.pruning.plan import read_plan


def load(folder: str | Path, dtype: str = "auto", device_map: Any = None) -> Any:
    """The model of an export, in eval mode.

    Layers of different widths are built by the class installed with adapruner, never by the file in the folder, and
    weights come from safetensors only.

    Args:
        folder: what :func:`adapruner.export.folder.export_model` wrote.
        dtype: ``auto`` (as saved) or a torch type's name.
        device_map: as in ``from_pretrained``.

    Raises:
        ModelError: if the folder is missing, is no export, or is damaged.
        PlanError: if ``plan.json`` is missing or was changed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"folder: expected an export, got no folder at {folder}; check the path")
    if not is_export(folder):
        raise ModelError(f"folder: expected an export by adapruner, got {folder} without its mark in config.json; use from_pretrained")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plan = read_plan(folder / PLAN_FILE)
    if config[MARK].get("plan_hash") != plan.hash:
        raise ModelError(f"folder: expected the plan {config[MARK].get('plan_hash')}, got {plan.hash} in {folder}; export again")
    _check_weights(folder)
    return _from_pretrained(folder, _class(config), dtype, device_map)


def _check_weights(folder: Path) -> None:
    """Opens every safetensors file; a file that is cut short or overwritten fails its own header."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"weights: expected an index of shards, got damage in {index.name} ({error}); export again") from None
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"weights: expected whole safetensors, got damage in {folder / name} ({error}); export or download again"
            ) from None


def _class(config: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    from adapruner.models.families import modeling_adapruner

    if "pruned_shapes" not in config:
        return AutoModelForCausalLM
    name = (config.get("architectures") or [""])[0]
    try:
        return getattr(modeling_adapruner, name)
    except AttributeError:
        raise ModelError(f"folder: expected a class this release knows, got {name!r}; install a newer adapruner or transformers") from None


def _from_pretrained(folder: Path, model_class: Any, dtype: str, device_map: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        options = {"dtype": dtype, "device_map": device_map, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        if has_uneven_experts(config):
            options["experts_implementation"] = "eager"
        if "auto_map" in config.to_dict():
            del config.auto_map  # or an Auto class would ask to run the folder's code
        model, info = model_class.from_pretrained(folder, config=config, ignore_mismatched_sizes=True, **options)
    except (ValueError, OSError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"folder: expected a model that loads, got {error} in {folder}; export again") from None
    # from_pretrained only warns of a tensor that is missing, and leaves it random.
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("mismatched_keys", "missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise ModelError(f"weights: expected the shapes of config.json, got {len(keys)} {kind}, first {keys[0]}; export again")
    return model.eval()
