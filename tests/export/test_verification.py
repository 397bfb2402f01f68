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
from adapruner.export.verification import verify_export

from .cases import UNEVEN

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
    assert verify_export(record.path, case.model, case.input_ids) < 1e-5
    assert case.model.training  # left as it was


@pytest.fixture
def export(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    return case, tmp_path / "out"


def test_a_difference_is_reported(export, monkeypatch):
    case, folder = export
    answer = case.logits()
    monkeypatch.setattr(verification, "_fresh_logits", lambda *_: answer)
    answer[1, 2, 3] += 0.5
    assert verify_export(folder, case.model, case.input_ids) == pytest.approx(0.5, abs=1e-5)
    answer[0, 0, 0] = float("nan")
    assert verify_export(folder, case.model, case.input_ids) == float("inf")
    answer = answer[:, :, :-1]
    with pytest.raises(ModelError, match=r"expected logits \(2, 10, 96\), got \(2, 10, 95\)"):
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
    with pytest.raises(ModelError, match=r"expected \[b, t\] token ids, got shape \(10,\)"):
        verify_export(folder, case.model, torch.arange(10))
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
        "verification._fresh_logits(Path(sys.argv[1]), torch.ones(1, 2).long(), 60.0)"
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
