"""Proves an export: a new process loads it with transformers alone and must compute the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter, has_adapters, without_adapters
from adapruner.export.loading import load
from adapruner.models.forward import evaluation_mode

# A string, so that nothing of ours is imported on the way in. When the process that waits for the answer is killed, its end of the pipe
# closes, and this one takes the folder away and ends, too.
_WATCH = """
import os, shutil, sys, threading

def end_with_parent(pipe, scratch):
    os.read(pipe, 1)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)

threading.Thread(target=end_with_parent, args=(int(sys.argv.pop()), os.getcwd()), daemon=True).start()
"""
_SCRIPT = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

folder, remote = sys.argv[1:]
ids = torch.tensor(json.load(sys.stdin))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote == "True", local_files_only=True)
with torch.no_grad():
    logits = model.eval()(input_ids=ids, use_cache=False).logits
if "adapruner" in sys.modules:
    sys.exit("the export needs adapruner to load")
save_file({"logits": logits.float().contiguous()}, "logits.safetensors")
"""


def verify_export(folder: str | Path, model: Any, input_ids: Tensor, *, timeout: float = 600.0) -> float:
    """Largest absolute difference between the logits of the export, loaded in float32 by a new process, and the model's.

    The new process uses plain ``AutoModelForCausalLM.from_pretrained`` on the CPU (``trust_remote_code`` only where the
    export brings a modelling file) and must not import adapruner. A model that is not in float32 itself adds its rounding. Where adapters
    lie beside the weights, the folder is also loaded with them, here.

    Args:
        folder: the export.
        model: what was exported, with its adapters where these were kept apart.
        input_ids: ``[b, t]`` token ids.
        timeout: seconds the new process may take.

    Returns:
        The difference; ``inf`` if either side has a NaN.

    Raises:
        ModelError: if the folder is no export, the shapes differ, or the new process fails or takes too long.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ModelError(f"input_ids: expected [b, t] token ids, got shape {tuple(input_ids.shape)}; give at least one token")
    ours = _logits(without_adapters(model), input_ids)
    theirs = _fresh_logits(Path(folder), input_ids, timeout)
    if ours.shape != theirs.shape:
        raise ModelError(
            f"export: expected logits {tuple(ours.shape)}, got {tuple(theirs.shape)} from {folder}; give the model it was made of"
        )
    difference = _largest_difference(ours, theirs)
    if has_adapters(model):
        adapted = attach_adapter(load(folder, dtype="float32"), Path(folder) / ADAPTER_FOLDER)
        difference = max(difference, _largest_difference(_logits(model, input_ids), _logits(adapted, input_ids)))
    return difference


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    difference = float((ours - theirs).abs().max())
    return difference if difference == difference else float("inf")


def _logits(model: Any, input_ids: Tensor) -> Tensor:
    with evaluation_mode(model):
        logits: Tensor = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    return logits.float().cpu()


def _fresh_logits(folder: Path, input_ids: Tensor, timeout: float) -> Tensor:
    from safetensors.torch import load_file

    try:
        remote = "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"folder: expected an export, got {folder} without a readable config.json ({error}); check the path") from None
    ids, (reading, writing) = json.dumps(input_ids.tolist()), os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"), tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", _WATCH + _SCRIPT, str(folder.resolve()), str(remote), str(reading)]
        # The modelling file is cached by folder name: a scratch cache cannot serve an older one.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{scratch}/modules", "CUDA_VISIBLE_DEVICES": ""}
        # Not in the caller's directory, whence Python would import a checkout of ours; in a session of its own, so that who kills our
        # group leaves it to tidy up.
        options: dict[str, Any] = {"cwd": scratch, "env": environment, "pass_fds": (reading,), "start_new_session": True}
        try:
            done = subprocess.run(command, input=ids, capture_output=True, text=True, timeout=timeout, **options)
        except subprocess.TimeoutExpired:
            raise ModelError(f"export: expected {folder} to load within {timeout:g} s, got no answer; raise timeout") from None
        if done.returncode != 0:
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise ModelError(f"export: expected {folder} to load in a new process, got: {reason}; export again")
        return load_file(f"{scratch}/logits.safetensors")["logits"]
