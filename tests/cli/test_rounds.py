"""``fit --pruning.rounds 2``: search, recovery, report and export of one plan for the dense model, and on from a kill in recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.cli import main
from adapruner.export.loading import load
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.plan import read_plan
from adapruner.search import find_plan as find_module
from tests.cli.command_line import interrupted_at_step
from tests.spoilt import make_workspace

ROUNDS = ("--pruning.rounds=2", "--trainer.max_steps=3", "--checkpoint.every_n_steps=1", "--pruning.search.n_trials=3")


def fit(folder: str) -> Any:
    run = (f"--trainer.default_root_dir={folder}", f"--trainer.logger.init_args.save_dir={folder}", f"--export.folder={folder}/model")
    main(["fit", "--config", "base.yaml", *ROUNDS, *run])
    return load(f"{folder}/model")


@pytest.mark.slow  # three runs
def test_from_the_command_line_and_on_from_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    left, dense = fit("whole"), load_dense()
    structure, plan = trace_structure(dense), read_plan("whole/plan.json")
    assert plan.model["fingerprint"] == fingerprint_model(dense)
    assert plan.parameters["pruned"] == count_parameters(left)
    assert (structure.parameters - count_parameters(left)) / structure.block_parameters == pytest.approx(0.3, abs=0.01)  # coarse units
    report = json.loads(Path("whole/report.json").read_text())
    assert {"dense", "reconstructed", "recovered"} <= {row["stage"] for row in report["perplexity"]}
    assert report["search"]["trials"] == 3
    with interrupted_at_step(2, monkeypatch), pytest.raises(SystemExit, match=r"^130$"):
        fit("killed")
    resumed: list[int] = []
    search = find_module.run_search

    def counted(*arguments: Any, **options: Any) -> Any:
        outcome = search(*arguments, **options)
        resumed.append(outcome.resumed)
        return outcome

    monkeypatch.setattr(find_module, "run_search", counted)
    again = fit("killed").state_dict()
    assert resumed == [3, 3]
    for name, value in left.state_dict().items():
        assert torch.equal(again[name], value), name


def load_dense() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
