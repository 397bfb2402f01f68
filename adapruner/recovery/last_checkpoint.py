"""The last state of recovery in a run folder: under which settings it was written, and whether a run goes on from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import torch

from adapruner.files.atomic import replacing, writing
from adapruner.files.digests import DamagedError, seal_zip
from adapruner.progress import announce
from adapruner.recovery.checkpoint_contents import SHARDED, read_contents
from adapruner.recovery.configuration import WITHOUT_EFFECT

FILE = Path("checkpoints") / "last.ckpt"
#: The callback that writes it, as Lightning's checkpoints name it, and what it keeps in it.
CALLBACK, SETTINGS = "RecoveryCheckpointCallback", "settings"
#: Options of the Trainer that decide what recovery computes; where and on how much it runs may change.
_TRAINER = ("precision", "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")


def write_checkpoint(record: Any, file: Path, **words: Any) -> None:
    """Writes it whole, with its digest; the run folder itself is not made anew, were it gone.

    Raises:
        ConfigurationError: in the ``words`` of :func:`adapruner.files.atomic.replacing`, if there is no room, or no right to write.
    """
    with writing(file.parent, **words):
        file.parent.mkdir(exist_ok=True)
    if (file / SHARDED).is_file():
        kept = next(path for n in count(1) if not os.path.lexists(path := file.with_name(f"{file.stem}-sharded-{n}{file.suffix}")))
        announce(f"keeps {file}, of a sharded run, as {kept.name}")
        file.replace(kept)
    with replacing(file, _tensor_bytes(record), **words) as temporary:
        torch.save(record, temporary)
        seal_zip(temporary)


def _tensor_bytes(record: Any) -> int:
    if isinstance(record, torch.Tensor):
        return record.nbytes
    parts = record.values() if isinstance(record, Mapping) else record if isinstance(record, list | tuple) else ()
    return sum(map(_tensor_bytes, parts))


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Group of the command line's options -> hash, of everything that decides what recovery computes."""
    groups: dict[str, Any] = {name: config.get(name) for name in ("seed_everything", "model", "data", "pruning", "recovery")}
    groups["pruning"] = _deciding(groups["pruning"])
    if isinstance(groups["recovery"], Mapping):  # a longer time goes on where the shorter one ended
        groups["recovery"] = {**groups["recovery"], "time_budget": groups["recovery"].get("time_budget") is not None}
    trainer: Mapping[str, Any] = config.get("trainer") or {}
    groups["trainer"] = {name: trainer.get(name) for name in _TRAINER}
    return {name: sha256(json.dumps(value, sort_keys=True, default=_named).encode()).hexdigest()[:16] for name, value in groups.items()}


def _deciding(pruning: Any) -> Any:
    """The options of the pruning without those that change no result."""
    reconstruction = pruning.get("reconstruction") if isinstance(pruning, Mapping) else None
    if not isinstance(reconstruction, Mapping):
        return pruning
    return {**pruning, "reconstruction": {name: value for name, value in reconstruction.items() if name not in WITHOUT_EFFECT}}


def _named(value: Any) -> str:
    """A value as text that is the same in every process: a function, such as the default optimizer, also says where it is in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def find_checkpoint(folder: Path, settings: Mapping[str, str], shards: bool = False) -> Path | None:
    """The run's last checkpoint, if it was written under these settings; else ``None``, and a line that says why.

    Args:
        shards: whether the run can go on from one that is a folder.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return None
    if file.is_dir() and not shards:
        announce(f"recovery starts anew: {file} is of a sharded run; the same trainer.strategy goes on from it")
        return None
    try:
        known = _settings_in(read_contents(file, ours=True))
    except (DamagedError, OSError) as error:
        announce(f"recovery starts anew: {file} is damaged ({error})")
        return None
    if known is None:
        announce(f"recovery starts anew: {file} does not say what settings it was written under (--ckpt_path {file} goes on all the same)")
        return None
    different = sorted(name for name in {*known, *settings} if known.get(name) != settings.get(name))
    if different:
        announce(f"recovery starts anew: {file} was written under other settings ({', '.join(different)})")
        return None
    return file


def _settings_in(record: Mapping[str, Any]) -> dict[str, str] | None:
    try:
        found = record["callbacks"][CALLBACK][SETTINGS]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and found else None


def random_state() -> dict[str, Any]:
    """Of the CPU and, where they are used, of all CUDA devices."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def set_random_state(state: dict[str, Any]) -> None:
    """Goes on where :func:`random_state` was; on another number of CUDA devices only on the CPU."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
