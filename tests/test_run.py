"""The run from Python: with a model object and texts, with and without a folder, and beside Lightning and the command line."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

import adapruner
from adapruner import stages
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.data.from_texts import data_from_texts
from adapruner.errors import AdaPrunerError, ConfigurationError, PlanError, StudyError
from adapruner.files.folder_lock import FolderLock
from adapruner.files.tensor_file import write_tensors
from adapruner.models.fingerprint import fingerprint_model
from adapruner.recovery import teacher as teacher_module
from adapruner.recovery import training
from adapruner.recovery.early_stop import EarlyStopConfig
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.solved_projections import SolvedProjections
from adapruner.recovery.training import RecoveryConfig
from adapruner.recovery.training_state import TrainingState
from adapruner.search.config import RerankConfig
from adapruner.search.trial_value import Objective
from adapruner.stage_times import read_times
from tests.tiny import random_windows, save_tiny, tiny_llama, word_tokenizer

ROOT = Path(__file__).parent.parent
FFN = 320


def texts(documents: int = 300, seed: int = 0, words: int = 90) -> dict[str, list[str]]:
    """Random words; the two sources prefer different ones."""
    draw = random.Random(seed)
    return {
        name: [" ".join(f"w{draw.randrange(low, low + 60)}" for _ in range(words)) for _ in range(documents)]
        for name, low in (("books", 0), ("code", 30))
    }


def quick(**changes: Any) -> adapruner.SearchConfig:
    values: dict[str, Any] = {"n_trials": 6, "chunks": 2, "random_sets": 0, "rerank": None}
    return adapruner.SearchConfig(space=adapruner.SearchSpace(metrics=["l2", "gate_fisher"]), **{**values, **changes})


def prune(model: Any = None, **options: Any) -> adapruner.PruningResult:
    defaults: dict[str, Any] = {"calibration": texts(60), "budget": 0.3, "search": quick(), "progress": False}
    return adapruner.prune(model or tiny_llama(intermediate_size=FFN), word_tokenizer(), **{**defaults, **options})


def test_ten_lines_prune_a_model_object_and_save_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(intermediate_size=FFN)
    dense = sum(p.numel() for p in model.parameters())
    result = prune(model)
    assert list(tmp_path.iterdir()) == []  # nothing is written to disk
    assert result.model is model
    assert sum(p.numel() for p in model.parameters()) == result.plan.parameters["pruned"] < dense
    assert result.plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert result.outcome is not None
    assert len(result.outcome.trials) == 6
    assert result.perplexity == []
    generated = model.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=5, do_sample=False)
    assert generated.shape == (1, 8)
    record = result.save("out")
    assert not any("without a tokenizer" in note for note in record.notes)
    ids = random_windows(2, 16, seed=3).input_ids
    with torch.no_grad():
        torch.testing.assert_close(adapruner.load("out")(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_stages_one_by_one_are_the_run() -> None:
    whole = prune(evaluation=texts(20, seed=9))
    model, tokenizer = tiny_llama(intermediate_size=FFN), word_tokenizer()
    scored = stages.score(model, tokenizer, texts(60), 0.3, search=quick())
    assert model.config.intermediate_size == FFN  # dense
    found = stages.search(scored)
    assert found.plan.hash == whole.plan.hash
    pruned = stages.reconstruct(scored, found)
    assert pruned.seconds > 0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, pruned.model.state_dict()[name]), name
    measured = stages.evaluate(pruned.model, tokenizer, texts(20, seed=9))
    rows = {(r["dataset"], r["window"]): r["value"] for r in whole.perplexity if r["stage"] == "reconstructed"}
    assert measured.perplexity == pytest.approx(rows)
    assert set(rows) == {("books", 128), ("code", 128)}
    recovered = stages.recover(pruned.model, tokenizer, texts(20), 3)
    assert [step for step, _ in recovered.history] == [1, 2, 3]
    assert not hasattr(recovered.model, "peft_config")
    assert stages.apply(tiny_llama(intermediate_size=FFN), found).plan.hash == found.plan.hash


def test_the_choice_and_the_comparison_can_be_made_after_a_recovery() -> None:
    search = quick(rerank=RerankConfig(candidates=2, keep=0.5, recovery_steps=2))
    report = adapruner.ReportConfig(compare=["l2"], compare_recovered=True, latency_seq_len=16, latency_repeats=1)
    result = prune(search=search, recovery=2, evaluation=texts(20, seed=9), report=report)
    assert result.outcome is not None
    assert result.outcome.candidates[0].recovered is not None
    measured = {(row["method"], row["stage"]) for row in result.perplexity}
    assert {("best fixed", "recovered"), ("adapruner", "recovered")} < measured


def test_a_judged_recovery_is_not_compared_with_others() -> None:
    report, recovery = adapruner.ReportConfig(compare=["l2"], compare_recovered=True), RecoveryConfig(2, early_stop=EarlyStopConfig(1))
    with pytest.raises(ConfigurationError, match=r"report\.compare_recovered: expected the same steps for all, got recovery\.early_stop"):
        prune(recovery=recovery, evaluation=texts(20, seed=9), report=report)


DISTILLED = RecoveryConfig(steps=6, every_n_steps=2, learning_rate=3e-3, distillation=adapruner.DistillationConfig(1.0, top_k=16))


@pytest.mark.slow  # two runs of 40 steps
def test_a_recovery_that_distils_comes_nearer_to_the_dense_model(capsys: pytest.CaptureFixture[str]) -> None:
    search = quick(n_trials=3, rerank=RerankConfig(candidates=2, keep=0.5, recovery_steps=2))  # the short recovery distils, too
    recovery, options = replace(DISTILLED, steps=40), {"search": search, "recovery_texts": random_windows(24, 32, seed=4).input_ids}
    result = prune(recovery=recovery, evaluation=texts(20, seed=9), **options)
    assert result.report["recovery"]["lora"]["distillation"] == {"weight": 1.0, "temperature": 1.0, "top_k": 16}
    history = [loss for _, loss in result.report["recovery"]["lora"]["history"]]
    assert sum(history[-5:]) < 0.8 * sum(history[:5])
    plain = prune(recovery=replace(recovery, distillation=adapruner.DistillationConfig()), evaluation=texts(20, seed=9), **options)
    dense, windows = tiny_llama(intermediate_size=FFN), random_windows(8, 32, seed=8).input_ids
    away = {}
    for name, model in (("distilled", result.model), ("plain", plain.model)):
        with torch.no_grad():
            p, q = (m.eval()(windows).logits.log_softmax(-1) for m in (dense, model))
        away[name] = float((p.exp() * (p - q)).sum(-1).mean())
    assert away["distilled"] < away["plain"]
    assert plain.report["recovery"]["lora"]["distillation"] is None


def test_teach_then_prune_then_recover_is_the_run(tmp_path: Path) -> None:
    data, windows = texts(60), random_windows(24, 32, seed=4).input_ids
    model, tokenizer = tiny_llama(intermediate_size=FFN), word_tokenizer()
    whole = prune(recovery=DISTILLED, recovery_texts=windows)
    scored = stages.score(model, tokenizer, data, 0.3, search=quick())
    taught = stages.teach(model, tokenizer, windows, DISTILLED, folder=tmp_path)
    stages.reconstruct(scored, stages.search(scored))
    with pytest.raises(ConfigurationError, match=r"distillation: expected what adapruner\.stages\.teach returned of the dense model"):
        stages.recover(model, tokenizer, windows, DISTILLED)
    stages.recover(model, tokenizer, windows, DISTILLED, distillation=taught)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation\.weight: expected a number above 0 to teach for, got 0"):
        stages.teach(model, tokenizer, windows, RecoveryConfig(steps=1))


def test_a_teacher_by_name(tmp_path: Path) -> None:
    """An export that is pruned again may learn from the model before the first pruning."""
    save_tiny(tmp_path / "dense", intermediate_size=FFN)
    windows = random_windows(12, 32, seed=4).input_ids
    recovery = replace(DISTILLED, steps=2, distillation=replace(DISTILLED.distillation, teacher=str(tmp_path / "dense")))
    own = prune(recovery=DISTILLED, recovery_texts=windows)
    named = prune(recovery=replace(recovery, steps=6), recovery_texts=windows)
    for name, value in own.model.state_dict().items():
        assert torch.equal(named.model.state_dict()[name], value), name
    pruned = stages.apply(tiny_llama(intermediate_size=FFN), own.plan).model
    assert stages.recover(pruned, None, windows, recovery).history[0][1] > 0
    save_tiny(tmp_path / "other", vocab_size=128)
    other = replace(recovery, distillation=replace(recovery.distillation, teacher=str(tmp_path / "other")))
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation\.teacher: expected one of the model's 96 tokens, got 128 in"):
        prune(recovery=other, recovery_texts=windows)
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation\.top_k: expected at most 96, the vocabulary, got 97"):
        prune(recovery=replace(DISTILLED, distillation=adapruner.DistillationConfig(0.5, top_k=97)))


@pytest.mark.slow  # three runs
@pytest.mark.parametrize("place", ["teacher", "recovery"])
def test_a_killed_run_that_distils_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Killed while the teacher writes, or in recovery: the teacher writes nothing twice, and the weights are those of an unbroken run."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr(teacher_module, "PART_BYTES", 2**14)
    windows = random_windows(24, 32, seed=4).input_ids
    options: dict[str, Any] = {"recovery": DISTILLED, "recovery_texts": windows, "recipe": adapruner.Recipe({"l2": 1.0}), "search": None}
    unbroken = prune(**options, folder=tmp_path / "whole")
    files = len(list((tmp_path / "whole" / "teacher").iterdir()))
    owner, name = (teacher_module, "write_tensors") if place == "teacher" else (TrainingState, "finished")
    inner, calls = getattr(owner, name), []

    def counted(*arguments: Any) -> Any:
        inner(*arguments)
        calls.append(arguments)
        if len(calls) == 3:
            raise Killed("here")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(Killed, match="here"):
            prune(**options, folder=tmp_path / "killed")
    written: list[Any] = []
    monkeypatch.setattr(teacher_module, "write_tensors", lambda *a: written.append(a) or write_tensors(*a))
    resumed = prune(**options, folder=tmp_path / "killed")
    assert files > 4
    assert len(written) == (files - 3 if place == "teacher" else 0)
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_apply_keeps_the_weights_and_export_needs_to_know_the_plan(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=FFN)
    found = stages.search(stages.score(model, None, random_windows(8, 32, seed=1), 0.3, recipe=adapruner.Recipe({"l2": 1.0})))
    with pytest.raises(ConfigurationError, match="model: expected one that adapruner pruned, got LlamaForCausalLM without a record"):
        stages.export(model, tmp_path / "dense")
    found.plan.save(tmp_path / "plan.json")
    pruned = stages.apply(model, tmp_path / "plan.json")
    kept = pruned.plan.kept["1.ffn"]
    dense = tiny_llama(intermediate_size=FFN).model.layers[1].mlp.down_proj.weight
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, dense[:, kept])
    record = stages.export(model, tmp_path / "out", dtype="bfloat16")
    assert any("tokenizer" in note for note in record.notes)  # it has none, and says so
    assert adapruner.load(tmp_path / "out").dtype == torch.bfloat16


def test_with_a_folder_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the search, then in the refit, then in recovery: plan, weights and recovery curve are those of an unbroken run."""

    class Killed(BaseException):
        pass

    options: dict[str, Any] = {"recovery": RecoveryConfig(steps=6, every_n_steps=2), "evaluation": texts(20, seed=9)}
    unbroken = prune(**options, folder=tmp_path / "whole")
    measure, step, calls = Objective.of_plan, training._step, iter(range(100))

    def kill_in_trial(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(Objective, "of_plan", kill_in_trial)
    with pytest.raises(Killed, match=r"^$"):
        prune(**options, folder=tmp_path / "run")
    monkeypatch.setattr(Objective, "of_plan", measure)
    keep, solved = SolvedProjections.keep, list[str]()

    def kill_in_refit(self: Any, name: str, *arguments: Any) -> None:
        keep(self, name, *arguments)
        solved.append(name)
        if len(solved) == 2:
            raise Killed

    monkeypatch.setattr(SolvedProjections, "keep", kill_in_refit)
    with pytest.raises(Killed, match=r"^$"):
        prune(**options, folder=tmp_path / "run")
    steps = iter(range(100))

    def kill_in_step(*arguments: Any) -> float:
        if next(steps) == 5:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(training, "_step", kill_in_step)
    with pytest.raises(Killed, match=r"^$"):
        prune(**options, folder=tmp_path / "run")
    monkeypatch.setattr(training, "_step", step)
    done: list[int] = []
    monkeypatch.setattr(training, "_step", lambda *a: (done.append(1), step(*a))[1])
    resumed = prune(**options, folder=tmp_path / "run")
    assert len(done) == 2  # steps 5 and 6; 4 was kept
    assert len(solved) == len(set(solved)) > 2  # each projection once, in two processes' lives
    assert resumed.outcome is not None
    assert resumed.outcome.resumed == 6
    assert resumed.plan.hash == unbroken.plan.hash
    assert resumed.report["recovery"]["lora"]["history"] == unbroken.report["recovery"]["lora"]["history"]
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"plan.json", "trials.csv", "study.journal", "report.json", "report.html", "calibration_set.json", "checkpoints"} <= names
    assert resumed.report["generations"] == unbroken.report["generations"]
    assert {name for row in resumed.report["generations"] for name in row} == {"prompt", "dense", "pruned", "recovered"}
    assert resumed.report["generation_protocol"].startswith("3 passages of held-out text")
    lora = resumed.report["recovery"]["lora"]
    assert lora["tokens"] == unbroken.report["recovery"]["lora"]["tokens"] > 6 * 8
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    assert record["model"]["plan_hash"] == unbroken.plan.hash
    took, once = record["took"], unbroken.report["took"]
    assert (took["processes"], once["processes"]) == (4, 1)
    assert list(once["stages"]) == ["loading", "statistics", "search", "measuring", "refit", "recovery", "between stages"]
    assert set(once["stages"]) == set(took["stages"])
    assert sum(took["stages"].values()) == pytest.approx(took["seconds"], rel=1e-6)
    earlier = read_times(tmp_path / "run")[:2]
    assert took["stages"]["search"] > sum(process.stages["search"] for process in earlier) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.2}, r"^budget: expected a number in \[0, 1\), got 1\.2"),
        ({"calibration": None}, "calibration: expected"),
        ({"calibration": ["one text", 3]}, "expected text"),
        ({"budget": adapruner.Budget(0.99)}, r"^budget\.pruned_fraction: expected at most .* or less, or lower budget\.keep_at_least$"),
        ({"search": 4, "seed": -1}, r"^seed: expected a whole number from 0"),
        ({"rounds": 0}, r"^rounds: expected 1 or more, got 0"),
        ({"reconstruction_samples": -1}, r"^reconstruction_samples: expected a whole number >= 1, got -1"),
        ({"calibration": ["w1 w2"]}, r"^calibration: expected texts .* give 11 texts or more, or one of 44,000 characters$"),
        (
            {"calibration": ["w1 " * 5, "w2", *["w3"] * 9]},
            r"^calibration, source 'texts', part .* tokens of text \([\d,]+ characters; [^;,]*\)$",
        ),
        ({"evaluation": ["w1"]}, r"^evaluation, source 'texts': expected at least 1 window of 128 tokens, .*\)$"),
        ({"recovery": 1, "recovery_texts": ["w1"]}, r"^recovery_texts, source 'texts': expected at least 1 window of 256 tokens, .*\)$"),
        ({"search": 0}, r"^search: expected 1 or more, got 0"),
        ({"recovery": -1}, r"^recovery: expected a whole number of 1 or more, got -1"),
        ({"recovery": "5"}, "recovery: expected a number of steps, or a time with a unit such as 45m, got '5'; leave out the quotes"),
        ({"recovery": True}, "recovery: expected a RecoveryConfig or a whole number or text or None, got True"),
        ({"recovery": RecoveryConfig(steps=1, lora=LoRAConfig(target_modules=["nope"]))}, "expected layers of the model, got 'nope'"),
        ({"budget": "0.3"}, "budget: expected a Budget or a number, got '0.3'"),
        ({"recipe": "l2"}, "recipe: expected a Recipe or None, got 'l2'"),
        ({"reconstruction": True}, "reconstruction: expected a ReconstructionConfig or None, got True"),
        ({"n_trials": 5}, "n_trials: expected an option of prune, got an unknown one"),
        ({"calibration": torch.arange(-64, 64).view(8, 16)}, "expected token ids of 0 or more, got -64"),
        ({"model": tiny_llama(intermediate_size=FFN).model}, "expected a model with a head that predicts tokens in model, got LlamaModel"),
        ({"budget": 0.99}, r"^budget: expected at most (0\.\d+) of block parameters for this model, got 0\.99; give \1 or less$"),
        ({"calibration": torch.arange(128).view(8, 16)}, "expected tokens below the model's 96, got"),
        ({"calibration": torch.arange(2400).view(8, 300) % 96}, "expected at most the model's 256 positions, got 300"),
        ({"model": torch.nn.Linear(2, 2)}, "expected a Hugging Face causal LM in model, got Linear"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AdaPrunerError, match=message) as caught:
        prune(**options, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.93}, r"^budget: expected at most 0\.\d+ of block parameters for this model, got 0\.93; give"),
        ({"calibration": []}, r"^calibration: expected one text or more"),
        ({"model": "./nothing"}, r"^model: expected a folder or a hub name, got '\./nothing', which is not there"),
    ],
)
def test_what_the_weights_have_no_say_in_is_refused_before_they_are_loaded(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (save_tiny(tmp_path / "my-model") / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    for call in (adapruner.prune, *([stages.score] if "calibration" not in options else [])):
        with pytest.raises(AdaPrunerError, match=message):
            call(**{"model": "my-model", "calibration": texts(60), **options})


def test_recovery_of_other_weights_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another refit of the same plan, adapters merged before, another model: none goes on from the checkpoint that is there."""
    recipe, steps = adapruner.Recipe({"l2": 1.0}), RecoveryConfig(steps=2, learning_rate=1e-2)
    options: dict[str, Any] = {"recipe": recipe, "recovery": steps, "folder": tmp_path / "run"}
    prune(**options)
    refitted_otherwise = prune(**options, reconstruction=None)
    expected = prune(recipe=recipe, recovery=steps, reconstruction=None)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, refitted_otherwise.model.state_dict()[name]), name
    windows = random_windows(8, 32, seed=5)
    for model in (tiny_llama(), tiny_llama(initializer_range=0.2)):
        twice = [stages.recover(model, None, windows, steps, folder=tmp_path / "recover") for _ in range(2)]
        assert all(len(found.history) == 2 for found in twice)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        again = stages.recover(model, None, windows, steps)
        assert any(not torch.equal(value, before[name]) for name, value in again.model.state_dict().items())
    assert "recovery starts anew" in capsys.readouterr().out


def test_mode_and_what_trains_are_as_before() -> None:
    model = tiny_llama(intermediate_size=FFN).eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    with torch.no_grad():
        prune(model, recipe=adapruner.Recipe({"l2": 1.0}), recovery=1)
    assert not model.training
    assert not model.model.embed_tokens.weight.requires_grad
    assert model.model.layers[0].mlp.down_proj.weight.requires_grad


def test_a_plan_of_other_weights_is_refused_before_anything_is_cut(tmp_path: Path) -> None:
    recipe = adapruner.Recipe({"l2": 1.0})
    plan = prune(recipe=recipe).plan
    other = tiny_llama(intermediate_size=FFN, initializer_range=0.2)
    with pytest.raises(AdaPrunerError, match="plan: expected a plan for the model with fingerprint"):
        stages.apply(other, plan)
    scored = stages.score(other, word_tokenizer(), texts(60), 0.3, recipe=recipe)
    found = stages.search(stages.score(tiny_llama(intermediate_size=FFN), word_tokenizer(), texts(60), 0.3, recipe=recipe))
    with pytest.raises(AdaPrunerError, match="plan: expected a plan for the model with fingerprint"):
        stages.reconstruct(scored, found)
    assert other.config.intermediate_size == FFN


@pytest.mark.parametrize("folder", ["", 5])
def test_a_folder_that_is_none_is_refused(folder: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"folder: expected (the path of a run folder|a path or None), got"):
        prune(folder=folder)


def test_an_export_is_no_run_folder(tmp_path: Path) -> None:
    prune(recipe=adapruner.Recipe({"l2": 1.0})).save(tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    save_tiny(tmp_path / "dense")
    with pytest.raises(ConfigurationError, match="folder: expected a run folder, got the folder of a model"):
        prune(folder=tmp_path / "dense")
    with pytest.raises(ConfigurationError, match="folder: expected a run folder, got the export"):
        prune(folder=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


class Module(LightningModule):
    """Somebody's bare project."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.model(**batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def write_jsonl(folder: Path, sources: dict[str, list[str]]) -> None:
    for name, documents in sources.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


@pytest.mark.slow
def test_python_lightning_and_the_command_line_find_the_same_plan(tmp_path: Path) -> None:
    sources, folder = texts(700), save_tiny(tmp_path / "model", intermediate_size=FFN)
    by_python = adapruner.prune(str(folder), calibration=sources, budget=0.3, search=quick(), progress=False)

    module = Module(stages.load_model(str(folder))[0])
    callback = PruningSearchCallback(0.3, search=quick(), calibration=sources, tokenizer=word_tokenizer())  # type: ignore[arg-type]
    rows: Any = random_windows(4, 16, seed=4)
    trainer = Trainer(
        default_root_dir=tmp_path / "lightning", accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=2))
    assert callback.plan is not None

    write_jsonl(tmp_path, sources)
    parts = {"calibration": [0.0, 0.75], "search": [0.75, 1.0], "recovery": [0.0, 0.75]}
    data = {
        role: {"sources": [{"name": name, "path": str(tmp_path / f"{name}.jsonl"), "part": part} for name in sources]}
        for role, part in parts.items()
    }
    config = {
        "model": {"name_or_path": str(folder)},
        "data": data,
        "pruning": {
            "budget": {"pruned_fraction": 0.3},
            "search": {"n_trials": 6, "chunks": 2, "random_sets": 0, "rerank": None, "space": {"metrics": ["l2", "gate_fisher"]}},
        },
        "report": {"latency_seq_len": 16, "latency_repeats": 1},
        "export": {"verify": False},
        "trainer": {"default_root_dir": str(tmp_path / "cli"), "accelerator": "cpu", "max_steps": 1, "logger": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    by_command_line = adapruner.read_plan(tmp_path / "cli" / "plan.json")
    assert by_python.plan.hash == callback.plan.hash == by_command_line.hash


def test_data_prepared_by_hand_is_taken_as_it_is(tmp_path: Path) -> None:
    data = data_from_texts(texts(60), word_tokenizer(), seq_len=32, search_seq_len=48)
    result = prune(calibration=data)
    assert result.report == {}
    assert result.plan.hash == prune(calibration=data).plan.hash


def test_a_model_is_not_left_half_pruned_by_a_refused_call(tiny_model: Callable[..., Any]) -> None:
    model = tiny_llama(intermediate_size=FFN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdaPrunerError, match=r"at most 0\.\d+ of block parameters"):
        prune(model, budget=0.99)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_stage_with_a_folder_is_there_alone(tmp_path: Path) -> None:
    """Two processes would write into one study; afterwards the folder is free."""
    model, windows, recipe = tiny_llama(intermediate_size=FFN), random_windows(8, 32, seed=1), adapruner.Recipe({"l2": 1.0})
    scored = stages.score(model, None, windows, 0.3, recipe=recipe, folder=tmp_path)
    other = FolderLock()
    other.take(tmp_path)
    for work in (
        lambda: stages.score(model, None, windows, 0.3, recipe=recipe, folder=tmp_path),
        lambda: stages.search(scored),
        lambda: stages.recover(model, None, windows, 1, folder=tmp_path),
        lambda: prune(folder=tmp_path),
    ):
        with pytest.raises(ConfigurationError, match=r"^folder: expected no other run at work in .*, got one; wait for it"):
            work()
    other.release()
    assert stages.search(scored).plan.pruned_fraction > 0.2
    assert not (tmp_path / ".lock").exists()


def test_weights_that_differ_where_nobody_looked_are_another_model(tmp_path: Path) -> None:
    """A fingerprint looks at 64 values of a tensor, a digest at all: plan, study and statistics are of the very weights."""
    options: dict[str, Any] = {"search": quick(), "folder": tmp_path}
    model, windows = tiny_llama(intermediate_size=FFN), random_windows(8, 32, seed=1)
    found = stages.search(stages.score(model, None, windows, 0.3, **options))
    changed = tiny_llama(intermediate_size=FFN)
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[3, 5] += 1.0
    assert fingerprint_model(changed) == fingerprint_model(model)
    with pytest.raises(PlanError, match=r"expected a plan for the model with weights [0-9a-f]{32}, got one for"):
        stages.apply(changed, found)
    with pytest.raises(StudyError, match=r"to have the same weights \([0-9a-f]{32}\), got [0-9a-f]{32}; choose another run folder"):
        stages.score(changed, None, windows, 0.3, **options)


def test_damage_is_said_and_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "recovery": RecoveryConfig(steps=2), "evaluation": texts(20, seed=9), "progress": True}
    first = prune(**options)
    capsys.readouterr()
    believed = ("statistics.safetensors", "grams.safetensors", "report_measurements.json", "checkpoints/recovery.pt")
    for name in believed:
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) * 2 // 3] ^= 1
        (tmp_path / name).write_bytes(content)
    again = prune(**options)
    said = capsys.readouterr().out
    assert all(re.search(rf"{name} is damaged \(.*\)", said) for name in believed), said
    assert again.plan.hash == first.plan.hash
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in first.model.state_dict().items())
    assert again.perplexity == first.perplexity
