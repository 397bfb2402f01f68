"""Full fine-tuning: the layers' own weights train, and nothing is left to merge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner import stages
from adapruner.errors import ConfigurationError
from adapruner.export.loading import load
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.surgery import prune_model
from adapruner.recovery import training
from adapruner.recovery.distillation import DistillationConfig
from adapruner.recovery.form import make_plain, make_trainable
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.training import RecoveryConfig
from tests.models.families.table import ROWS, build
from tests.recovery.test_reconstruction import plan_for
from tests.tiny import random_windows, tiny_llama

WINDOWS = random_windows(12, 16, seed=4)
FULL = RecoveryConfig(steps=6, form="full", learning_rate=1e-3, batch_size=4, every_n_steps=2)


def pruned() -> Any:
    model = tiny_llama(intermediate_size=480)
    structure = trace_structure(model)
    prune_model(model, structure, plan_for(structure))
    return model


def recover(model: Any, config: RecoveryConfig = FULL, **options: Any) -> Any:
    return stages.recover(model, None, WINDOWS.input_ids, config, **options)


def test_it_is_plain_training_of_the_layers() -> None:
    """Against a loop over the model's own loss."""
    model, other = pruned(), pruned()
    before = {name: value.clone() for name, value in model.named_parameters()}
    recovered = recover(model, RecoveryConfig(steps=4, form="full", learning_rate=1e-3, batch_size=4, clip_norm=None))
    assert recovered.model is model
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    layers = [p for name, p in other.named_parameters() if ".layers." in name]
    optimizer, loader = torch.optim.AdamW(layers, lr=1e-3, weight_decay=0.0), training.training_loader(WINDOWS, 4, 0)
    for _, batch in zip(range(4), training._endless(loader), strict=False):
        optimizer.zero_grad()
        other(**batch).loss.backward()
        optimizer.step()
    for name, value in other.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-4, atol=1e-5)
        assert torch.equal(value, before[name]) == (".layers." not in name), name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_in_every_family_the_layers_train_and_nothing_else(row: Any) -> None:
    model = build(row)
    trained = [p for p in make_trainable(model, "full", LoRAConfig()).parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) >= trace_structure(build(row)).block_parameters
    tables = {id(p) for table in (model.get_input_embeddings(), model.get_output_embeddings()) for p in table.parameters()}
    assert not any(id(p) in tables for p in trained)
    assert make_plain(model) is model
    assert all(p.requires_grad for p in model.parameters())


def test_a_killed_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = recover(pruned(), folder=tmp_path / "whole").model
    inner = training._step

    def step(adapted: Any, batch: Any, state: Any, *rest: Any) -> float:
        if state.step == 4:
            raise KeyboardInterrupt("here")
        return inner(adapted, batch, state, *rest)

    model = pruned()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", step)
        with pytest.raises(KeyboardInterrupt, match="here"):
            recover(model, folder=tmp_path / "killed")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # as it was
    resumed = recover(model, folder=tmp_path / "killed")
    assert [step for step, _ in resumed.history] == [1, 2, 3, 4, 5, 6]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_the_widths_stay_and_the_result_exports(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=480)
    scored = stages.score(model, None, random_windows(8, 16, seed=1), 0.3, recipe=stages.Recipe({"l2": 1.0}), reconstruction=None)
    found = stages.search(scored)
    taught = RecoveryConfig(steps=3, form="full", learning_rate=1e-3, distillation=DistillationConfig(0.5, top_k=8))
    distillation = stages.teach(model, None, WINDOWS.input_ids, taught)
    stages.apply(model, found)
    count, before = count_parameters(model), copy.deepcopy(model.state_dict())
    recover(model, taught, distillation=distillation)
    assert count_parameters(model) == count
    assert not torch.equal(model.state_dict()["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    stages.export(model, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(WINDOWS.input_ids).logits, model(WINDOWS.input_ids).logits, rtol=0, atol=1e-5)


def test_where_it_makes_no_sense_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"recovery\.form: expected lora for weights of 16 bits, .*, got full for bfloat16; load"):
        recover(pruned().bfloat16())
    with pytest.raises(ConfigurationError, match=r"recovery\.form: expected a known form, got 'adapters'; "):
        RecoveryConfig(form="adapters")  # type: ignore[arg-type]
    recover(pruned(), RecoveryConfig(steps=1, form="full", lora=LoRAConfig(r=10_000)))  # whose rank is of no matter
