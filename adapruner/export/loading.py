"""Loads an export without running code from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapruner.argument_checks import typed
from adapruner.errors import ModelError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter
from adapruner.export.auto_map import auto_map_of
from adapruner.export.folder import PLAN_FILE
from adapruner.export.saving import save_as_export
from adapruner.export.staging import is_export
from adapruner.export.target import has_uneven_experts
from adapruner.files.digests import SUMS, DamagedError, check_sums
from adapruner.models.loading import load_language_model, model_source
from adapruner.pruning.plan import MARK, PruningPlan, read_plan
from adapruner.recovery.merging import merge_lora


@dataclass(frozen=True)
class ExportedModel:
    """The model of an export, adapters that lay beside it merged, and the plan that it was pruned by."""

    model: Any
    plan: PruningPlan | None
    """``None`` where another program has written the folder, from a model that it had loaded from an export."""


@typed
def load(folder: str | Path, dtype: str = "auto", device_map: Any = None) -> Any:
    """The model of an export, in eval mode; its ``save_pretrained`` writes an export again.

    Layers of different widths are built by the class installed with adapruner, never by the file in the folder, and
    weights come from safetensors only.

    Args:
        folder: what :func:`adapruner.export.folder.export_model` wrote, or ``save_pretrained`` of a model that was loaded from there and
            trained elsewhere, which knows of no ``plan.json``.
        dtype: ``auto`` (as saved) or a torch type's name.
        device_map: as in ``from_pretrained``.

    Raises:
        ModelError: if the folder is missing, is no export, or is damaged.
        PlanError: if ``plan.json`` was changed, or taken out of an export.

    >>> load("nowhere")
    Traceback (most recent call last):
    adapruner.errors.ModelError: folder: expected an export, got no folder at nowhere; check the path
    """
    folder = Path(folder)
    if not folder.is_dir():
        killed = next(iter(sorted(folder.absolute().parent.glob(f".adapruner-*-{folder.name}.new"))), None)
        hint = "check the path" if killed is None else f"its export was ended: what there was is in {killed}, export again"
        raise ModelError(f"folder: expected an export, got no folder at {folder}; {hint}")
    if not is_export(folder):
        raise ModelError(f"folder: expected an export by adapruner, got {folder} without its mark in config.json; use from_pretrained")
    config = read_config(folder)
    if "block_configs" in config:
        raise ModelError(
            f"folder: expected an export that transformers loads, got one in DeciLM's form, {folder}; give the one that it was made from"
        )
    plan = _plan_of(folder)
    marked = config.get(MARK, {}).get("plan_hash")
    if plan is not None and marked != plan.hash:
        raise ModelError(f"folder: expected the plan {marked}, got {plan.hash} in {folder}; export again")
    for file in weight_files(folder):
        read_header(file)
    check_whole(folder)
    model = _from_pretrained(folder, _class(config), dtype, device_map)
    if plan is not None:
        save_as_export(model, None, plan)
    return model


def _plan_of(folder: Path) -> PruningPlan | None:
    """What the model was pruned by; ``None`` in a folder that says neither this nor its files' digests: both are written together."""
    if not (folder / PLAN_FILE).exists() and not (folder / SUMS).exists():
        return None
    return read_plan(folder / PLAN_FILE)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an export.

    Raises:
        ModelError: if it is damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get(MARK, {}), dict):
            return config
        reason = "no JSON object with our mark"
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    raise ModelError(f"folder: expected the configuration of an export, got damage in {folder / 'config.json'} ({reason}); export again")


def check_whole(folder: Path) -> list[str]:
    """Whether every file of an export is, to the last bit, what was written (``SHA256SUMS``): 1.2 GB a second.

    Returns:
        Names of files that were rewritten and may be.

    Raises:
        ModelError: naming the first that is not.
    """
    try:
        return check_sums(folder)
    except DamagedError as error:
        raise ModelError(
            f"folder: expected the export as it was written, got damage in {folder}: {error}; export again, or take the file's line out of "
            f"{SUMS} if you changed it"
        ) from None


def load_by_name(name_or_path: str, dtype: str = "auto") -> Any:
    """An export or any other dense causal LM, without a tokenizer.

    Args:
        name_or_path: as for :func:`adapruner.models.loading.load_language_model`.
        dtype: ``auto`` (as saved) or a torch type's name.

    Raises:
        ConfigurationError, ModelError, PlanError: as the two that it calls.

    >>> load_by_name("demo").config.model_type
    'llama'
    """
    exported = open_export(model_source(name_or_path), dtype)
    return load_language_model(name_or_path, dtype=dtype) if exported is None else exported.model


def open_export(
    source: str | Path, dtype: str = "auto", attn_implementation: str | None = None, *, merge: bool = True
) -> ExportedModel | None:
    """The model of a folder that adapruner exported, to measure or to go on with; ``None`` where it is no such folder.

    Args:
        source: a folder, or a hub name.
        dtype: ``auto`` (as saved) or a torch type's name.
        attn_implementation: as in ``from_pretrained``; the library's choice when empty.
        merge: whether adapters that lie beside the model are added to its weights.

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
    if merge and (folder / ADAPTER_FOLDER).is_dir():
        model = merge_lora(attach_adapter(model, folder / ADAPTER_FOLDER)).eval()
    return ExportedModel(model, _plan_of(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index where it has one.

    Raises:
        ModelError: if the index is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"weights: expected an index of shards, got damage in {index.name} ({error}); export again") from None


def read_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape and safetensors' name of its dtype; a file that is cut short or overwritten fails its own header.

    Raises:
        ModelError: if it is damaged or not there.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights: expected whole safetensors, got damage in {file} ({error}); export or download again") from None


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
        if "pruned_shapes" in config.to_dict():
            config.auto_map = auto_map_of(config)  # saved again, it names every class, also where an older release named one
        model, info = model_class.from_pretrained(folder, config=config, ignore_mismatched_sizes=True, **options)
    except (ValueError, OSError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"folder: expected a model that loads, got {error} in {folder}; export again") from None
    # from_pretrained only warns of a tensor that is missing, and leaves it random.
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("mismatched_keys", "missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise ModelError(f"weights: expected the shapes of config.json, got {len(keys)} {kind}, first {keys[0]}; export again")
    return model.eval()
