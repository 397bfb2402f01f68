from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adapruner.errors import ModelError
from adapruner.export import verification
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.export.verification import Verification, verify_export
from tests.complaints import complaint

from .cases import UNEVEN

EVEN = ([1, 1, 1], [10, 10, 10])

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("model_type", "attention", "ffn", "changes", "class_name"),
    [
        ("llama", [3, 3, 3], [10, 10, 10], {"kv_heads": 4}, "MistralForCausalLM"),
        ("qwen2", *UNEVEN, {}, "PrunedQwen2ForCausalLM"),
    ],
)
def test_a_new_process_computes_the_same(pruned, tmp_path, model_type, attention, ffn, changes, class_name):
    case = pruned(model_type, attention, ffn, **changes)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert record.class_name == class_name
    case.model.train()
    found = verify_export(record.path, case.model, case.input_ids)
    assert found.difference < 1e-5
    assert (found.dtype, found.own) == ("float32", None)
    assert found.served == pytest.approx(found.nll, abs=1e-6)
    found.check("the folder")
    assert case.model.training  # left as it was


def nats_per_token(model, ids):
    """The oracle: the library's own loss."""
    with torch.no_grad():
        return float(torch.stack([model(input_ids=row[None], labels=row[None], use_cache=False).loss for row in ids]).double().mean())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [EVEN, UNEVEN], ids=["stock", "irregular"])
def test_a_lower_precision_is_compared_bit_by_bit_in_that_precision(pruned, tmp_path, dtype, shape):
    case = pruned("llama", *shape)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype=dtype)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    found = verify_export(record.path, case.model, case.input_ids)
    found.check("the folder")
    assert (found.dtype, found.difference) == (dtype, 0.0)
    assert found.served == found.nll
    assert found.served == pytest.approx(nats_per_token(load(record.path).float(), case.input_ids), rel=2e-2)
    assert found.own is not None
    assert found.own == ("float32", pytest.approx(nats_per_token(case.model, case.input_ids), abs=1e-5))
    assert found.own[1] != found.nll
    assert all(torch.equal(tensor, before[name]) and tensor.dtype == torch.float32 for name, tensor in case.model.state_dict().items())


def test_a_model_that_is_in_a_lower_precision_already(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    model = load(export_model(case.model, None, case.structure, case.plan, tmp_path / "one").path, dtype="bfloat16")
    record = export_model(model, None, None, case.plan, tmp_path / "out")
    found = verify_export(record.path, model, case.input_ids)
    assert (found.dtype, found.difference, found.own) == ("bfloat16", 0.0, None)
    assert found.served == found.nll


def test_padded_widths_are_other_kernels(pruned, tmp_path):
    """Rounding may differ there, by an amount that the spread over tokens tells."""
    case = pruned("llama", *UNEVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype="bfloat16", pad=True)
    assert not verification._same_kernels(record.path, case.model)
    assert verification._same_kernels(record.path, load(record.path))
    verify_export(record.path, case.model, case.input_ids).check("here")


@pytest.mark.parametrize("same", [True, False])
def test_other_kernels_may_differ_by_four_standard_errors(export, monkeypatch, same):
    case, folder = export
    apart = torch.tensor([0.01, -0.005] * 9).double()  # 0.0025 on average, of which 0.0018 is a standard error
    logits, losses = verification._answer(case.model, case.input_ids)
    monkeypatch.setattr(verification, "_fresh_answer", lambda *_: (logits, losses + apart, torch.float32))
    monkeypatch.setattr(verification, "_same_kernels", lambda *_: same)
    found = verify_export(folder, case.model, case.input_ids)
    assert found.noise == pytest.approx(0.0 if same else 4 * float(apart.std()) / 18**0.5)
    assert (complaint(found.check, "here") is None) is not same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_that_is_written_wrong_is_refused(pruned, tmp_path, dtype):
    """The check fails where it has to: one tensor of the file is not the model's."""
    from safetensors.torch import load_file, save_file

    case = pruned("llama", *EVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype=dtype)
    file = record.path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(weights, file, {"format": "pt"})
    found = verify_export(record.path, case.model, case.input_ids)
    with pytest.raises(
        ModelError, match=r"^export: expected the (logits of the model|model's perplexity of)\b.*got .* in here; report this"
    ):
        found.check("here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("float32", 2e-3, 1.0, 1.0), "expected the logits of the model, got a largest difference of 2.0e-03 in here"),
        (("float32", float("inf"), 1.0, 1.0), "expected the logits of the model, got a largest difference of inf in here"),
        (("bfloat16", 0.1, 1.0, 1.0005), None),
        (("bfloat16", 0.1, 1.0, 1.0011), "expected the model's perplexity of 2.71828, got 2.72127 in here"),
        (("bfloat16", 0.1, 1.0, 0.9989), "expected the model's perplexity of 2.71828, got 2.71529 in here"),
        (("bfloat16", 0.1, 1.0, float("nan")), "expected the model's perplexity of 2.71828, got nan in here"),
        (("bfloat16", 0.1, 1.0, 1.0031, 0.003), None),
        (("bfloat16", 0.1, 1.0, 1.0041, 0.003), "expected the model's perplexity of 2.71828, got 2.72945 in here"),
        (("float32", 2e-3, 1.0, 1.0, 0.0, 5.0), None),
    ],
)
def test_what_rounding_does_not_explain(values, message):
    if message is None:
        assert complaint(Verification(*values).check, "here") is None
    else:
        with pytest.raises(ModelError, match=f"^export: {message}; report this, or leave the check out"):
            Verification(*values).check("here")


def test_it_is_said_in_words():
    found = Verification("bfloat16", 0.0, 3.0, 3.0, own=("float32", 2.999))
    assert found.in_words() == (
        "loads in a fresh process in bfloat16; the same logits, the same perplexity; rounding from float32 changes perplexity by +0.1 %"
    )


@pytest.fixture
def export(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    return case, tmp_path / "out"


def test_a_difference_is_reported(export, monkeypatch):
    case, folder = export
    answer = case.logits()[:1]
    monkeypatch.setattr(verification, "_fresh_answer", lambda *_: (answer, torch.full((18,), 3.0).double(), torch.float32))
    answer[0, 2, 3] += 0.5
    assert verify_export(folder, case.model, case.input_ids).difference == pytest.approx(0.5, abs=1e-5)
    answer[0, 0, 0] = float("nan")
    assert verify_export(folder, case.model, case.input_ids).difference == float("inf")
    answer = answer[:, :, :-1]
    with pytest.raises(ModelError, match=r"expected logits \(1, 10, 96\), got \(1, 10, 95\)"):
        verify_export(folder, case.model, case.input_ids)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('size mismatch for lm_head')", "got: ValueError: size mismatch for lm_head; export again"),
        ("import os; os._exit(3)", "got: exit status 3"),
        ("import time; time.sleep(60)", r"load within 0\.5 s, got no answer; raise timeout"),
    ],
)
def test_a_process_that_fails(export, monkeypatch, script, message):
    case, folder = export
    monkeypatch.setattr(verification, "_SCRIPT", script)
    with pytest.raises(ModelError, match=message):
        verify_export(folder, case.model, case.input_ids, timeout=0.5 if "sleep" in script else 60)


def test_wrong_arguments(export, tmp_path):
    case, folder = export
    with pytest.raises(ModelError, match=r"expected \[n, t\] token ids, got shape \(10,\); give two tokens or more"):
        verify_export(folder, case.model, torch.arange(10))
    with pytest.raises(ModelError, match=r"expected \[n, t\] token ids, got shape \(10, 1\)"):
        verify_export(folder, case.model, torch.arange(10)[:, None])
    with pytest.raises(ModelError, match=r"without a readable config\.json"):
        verify_export(tmp_path / "nowhere", case.model, case.input_ids)


def test_who_is_killed_meanwhile_leaves_no_folder_and_no_process(export, tmp_path):
    """SIGKILL: nobody can tidy up but the process that loads the folder."""
    _, folder = export
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import sys; from pathlib import Path; import torch; from adapruner.export import verification\n"
        'verification._SCRIPT = \'import os, time; print(os.getpid(), file=open(os.environ["SAID"], "w")); time.sleep(60)\'\n'
        "from types import SimpleNamespace\n"
        "verification._fresh_answer(Path(sys.argv[1]), SimpleNamespace(config=None), torch.ones(1, 2).long(), 60.0)"
    )
    said = tmp_path / "said"
    environment = {**os.environ, "TMPDIR": str(temporary), "SAID": str(said)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, start_new_session=True, cwd=ROOT)
    try:
        assert _within(60, lambda: said.exists() and said.read_text().endswith("\n"))
        child = int(said.read_text())
        assert list(temporary.iterdir())
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert _within(10, lambda: not Path(f"/proc/{child}").exists())
    assert list(temporary.iterdir()) == []


def _within(seconds, condition):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()
