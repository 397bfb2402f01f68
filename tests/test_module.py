from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from adapruner.errors import ConfigurationError, ModelError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.export.adapters import export_either
from adapruner.export.options import ExportOptions
from adapruner.files.digests import write_sums
from adapruner.models.tracing import trace_structure
from adapruner.module import PrunableCausalLM
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.checkpoint_contents import PLAN_KEY
from adapruner.recovery.lora import LoRAConfig, attach_lora
from tests.tiny import prepare_problem, random_windows, save_tiny, tiny_llama, word_tokenizer

BATCH = {
    "input_ids": torch.tensor([[0, 10, 11, 12, 13, 2], [0, 20, 21, 22, 23, 24]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]),
    "labels": torch.tensor([[-100, -100, 11, 12, 13, -100], [-100, -100, -100, -100, 23, 24]]),  # a prompt, and padding
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plan() -> PruningPlan:
    return make_plan(prepare_problem(tiny_llama(), random_windows(2, 12, seed=1)), Recipe({"l2": 1.0}))


def rates(module: PrunableCausalLM, steps: int) -> list[float]:
    optimizer, scheduler = module.build_optimizer([torch.nn.Parameter(torch.zeros(1))])
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer: only its rate is looked at
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            if scheduler is not None:
                scheduler.step()
    return seen


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp16"}, "model.dtype: expected one of auto, float32, bfloat16, float16, got 'fp16'"),
        ({"warmup_steps": -1}, "model.warmup_steps: expected 0 or more, got -1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PrunableCausalLM(**options)


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    module = PrunableCausalLM(str(tmp_path))
    with pytest.raises(ModelError, match=f"model.name_or_path: expected a {what} to load from .*, got .*; give a local folder") as caught:
        module.configure_model() if what == "model" else module.tokenizer
    assert "\n" not in str(caught.value)


def test_the_model_is_loaded_once_and_as_asked(folder: Path) -> None:
    module = PrunableCausalLM(str(folder), dtype="bfloat16", attn_implementation="eager")
    assert module.model is None
    module.configure_model()
    model = module.model
    module.configure_model()
    assert module.model is model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert module.tokenizer("w0 w1")["input_ids"] == [4, 5]
    assert PrunableCausalLM("demo").source.endswith("model")


def test_the_loss_is_the_one_computed_by_hand(folder: Path, tmp_path: Path) -> None:
    module = PrunableCausalLM(str(folder), dtype="float32")
    module.configure_model()
    module.eval()
    with torch.no_grad():
        logits = module(BATCH["input_ids"], BATCH["attention_mask"]).double()
    predicted = [(0, 1, 11), (0, 2, 12), (0, 3, 13), (1, 3, 23), (1, 4, 24)]  # row, position that predicts, token
    by_hand = -sum(float(logits[row, at].log_softmax(-1)[token]) for row, at, token in predicted) / len(predicted)
    module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    assert float(module.training_step(BATCH, 0).detach()) == pytest.approx(by_hand, rel=1e-5)
    # Batches of one count by their tokens (3 and 2), not by their number.
    rows = [{name: value[i] for name, value in BATCH.items()} for i in range(2)]
    fresh = PrunableCausalLM(str(folder), dtype="float32")
    measured = quiet_trainer(tmp_path).validate(fresh, DataLoader(rows, batch_size=1), verbose=False)  # type: ignore[arg-type]
    assert measured[0]["val_nll"] == pytest.approx(by_hand, rel=1e-5)


def test_warm_up_alone_then_stays() -> None:
    module = PrunableCausalLM(optimizer=lambda p: torch.optim.SGD(p, lr=2.0), warmup_steps=4)
    assert rates(module, 6) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    module.warmup_steps = 0
    assert rates(module, 3) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_scheduler_begins_after_the_warm_up(warmup: int) -> None:
    schedulers: list[tuple[Any, list[float]]] = [
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=4), [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step), [2.0, 1.0, 0.5, 0.25, 0.125]),
        (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4, 1.0), [1.5 + math.cos(math.pi * i / 4) / 2 for i in range(5)]),
    ]
    for scheduler, factors in schedulers:
        module = PrunableCausalLM(optimizer=lambda p: torch.optim.SGD(p, lr=2.0), scheduler=scheduler, warmup_steps=warmup)
        expected = [2.0 * (i + 1) / warmup for i in range(warmup)] + factors
        assert rates(module, len(expected)) == pytest.approx(expected, abs=1e-9)


def test_only_what_trains_is_in_the_optimizer(folder: Path) -> None:
    module = PrunableCausalLM(str(folder))
    module.configure_model()
    module.model.requires_grad_(False)
    module.model.lm_head.weight.requires_grad_(True)
    optimizer = module.configure_optimizers()
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(96, 32)]


def test_a_checkpoint_carries_its_plan_and_loads_into_a_new_module(folder: Path, tmp_path: Path, plan: PruningPlan) -> None:
    module = PrunableCausalLM(str(folder), dtype="float32", optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    module.apply_plan(plan)
    rows = [{name: value[i] for name, value in BATCH.items()} for i in range(2)]
    trainer = quiet_trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    trainer.fit(module, DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "step.ckpt", weights_only=True)
    record = torch.load(tmp_path / "step.ckpt", weights_only=True)  # primitives only, or this fails
    assert record[PLAN_KEY]["hash"] == plan.hash
    fresh = PrunableCausalLM.load_from_checkpoint(tmp_path / "step.ckpt")
    assert fresh.plan is not None
    assert fresh.plan.hash == plan.hash
    assert fresh.model.model.layers[1].mlp.down_proj.in_features == plan.widths("ffn")[1] < 160
    with torch.no_grad():
        assert torch.equal(fresh.eval()(BATCH["input_ids"]), module.eval()(BATCH["input_ids"]))


def test_an_export_is_opened_without_its_code_and_with_its_adapters(folder: Path, tmp_path: Path, plan: PruningPlan) -> None:
    dense = tiny_llama()
    structure = trace_structure(dense)
    module = PrunableCausalLM(str(folder), dtype="float32")
    module.apply_plan(plan)
    adapted = attach_lora(module.model, LoRAConfig(r=2, alpha=4, dropout=0.0))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    export_either(adapted, word_tokenizer(), structure, plan, tmp_path / "out", ExportOptions(), card={})
    (tmp_path / "out" / "modeling_adapruner.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    write_sums(tmp_path / "out")
    again = PrunableCausalLM(str(tmp_path / "out"), attn_implementation="eager")
    again.configure_model()
    assert again.exported is not None
    assert again.exported.plan.hash == plan.hash
    assert again.plan is None  # its checkpoints are not of a dense model and this plan
    assert again.model.config._attn_implementation == "eager"
    assert again.tokenizer("w1")["input_ids"] == word_tokenizer()("w1")["input_ids"]
    with torch.no_grad():
        expected = adapted.eval()(input_ids=BATCH["input_ids"]).logits
        torch.testing.assert_close(again.eval()(BATCH["input_ids"]), expected, atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_plan_is_refused(folder: Path, plan: PruningPlan) -> None:
    module = PrunableCausalLM(str(folder))
    module.apply_plan(plan)
    other = make_plan(prepare_problem(tiny_llama(), random_windows(2, 12, seed=1)), Recipe({"random": 1.0}))
    assert other.hash != plan.hash
    with pytest.raises(ModelError, match=rf"ckpt_path: expected a checkpoint of the plan {plan.hash}, got one of {other.hash}"):
        module.on_load_checkpoint({PLAN_KEY: other.to_dict()})


def test_sums_over_batches_are_kept_in_double(folder: Path, tmp_path: Path) -> None:
    windows = random_windows(7, 12, seed=4)
    module = PrunableCausalLM(str(folder), dtype="float32")
    quiet_trainer(tmp_path).test(module, [DataLoader(windows, batch_size=b) for b in (2, 3)], verbose=False)  # type: ignore[arg-type]
    expected = evaluate_nll(module.model, windows)
    assert sorted(module.measured) == [0, 1]
    for result in module.measured.values():
        assert result.tokens == expected.tokens
        assert result.nll_sum == pytest.approx(expected.nll_sum, rel=1e-7)
