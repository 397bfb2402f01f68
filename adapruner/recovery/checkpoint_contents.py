"""What a training checkpoint says of pruning: the plan and the form of the adapters, so that its weights fit a dense model again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from adapruner.errors import ConfigurationError, ModelError
from adapruner.files.digests import DamagedError, check_sums, check_zip
from adapruner.models.units import ModelStructure
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.checkpoint_file import SHARDED, check_index, check_is_local
from adapruner.recovery.lora import LoRAConfig, attach_lora, describe_lora

PLAN_KEY = "adapruner_plan"
LORA_KEY = "adapruner_lora"
#: In a tensor's name, the layer's number; layers that stay are numbered from 0 on.
_LAYER = re.compile(r"\.(\d+)\.")


def describe_pruning(model: Any, plan: PruningPlan | None) -> dict[str, Any]:
    """The entries that a checkpoint of the model gets, as JSON types: its plan, and its adapters where it has some."""
    entries: dict[str, Any] = {} if plan is None else {PLAN_KEY: plan.to_dict()}
    if hasattr(model, "peft_config"):
        entries[LORA_KEY] = describe_lora(model)
    return entries


def fit_to_checkpoint(
    model: Any,
    checkpoint: Mapping[str, Any],
    plan: PruningPlan | None,
    on_pruned: Callable[[Any, ModelStructure, PruningPlan], None] | None = None,
) -> tuple[Any, PruningPlan | None]:
    """Prunes a dense model by the checkpoint's plan and attaches its adapters, so that the weights of the checkpoint fit.

    Args:
        model: dense, or pruned by ``plan``; changed in place.
        plan: what the model was pruned by; ``None``: it is dense.
        on_pruned: called with the model, the dense model's structure and the plan, where it was pruned here.

    Returns:
        The model, wrapped by peft where the checkpoint has adapters, and the plan that it is pruned by now.

    Raises:
        ModelError: if the model was pruned by another plan already.
        PlanError: if the checkpoint's plan is damaged or for another model.
    """
    record = checkpoint.get(PLAN_KEY)
    if record is not None:
        wanted = read_plan(record)
        if plan is not None and plan.hash != wanted.hash:
            raise ModelError(
                f"ckpt_path: expected a checkpoint of the plan {plan.hash}, got one of {wanted.hash}; give one of the two, not both"
            )
        if plan is None:
            structure = trace_for_plan(model, wanted)
            prune_model(model, structure, wanted)
            plan = wanted
            if on_pruned is not None:
                on_pruned(model, structure, plan)
    if checkpoint.get(LORA_KEY) is not None and not hasattr(model, "peft_config"):
        model = attach_lora(model, LoRAConfig(**checkpoint[LORA_KEY])).train()
    return model, plan


def read_contents(path: Path, *, ours: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, after a check that it is whole; tensors stay on disk until they are used, and no code in it runs.

    Args:
        path: a file, or the folder of a sharded one, of which everything but tensors is read.
        ours: whether one without our digest is refused.

    Raises:
        DamagedError: if it is not what was written, or holds more than tensors and plain values.
        FileNotFoundError: if it is not there.
    """
    if path.is_dir():
        check_sums(path, ours=ours)
        check_index(path)
        file = path / SHARDED
    else:
        file = path
        check_zip(file, ours=ours)
    try:
        record = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise DamagedError((str(error).strip().splitlines() or [type(error).__name__])[0][:120]) from None
    if not isinstance(record, dict):
        raise DamagedError(f"a {type(record).__name__}")
    return record


def with_best_weights(record: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], int | None]:
    """A Lightning checkpoint with the weights that its recovery ends with, where it was judged on held-out text.

    Such a checkpoint has the last step's weights, from which training goes on, and beside them those of the best look: the result.

    Args:
        record: what :func:`read_contents` gave; left as it is.
        prefix: of the model's tensors in ``state_dict``, such as ``model.``.

    Returns:
        The record, and the step that its weights are of; ``None`` where nobody judged.
    """
    states = (state for state in record.get("callbacks", {}).values() if isinstance(state, Mapping))
    looks = next((found for state in states if (found := (state.get("ending") or {}).get("looks"))), None)
    if not looks or not looks.get("best"):
        return dict(record), None
    weights = dict(record["state_dict"])
    weights.update({f"{prefix}{name}": value for name, value in looks["best"].items() if f"{prefix}{name}" in weights})
    step, _ = min(looks["looks"], key=lambda look: math.inf if math.isnan(look[1]) else look[1])
    return {**record, "state_dict": weights}, int(step)


def check_checkpoint(path: str | None) -> None:
    """Training resumes after the search: a checkpoint that is not there would be missed hours later.

    Raises:
        ConfigurationError: if there is no such file, or it is no checkpoint.
    """
    check_is_local(path)
    if path is None:
        return
    file = Path(path)
    try:
        read_contents(file)
    except DamagedError as error:
        raise ConfigurationError(
            f"ckpt_path: expected a whole Lightning checkpoint of tensors and plain values, got damage in {path!r} ({error}); take another"
        ) from None


def check_contents(checkpoint: str | None, model: Any, attribute: str) -> None:
    """Whether a checkpoint of one file has all that training goes on from: tensors, adapters, optimizer, and nothing but numbers.

    Args:
        model: the dense model; its tensors' names are those of the pruned one.
        attribute: the module's attribute that holds it.

    Raises:
        ModelError: naming what is missing or not finite, before the search instead of after it.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return
    record = read_contents(Path(checkpoint))
    plan = read_plan(record[PLAN_KEY]) if PLAN_KEY in record else None
    left = None if plan is None or not plan.removed_layers else len(plan.kept_layers())
    names = {name for name in model.state_dict() if left is None or not (found := _LAYER.search(name)) or int(found[1]) < left}
    for wrong in _wrong_contents(record, names, f"{attribute}."):
        raise ModelError(f"ckpt_path: expected {wrong} in {checkpoint}; take another checkpoint")


def _wrong_contents(record: Mapping[str, Any], names: set[str], prefix: str) -> Iterator[str]:
    """Expected and got, of everything that is wrong."""
    for key, kind in {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}.items():
        if not isinstance(record.get(key), kind):
            yield f"{key!r}, without which training cannot go on, got none"
            return
    weights = {str(name): value for name, value in record["state_dict"].items()}
    plain = {_plain(name.removeprefix(prefix)) for name in weights if name.startswith(prefix)}
    missing = sorted(names - plain)
    for layer in dict.fromkeys(name.rpartition(".base_layer.")[0] for name in weights if ".base_layer." in name):
        missing += [f"{layer}.{part}" for part in ("lora_A", "lora_B") if not any(n.startswith(f"{layer}.{part}.") for n in weights)]
    if missing:
        yield f"every tensor of the model, got none for {missing[0]}"
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            yield f"finite weights, got inf or nan in {name}"
    yield from _wrong_optimizer(record)


def _plain(name: str) -> str:
    """A tensor's name without what adapters add to it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _wrong_optimizer(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["optimizer_states"]:
        yield "the state of the optimizer, got none"
    for optimizer in record["optimizer_states"]:
        state, groups = optimizer.get("state", {}), optimizer.get("param_groups", [])
        wanted = {index for group in groups for index in group["params"]}
        keeps = any(group.get("betas") or group.get("momentum") for group in groups)
        if (state or (keeps and record.get("global_step"))) and wanted - set(state):
            yield f"the optimizer's state of {len(wanted)} tensors, got that of {len(wanted & set(state))}"
        values = (value for one in state.values() for value in one.values() if isinstance(value, torch.Tensor))
        if any(value.is_floating_point() and not bool(torch.isfinite(value).all()) for value in values):
            yield "a finite state of the optimizer, got inf or nan"


def plan_of_checkpoint(checkpoint: str | None) -> PruningPlan | None:
    """The plan in a checkpoint's file, or folder where it is sharded; ``None`` where there is none.

    It is known before the weights are loaded, since they only fit a model that was pruned by it.

    Raises:
        PlanError: if it is there and is not a plan of this release.
    """
    if checkpoint is None:
        return None
    try:
        record = read_contents(Path(checkpoint))
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise ModelError(f"ckpt_path: expected a whole checkpoint, got damage in {checkpoint} ({error}); take another") from None
    plan = record.get(PLAN_KEY) or next(
        (s["plan"] for s in record.get("callbacks", {}).values() if isinstance(s, dict) and "plan" in s), None
    )
    return None if plan is None else read_plan(plan)
