"""A stranger's project: everything that Lightning promises works with the callbacks, in this process and in a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from adapruner.callbacks import (
    CompressionReportCallback,
    LoRARecoveryCallback,
    PrunedExportCallback,
    PruningListener,
    PruningSearchCallback,
)
from adapruner.errors import ConfigurationError, DataError, PlanError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.model_attribute import hold_model
from adapruner.pruned_module import PrunedCheckpoints
from adapruner.pruning.budget import Budget
from adapruner.recovery.lora import LoRAConfig
from adapruner.search.config import SearchConfig
from adapruner.search.space import SearchSpace
from tests.tiny import random_windows, tiny_llama, word_tokenizer

FFN = 480
ROOT = Path(__file__).parents[2]
BATCH = random_windows(2, 16, seed=11).input_ids


class Stranger(LightningModule):
    """A module that has never heard of pruning."""

    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lm = tiny_llama(intermediate_size=FFN)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.lm(**batch, use_cache=False).loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val_loss", self.lm(**batch, use_cache=False).loss)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("test_loss", self.lm(**batch, use_cache=False).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.hparams["rate"])


class Prunable(PrunedCheckpoints, Stranger):
    """The one line that makes ``load_from_checkpoint`` work in any process; this one holds its model inside another module."""

    model_attribute = "net.lm"

    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__(rate)
        self.net = torch.nn.Module()
        self.net.lm = self._modules.pop("lm")

    def __getattr__(self, name: str) -> Any:
        return self.net.lm if name == "lm" else super().__getattr__(name)


def loader(seed: int, count: int = 8) -> DataLoader[Any]:
    rows: Any = random_windows(count, 16, seed=seed)
    return DataLoader(rows, batch_size=4)


def our_callbacks(recovery: bool = True, attribute: str = "lm") -> list[Any]:
    search = SearchConfig(n_trials=4, chunks=2, random_sets=0, rerank=None, space=SearchSpace(metrics=["l2", "gate_fisher"]))
    windows = random_windows(8, 16, seed=1, sources=("books", "code"))
    found: list[Any] = [PruningSearchCallback(0.3, search=search, model_attribute=attribute, calibration=windows)]  # type: ignore[arg-type]
    return [*found, *([LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), model_attribute=attribute)] if recovery else [])]


def trainer(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, accelerator="cpu", devices=1, callbacks=callbacks, **{**quiet, "max_epochs": 3, **options})


@pytest.fixture(scope="module", params=[Stranger, Prunable])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``fit(module, dataloader)`` without a data module, with checkpoints, early stopping, accumulation and clipping."""
    folder, module = tmp_path_factory.mktemp("stranger"), request.param()
    best = ModelCheckpoint(folder / "best", monitor="val_loss", save_top_k=1)
    callbacks = [*our_callbacks(attribute=getattr(module, "model_attribute", "lm")), best, EarlyStopping("val_loss", patience=5)]
    run = trainer(folder, callbacks, accumulate_grad_batches=2, gradient_clip_val=1.0)
    run.fit(module, loader(4), loader(5))
    return run, module, best


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(BATCH).logits  # type: ignore[no-any-return]


def test_fit_without_a_data_module(fitted: Any) -> None:
    run, module, best = fitted
    assert run.global_step == 3  # 2 batches an epoch, accumulated
    assert module.plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert [layer.mlp.down_proj.in_features for layer in module.lm.model.layers] == module.plan.widths("ffn") != [FFN] * 3
    assert not hasattr(module.lm, "peft_config")
    assert Path(best.best_model_path).is_file()


def test_test_of_the_best_checkpoint_in_the_same_process(fitted: Any) -> None:
    run, module, best = fitted
    after_fit = logits(module.lm)
    found = [run.test(module, loader(6), ckpt_path="best", verbose=False)[0]["test_loss"] for _ in range(2)]  # twice is as good as once
    assert found[0] == found[1]
    assert not hasattr(module.lm, "peft_config")
    if best.best_model_path.endswith("step=3.ckpt"):  # the last state is the best one
        torch.testing.assert_close(logits(module.lm), after_fit, atol=1e-5, rtol=1e-5)


def test_a_fresh_module_takes_the_checkpoint_with_the_callbacks(fitted: Any, tmp_path: Path) -> None:
    run, module, best = fitted
    expected = run.test(module, loader(6), ckpt_path=best.best_model_path, verbose=False)[0]["test_loss"]
    fresh = type(module)()
    callbacks = our_callbacks(attribute=getattr(module, "model_attribute", "lm"))
    found = trainer(tmp_path, callbacks).test(fresh, loader(6), ckpt_path=best.best_model_path, verbose=False)[0]["test_loss"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert fresh.plan.hash == module.plan.hash


def test_load_from_checkpoint_in_a_new_process(fitted: Any, tmp_path: Path) -> None:
    run, module, best = fitted
    if not isinstance(module, Prunable):
        pytest.skip("a class that does not say it can be pruned builds a dense model: see PrunedCheckpoints")
    run.test(module, loader(6), ckpt_path=best.best_model_path, verbose=False)  # the module has the best state now
    torch.save(logits(module.lm), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from tests.callbacks.test_stranger import Prunable, logits; from adapruner.recovery.merging import merge_lora\n"
        "module = Prunable.load_from_checkpoint(sys.argv[1])\n"
        "torch.testing.assert_close(logits(merge_lora(module.lm)), torch.load(sys.argv[2]), atol=1e-5, rtol=1e-5)\n"
        "merge_lora(module.lm).save_pretrained(sys.argv[3]); from adapruner import load\n"
        "torch.testing.assert_close(logits(load(sys.argv[3])), torch.load(sys.argv[2]), atol=1e-5, rtol=1e-5)\n"
        "print(module.plan.hash, module.hparams['rate'])"
    )
    command = [sys.executable, "-c", code, best.best_model_path, str(tmp_path / "expected.pt"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [module.plan.hash, "0.001"]


def test_save_pretrained_writes_a_folder_that_loads_in_a_new_process(fitted: Any, tmp_path: Path) -> None:
    _, module, _ = fitted
    module.lm.save_pretrained(tmp_path / "out")
    torch.save(logits(module.lm), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM; from tests.callbacks.test_stranger import logits\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "torch.testing.assert_close(logits(model), torch.load(sys.argv[2]), atol=1e-5, rtol=1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "expected.pt")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_export_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    export = PrunedExportCallback(verify=False)
    trainer(tmp_path, [*our_callbacks(recovery=False), export], max_steps=1, max_epochs=None).fit(Stranger(), loader(4))
    assert export.record is not None
    assert any("tokenizer" in note for note in export.record.notes)


def test_texts_and_a_tokenizer_will_do(tmp_path: Path) -> None:
    callbacks = our_callbacks(recovery=False)
    callbacks[0].calibration = {"books": [" ".join(f"w{(i * j) % 90}" for j in range(90)) for i in range(60)]}
    with pytest.raises(Exception, match="tokenizer: expected a tokenizer for the texts, got none"):
        trainer(tmp_path / "none", callbacks, max_steps=1).fit(Stranger(), loader(4))
    callbacks[0].tokenizer = word_tokenizer()
    module = Stranger()
    trainer(tmp_path / "run", callbacks, max_steps=1).fit(module, loader(4))
    assert module.plan.pruned_fraction == pytest.approx(0.3, abs=0.002)  # type: ignore[union-attr,operator]


def test_without_any_data_it_is_said_what_to_give(tmp_path: Path) -> None:
    search = PruningSearchCallback(0.3, model_attribute="lm")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data: expected a data module with calibration_windows, got NoneType"):
        trainer(tmp_path, [search], max_steps=1).fit(Stranger(), loader(4))


def test_a_listener_hears_every_stage_in_order(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(PruningListener):
        def check_before_search(self, trainer: Trainer) -> None:
            heard.append("check")

        def on_search_accepted(self, trainer: Trainer) -> None:
            heard.append("accepted")

        def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
            heard.append(f"{stage} {sum(p.numel() for p in pl_module.parameters())}")

        def before_merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
            heard.append("merge")

    module = Stranger()
    dense = sum(p.numel() for p in module.parameters())
    trainer(tmp_path, [*our_callbacks(), Listener()], max_steps=1).fit(module, loader(4))
    left = module.plan.parameters["pruned"]  # type: ignore[union-attr]
    assert heard == ["check", "accepted", f"dense {dense}", f"reconstructed {left}", "merge"]


def test_another_module_is_not_taken_for_the_pruned_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, our_callbacks(), max_steps=1, max_epochs=None)
    run.fit(Stranger(), loader(4))
    with pytest.raises(ConfigurationError, match=r"trainer\.callbacks: expected the module that was pruned before, got another Stranger"):
        run.fit(Stranger(), loader(4))


def test_orders_that_cannot_work_are_refused_before_any_work(tmp_path: Path) -> None:
    search, recovery = our_callbacks()
    with pytest.raises(ConfigurationError, match="expected PrunedExportCallback after LoRARecoveryCallback"):
        trainer(tmp_path / "a", [PrunedExportCallback(verify=False), search, recovery], max_steps=1).fit(Stranger(), loader(4))
    search, recovery = our_callbacks()
    stranger = Stranger()
    with pytest.raises(
        ConfigurationError, match="expected LoRARecoveryCallback after PruningSearchCallback, got it before; move it behind"
    ):
        trainer(tmp_path / "c", [recovery, search], max_steps=1).fit(stranger, loader(4))
    assert type(stranger.lm) is type(tiny_llama())  # without adapters
    assert not any("lora" in name for name, _ in stranger.named_parameters())
    search, recovery = our_callbacks()
    recovery.model_attribute = "modl"
    with pytest.raises(ConfigurationError, match=r"recovery\.model_attribute: expected 'lm', as the search has it, got 'modl'"):
        trainer(tmp_path / "b", [search, recovery], max_steps=1).fit(Stranger(), loader(4))
    assert not list(tmp_path.rglob("study.journal"))


def test_fit_from_a_checkpoint_takes_its_plan_and_searches_nothing(fitted: Any, tmp_path: Path) -> None:
    """Also where the callback asks for another budget: the weights fit no other plan."""
    _, module, best = fitted
    callbacks = our_callbacks(attribute=getattr(module, "model_attribute", "lm"))
    callbacks[0].options = replace(callbacks[0].options, budget=Budget(0.5))
    fresh = type(module)()
    run = trainer(tmp_path, callbacks, accumulate_grad_batches=2, gradient_clip_val=1.0, max_epochs=4)
    run.fit(fresh, loader(4), loader(5), ckpt_path=best.best_model_path)
    assert fresh.plan.hash == module.plan.hash
    assert not (tmp_path / "study.journal").exists()
    assert run.global_step > 0


def test_a_checkpoint_of_another_model_is_refused_before_the_search(fitted: Any, tmp_path: Path) -> None:
    _, module, best = fitted
    attribute = getattr(module, "model_attribute", "lm")
    fresh = type(module)()
    hold_model(fresh, attribute, tiny_llama(intermediate_size=FFN + 1))
    with pytest.raises(PlanError, match=r"plan: expected units 481 in group '\d\.ffn' of this model, got 480"):
        trainer(tmp_path, our_callbacks(attribute=attribute)).fit(fresh, loader(4), loader(5), ckpt_path=best.best_model_path)
    assert not (tmp_path / "study.journal").exists()


def test_held_out_text_beside_the_calibration_tells_what_pruning_cost(tmp_path: Path) -> None:
    module, held_out = Stranger(), random_windows(4, 16, seed=12)
    search, recovery = our_callbacks()
    search.evaluation, search.tokenizer = {"held out": held_out}, word_tokenizer()
    dense = evaluate_nll(module.lm, held_out).perplexity
    run = trainer(tmp_path, [search, recovery, CompressionReportCallback(compare_any_width=False, latency_repeats=1)], max_steps=2)
    run.fit(module, loader(11))
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["generations"]) == 3  # by the search's tokenizer: the module has none
    rows = report["perplexity"]
    measured = {row["stage"]: row["value"] for row in rows if row["dataset"] == "held out" and row["method"] in ("dense", "adapruner")}
    assert list(measured) == ["dense", "pruned", "reconstructed", "recovered"]
    assert measured["dense"] == pytest.approx(dense)
    assert measured["recovered"] == pytest.approx(evaluate_nll(module.lm, held_out).perplexity, rel=1e-4)


def test_held_out_text_without_calibration_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="evaluation: expected calibration beside it, got none"):
        PruningSearchCallback(0.3, evaluation=["some text"])  # type: ignore[arg-type]
