"""What a configuration alone refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapruner.errors import BudgetError, ModelError
from adapruner.pruning.budget import Budget
from adapruner.pruning.recipe import Recipe
from adapruner.search.before_loading import check_budget_before_loading
from adapruner.search.options import pruning_options
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("of", ["block", "all", "macs", "memory"])
def test_a_budget_out_of_reach_is_refused_without_the_weights(of: str, without_weights: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget.pruned_fraction: expected at most 0\.\d{4} of .* for this model, got 0\.94"):
        check_budget_before_loading(str(without_weights), pruning_options(Budget(0.94, of=of)))


def test_what_it_says_can_be_reached(without_weights: Path) -> None:
    with pytest.raises(BudgetError, match=r"expected at most 0\.8750 of") as refused:
        check_budget_before_loading(str(without_weights), pruning_options(0.9))
    most = float(str(refused.value).split("expected at most ")[1].split()[0])
    check_budget_before_loading(str(without_weights), pruning_options(most))


@pytest.mark.parametrize(
    "options",
    [
        pruning_options(0.9, remove_layers=1),
        pruning_options(0.9, recipe=Recipe({"l2": 1.0}, pruned_fraction=0.2)),
        pruning_options(Budget(0.9, of="latency")),
        pruning_options(Budget(0.9, keep_at_least=0.0)),
    ],
)
def test_what_the_configuration_cannot_know_passes(options: object, without_weights: Path) -> None:
    check_budget_before_loading(str(without_weights), options)  # type: ignore[arg-type]


def test_a_model_that_was_pruned_before_is_left_to_its_weights(without_weights: Path, tmp_path: Path) -> None:
    record = json.loads((without_weights / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "adapruner": {"plan_hash": "0"}}))
    check_budget_before_loading(str(tmp_path), pruning_options(0.9))


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(
    without_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((without_weights / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMine = None\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    check_budget_before_loading(str(tmp_path), pruning_options(0.9))
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_no_model_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match=r"name_or_path: expected a folder or a hub name, got '\./nothing', which is not there"):
        check_budget_before_loading("./nothing", pruning_options(0.9))
