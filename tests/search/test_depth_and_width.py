"""A search of units in what removed layers and hidden channels leave: one plan, about the dense model, in one fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.callbacks.listener import PruningListener
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.errors import BudgetError, ConfigurationError
from adapruner.export.loading import load
from adapruner.models.units import count_parameters
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import read_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.lora import LoRAConfig
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig
from tests.callbacks.conftest import Run, all_callbacks, search_callback
from tests.tiny import tiny_llama

LAYER_AND_HIDDEN: dict[str, Any] = {"budget": Budget(0.5), "remove_layers": 1, "hidden_fraction": 0.125}


class Stages(PruningListener):
    """Sees the model at every stage."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int]] = {}

    def on_pruning_stage(self, trainer: Any, pl_module: Any, stage: str, pruning: Any) -> None:
        config = pruning.language_model(pl_module).config
        self.seen[stage] = (config.num_hidden_layers, config.hidden_size)


@pytest.fixture(scope="module")
def narrowed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Stages]:
    stages = Stages()
    lora = LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), model_attribute="language")
    return Run(tmp_path_factory.mktemp("narrowed"), [search_callback(**LAYER_AND_HIDDEN), lora, stages], max_steps=2), stages


def test_search_surgery_and_recovery_in_what_is_left(narrowed_run: tuple[Run, Stages]) -> None:
    run, stages = narrowed_run
    plan = read_plan(run.folder / "plan.json")
    model = run.module.language
    assert stages.seen == {"dense": (3, 32), "reconstructed": (2, 28)}
    assert len(plan.removed_layers) == 1
    assert plan.kept_hidden is not None
    assert len(plan.kept_hidden) == 28
    assert (model.config.num_hidden_layers, model.config.hidden_size, len(model.model.layers)) == (2, 28, 2)
    assert plan.pruned_fraction == pytest.approx(0.5, abs=0.002)
    assert plan.budget == {"pruned_fraction": 0.5, "of": "block"}
    assert plan.hash == run.search.plan.hash  # type: ignore[union-attr]
    assert count_parameters(model) == plan.parameters["pruned"]
    ids = torch.arange(4, 20)[None]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    model.eval()
    assert model.generate(ids, use_cache=True, **options).tolist() == model.generate(ids, use_cache=False, **options).tolist()


def test_the_plan_is_applied_to_the_dense_model_from_scratch(narrowed_run: tuple[Run, Stages], tmp_path: Path) -> None:
    """As a given plan, without and with the refit; and after a checkpoint that was made in the middle of recovery."""
    from adapruner.pruning.before_pruning import trace_for_plan
    from adapruner.pruning.surgery import prune_model

    run, _ = narrowed_run
    plan = read_plan(run.folder / "plan.json")
    dense = tiny_llama(intermediate_size=480)
    prune_model(dense, trace_for_plan(dense, plan), plan)
    given = search_callback(plan=str(run.folder / "plan.json"), reconstruction=None)
    plain = Run(tmp_path / "plain", [given], max_steps=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.module.language.state_dict().values(), dense.state_dict().values(), strict=True))
    assert given.plan is not None
    assert given.plan.hash == plan.hash
    refitted = Run(tmp_path / "refitted", [search_callback(plan=str(run.folder / "plan.json"))], max_steps=0)
    assert shapes(refitted) == shapes(run)
    assert read_plan(tmp_path / "refitted" / "plan.json").hash == plan.hash

    first = Run(tmp_path / "first", [search_callback(**LAYER_AND_HIDDEN)], max_steps=2)
    first.trainer.save_checkpoint(tmp_path / "step2.ckpt")
    again = search_callback(**LAYER_AND_HIDDEN)
    again.checkpoint = str(tmp_path / "step2.ckpt")  # as the command line sets it
    second = Run(tmp_path / "second", [again], ckpt_path=tmp_path / "step2.ckpt", max_steps=3)
    assert second.trainer.global_step == 3
    assert shapes(second) == shapes(first)
    assert again.plan is not None
    assert again.plan.hash == plan.hash


def shapes(run: Run) -> dict[str, Any]:
    return {name: tuple(p.shape) for name, p in run.module.language.named_parameters()}


def test_a_fixed_recipe_with_layers_and_hidden_channels(tmp_path: Path) -> None:
    run = Run(tmp_path, [search_callback(recipe=Recipe({"flap_wifv": 1.0}, bias_compensation=True), **LAYER_AND_HIDDEN)], max_steps=1)
    plan = run.search.plan
    assert plan is not None
    assert plan.output_bias
    assert plan.cuts_depth_or_width
    assert count_parameters(run.module.language) == plan.parameters["pruned"]


def test_what_cannot_be_had_together(tmp_path: Path) -> None:
    sized = SearchConfig(n_trials=4, space=SearchSpace(metrics=["l2"], pruned_fraction=[0.2, 0.5]))
    for options in ({"search": sized}, {"recipe": Recipe(pruned_fraction=0.3)}):
        with pytest.raises(ConfigurationError, match=r"pruned_fraction: expected the budget's alone beside remove_layers"):
            search_callback(**LAYER_AND_HIDDEN, **options)
    with pytest.raises(ConfigurationError, match=r"budget\.of: expected latency_ms beside remove_layers or hidden_fraction"):
        search_callback(**{**LAYER_AND_HIDDEN, "budget": Budget(0.5, "latency")})
    with pytest.raises(ConfigurationError, match=r"remove_layers: expected a number of layers, 0 or more, got -1"):
        search_callback(remove_layers=-1)
    with pytest.raises(BudgetError, match=r"expected at least the 0\.\d+ that removed layers and hidden channels come to, got 0\.2"):
        Run(tmp_path / "small", [search_callback(**{**LAYER_AND_HIDDEN, "budget": Budget(0.2)})], max_steps=1)


def test_report_and_export_follow_layers_and_hidden_channels(tmp_path: Path) -> None:
    Run(tmp_path / "all", all_callbacks(**LAYER_AND_HIDDEN), max_steps=1)
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    plan = read_plan(tmp_path / "all" / "plan.json")
    exported = load(tmp_path / "all" / "model")
    assert report["model"]["parameters_pruned"] == plan.parameters["pruned"] == exported.num_parameters()
    assert exported.config.num_hidden_layers == 3 - len(plan.removed_layers)
    assert read_plan(tmp_path / "all" / "model" / "plan.json").hash == plan.hash
