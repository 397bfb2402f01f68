"""Proves an export: a new process loads it with transformers alone, as it will be served, and must compute the same."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapruner.errors import ModelError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter, has_adapters, without_adapters
from adapruner.export.loading import load, read_header, weight_files
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
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

folder, remote, attention, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
ids = torch.tensor(json.load(sys.stdin))
options = {"dtype": "auto", "attn_implementation": attention or None, "local_files_only": True}
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote == "True", **options).eval()
first, losses = None, []
with torch.no_grad():
    for row in ids:
        logits = model(input_ids=row[None], use_cache=False).logits.float()
        first = logits if first is None else first
        losses.append(cross_entropy(logits[0, :-1], row[1:], reduction="none").double())
if "adapruner" in sys.modules:
    sys.exit("the export needs adapruner to load")
save_file({"logits": first.contiguous(), "losses": torch.cat(losses)}, "answer.safetensors")
"""

_SLOWEST = 1e10
"""Operations a second that any machine has which holds the model."""
MOST_LOGITS = 1e-3
"""Largest difference of logits that rounding explains where all weights are float32, for logits of 1; of larger ones in proportion."""
MOST_PERPLEXITY = 1e-3
"""Largest relative difference of perplexity before and after writing, beside the noise of other kernels."""
_STANDARD_ERRORS = 4.0
"""Of the mean difference between the losses of single tokens: what kernels of a GPU, or of padded widths, round otherwise in 16 bits."""


@dataclass(frozen=True)
class Verification:
    """How an export that a fresh process has loaded compares with the model that it was made of."""

    dtype: str
    """Of the export's weights, which both were run in."""
    difference: float
    """The largest between their logits; ``inf`` if either has a NaN."""
    nll: float
    """Of the model before it was written, nats per token."""
    served: float
    """Of the export, nats per token."""
    noise: float = 0.0
    """Nats per token by which rounding in other kernels may set them apart: four standard errors of the mean over tokens. 0 where kernels
    are the same."""
    largest: float = 1.0
    """The largest logit."""
    own: tuple[str, float] | None = None
    """Dtype and nats per token of the model as it is in memory, where that is another dtype."""

    def check(self, place: str) -> None:
        """Whether rounding explains the differences.

        Args:
            place: the folder, for the message.

        Raises:
            ModelError: if it does not.
        """
        said = "report this, or leave the check out (verify: false, --no-verify)"
        if not self.difference < float("inf") or (self.dtype == "float32" and self.difference > MOST_LOGITS * max(1.0, self.largest)):
            raise ModelError(
                f"export: expected the logits of the model, got a largest difference of {self.difference:.1e} in {place}; {said}"
            )
        if not abs(self.served - self.nll) <= math.log1p(MOST_PERPLEXITY) + self.noise:
            got = f"{_perplexity(self.served):.6g} in {place}"
            raise ModelError(f"export: expected the model's perplexity of {_perplexity(self.nll):.6g}, got {got}; {said}")

    def to_report(self) -> dict[str, Any]:
        """For the report's section on the export."""
        own = None if self.own is None else _perplexity(self.own[1])
        before, served = _perplexity(self.nll), _perplexity(self.served)
        return {
            "max_abs_logit_difference": self.difference,
            "dtype": self.dtype,
            "perplexity_before": before,
            "perplexity_served": served,
            "perplexity_own": own,
        }

    def in_words(self) -> str:
        """For the terminal."""
        rounding = ""
        if self.own is not None:
            rounding = f"; rounding from {self.own[0]} changes perplexity by {_change(self.nll - self.own[1])}"
        logits = "the same logits" if self.difference == 0 else f"largest logit difference {self.difference:.1e}"
        perplexity = "the same perplexity" if self.served == self.nll else f"perplexity changed by {_change(self.served - self.nll)}"
        return f"loads in a fresh process in {self.dtype}; {logits}, {perplexity}{rounding}"


def _change(nll: float) -> str:
    """Of perplexity, in per cent; what rounds to zero has no sign."""
    return "less than 0.001 %" if abs(change := 100 * math.expm1(nll)) < 0.001 else f"{change:+.2g} %"


def verify_export(folder: str | Path, model: Any, input_ids: Tensor, *, timeout: float | None = None) -> Verification:
    """Compares the model, in the precision of the export, with what a new process computes that loads the export in it.

    The new process uses plain ``AutoModelForCausalLM.from_pretrained`` on the CPU (``trust_remote_code`` only where the
    export brings a modelling file) and must not import adapruner. Where the model is on the CPU, too, and its layers have the form that the
    export has them in, kernels are the same, and so is every bit. Where adapters lie beside the weights, the folder is also loaded with
    them, here.

    Args:
        folder: the export.
        model: what was exported, with its adapters where these were kept apart; its weights are rounded meanwhile where the export's are,
            which takes the memory of the rounded ones.
        input_ids: ``[n, t]`` token ids: perplexity is that of all, logits are compared of the first row.
        timeout: seconds the new process may take; ten minutes, and more for large models, when empty.

    Raises:
        ModelError: if the folder is no export, the shapes differ, or the new process fails or takes too long.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < 2:
        raise ModelError(f"input_ids: expected [n, t] token ids, got shape {tuple(input_ids.shape)}; give two tokens or more")
    folder, plain = Path(folder), without_adapters(model)
    own = next(plain.parameters()).dtype
    if timeout is None:
        timeout = 600.0 + 2 * sum(p.numel() for p in plain.parameters()) * input_ids.numel() / _SLOWEST
    theirs, served, dtype = _fresh_answer(folder, plain, input_ids, timeout)
    with _rounded(plain, dtype):
        ours, losses = _answer(plain, input_ids)
    if ours.shape != theirs.shape:
        raise ModelError(
            f"export: expected logits {tuple(ours.shape)}, got {tuple(theirs.shape)} from {folder}; give the model it was made of"
        )
    difference = _largest_difference(ours, theirs)
    if has_adapters(model):
        adapted = attach_adapter(load(folder), folder / ADAPTER_FOLDER)
        with _rounded(model, dtype):
            difference = max(difference, _largest_difference(_answer(model, input_ids[:1])[0], _answer(adapted, input_ids[:1])[0]))
    apart = served - losses
    noise = 0.0 if _same_kernels(folder, plain) or len(apart) < 2 else _STANDARD_ERRORS * float(apart.std()) / len(apart) ** 0.5
    return Verification(
        _name(dtype),
        difference,
        float(losses.mean()),
        float(served.mean()),
        noise,
        float(ours.abs().max()),
        None if own == dtype else (_name(own), float(_answer(plain, input_ids)[1].mean())),
    )


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, 700.0))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    difference = float((ours - theirs).abs().max())
    return difference if difference == difference else float("inf")


def _same_kernels(folder: Path, model: Any) -> bool:
    """Whether both run on the CPU, and the file has its tensors by the model's names and in its shapes: not those of padded widths, or of
    layers that are put together otherwise."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    written = {name: shape for file in weight_files(folder) for name, (shape, _) in read_header(file).items()}
    return model.device.type == "cpu" and written.items() <= own.items()


@contextmanager
def _rounded(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the model's weights, adapters left out, are in another precision."""
    whole = {p: p.data for name, p in model.named_parameters() if p.is_floating_point() and ".lora_" not in name}
    try:
        for parameter, data in whole.items():
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in whole.items():
            parameter.data = data


def _answer(model: Any, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[1, t, v]`` of the first row, float32, and nats of every predicted token ``[n * (t - 1)]``; as the fresh process does it."""
    first, losses, before = None, list[Tensor](), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 is not what the other side computes in
    try:
        with evaluation_mode(model):
            for row in input_ids.to(model.device):
                logits = model(input_ids=row[None], use_cache=False).logits.float()
                first = logits.cpu() if first is None else first
                losses.append(cross_entropy(logits[0, :-1], row[1:], reduction="none").double().cpu())
    finally:
        torch.set_float32_matmul_precision(before)
    assert first is not None
    return first, torch.cat(losses)


def _fresh_answer(folder: Path, model: Any, input_ids: Tensor, timeout: float) -> tuple[Tensor, Tensor, torch.dtype]:
    """As :func:`_answer`, of the export, and the dtype of its weights."""
    from safetensors.torch import load_file

    try:
        remote = "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"folder: expected an export, got {folder} without a readable config.json ({error}); check the path") from None
    ids, (reading, writing) = json.dumps(input_ids.tolist()), os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"), tempfile.TemporaryDirectory() as scratch:
        same = str(getattr(model.config, "_attn_implementation", None) or ""), str(torch.get_num_threads())
        command = [sys.executable, "-c", _WATCH + _SCRIPT, str(folder.resolve()), str(remote), *same, str(reading)]
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
        found = load_file(f"{scratch}/answer.safetensors")
    return found["logits"], found["losses"], _dtype_of(folder)


def _dtype_of(folder: Path) -> torch.dtype:
    """Of the export's weights."""
    from safetensors import safe_open

    with safe_open(weight_files(folder)[0], framework="pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype
