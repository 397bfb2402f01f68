"""``fit`` on what ``fit`` exported: irregular, or padded for other engines. What is counted is what is really there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.cli import main
from adapruner.export.loading import load
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.plan import read_plan
from tests.spoilt import make_workspace

IDS = torch.arange(4, 40)[None]
FRACTION = 0.3
NEXT = ("--trainer.default_root_dir=second", "--trainer.logger.init_args.save_dir=second")


def command(name: str, *options: str) -> None:
    main([name, "--config", "base.yaml", *options])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an irregular export, and the same model padded."""
    folder = tmp_path_factory.mktemp("first")
    make_workspace(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command("fit")
        main(["export", "run", "padded", "--pad", "--no-verify"])
    shutil.copytree(folder / "run" / "model", folder / "plain")
    return folder


@pytest.mark.parametrize("source", ["plain", "padded"])
def test_an_export_is_pruned_again_and_exported_from_its_run(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = load("plain")
    structure, parameters = trace_structure(before), count_parameters(before)
    assert len({group.units for group in structure.groups if group.kind == "ffn"}) > 1
    assert count_parameters(load("padded")) > parameters
    assert type(load("padded")).__name__ == "LlamaForCausalLM"
    capsys.readouterr()
    command("fit", f"--model.name_or_path={source}", *NEXT)
    assert ("zeros that the export was padded with" in capsys.readouterr().out) == (source == "padded")
    plan, model = read_plan("second/plan.json"), load("second/model")
    assert plan.parameters["dense"] == parameters
    left = trace_structure(model).block_parameters
    unit = max(group.parameters_per_unit for group in structure.groups if group.kind == "ffn")
    assert abs(left - (1 - FRACTION) * structure.block_parameters) <= max(0.002 * structure.block_parameters, unit)
    assert count_parameters(model) == plan.parameters["pruned"]
    cost = json.loads(Path("second/report.json").read_text())["cost"]
    assert (cost["dense"]["parameters"], cost["pruned"]["parameters"]) == (parameters, plan.parameters["pruned"])
    shutil.move("second/model", "third")  # else the run's export would be taken
    main(["export", "second", "out"])
    torch.testing.assert_close(logits(load("out")), logits(load("third")), rtol=0, atol=1e-5)
    checkpoint = next(Path("second").rglob("*.ckpt"))
    command("fit", f"--model.name_or_path={source}", *NEXT, "--trainer.max_steps=2", f"--ckpt_path={checkpoint}", "--export=null")
    command("test", f"--model.name_or_path={source}", f"--ckpt_path={checkpoint}")
    assert f"(plan {plan.hash})" in capsys.readouterr().out
