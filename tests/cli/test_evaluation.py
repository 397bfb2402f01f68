"""``validate``, ``test`` and ``predict`` of the command line, on every form a model can have."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from torch.utils.data import DataLoader

from adapruner.cli import main
from adapruner.cli.evaluation import Continuations
from adapruner.data.documents import Document
from adapruner.data.windows import TextWindows, joined_windows
from adapruner.evaluation.generation import generate_text
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.module import PrunableCausalLM
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.lora import LoRAConfig, attach_lora
from tests.tiny import prepare_problem, random_windows, save_tiny, tiny_llama, word_tokenizer

WINDOW = 16


def write_text(file: Path, seed: int, words: int = 400) -> None:
    draw = random.Random(seed)
    file.write_text("\n\n".join(" ".join(f"w{draw.randrange(92)}" for _ in range(40)) for _ in range(words // 40)))


def make_place(place: Path) -> SimpleNamespace:
    """A base model, a plan, a checkpoint with adapters, a stock and an irregular export, texts and a configuration."""
    place.mkdir(exist_ok=True)
    base = save_tiny(place / "base")
    for number, name in enumerate(("calibration", "search", "held")):
        write_text(place / f"{name}.txt", number)
    problem = prepare_problem(tiny_llama(), random_windows(2, 12, seed=1))
    problem = replace(problem, fingerprint=fingerprint_model(tiny_llama()))
    plan: PruningPlan = make_plan(problem, Recipe({"l2": 1.0}))
    plan.save(place / "plan.json")
    even = make_plan(replace(problem, budget=Budget(0.3021, keep_at_least=0.1)), Recipe({"l2": 1.0}, allocation=Allocation("uniform")))
    even.save(place / "other.json")
    module = PrunableCausalLM(str(base), dtype="float32", optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    module.apply_plan(plan)
    module.model = attach_lora(module.model, LoRAConfig(r=2, alpha=4, dropout=0.0)).train()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=place, accelerator="cpu", devices=1, max_steps=2, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(random_windows(4, WINDOW, seed=3), batch_size=2))  # type: ignore[arg-type]
    trainer.save_checkpoint(place / "last.ckpt")
    irregular = tiny_llama()
    structure = trace_structure(irregular)
    cut = PrunableCausalLM(str(base))
    cut.apply_plan(plan)
    export_model(cut.model, word_tokenizer(), structure, plan, place / "irregular")
    options = {
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "data": {
            "calibration": {"sources": [source(place, "calibration")], "samples_per_source": 2, "seq_len": WINDOW},
            "search": {"sources": [source(place, "search")], "samples": 4, "seq_len": WINDOW},
            "evaluation": [{"name": "held out", "source": source(place, "held"), "windows": [WINDOW, 8]}],
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(place / "run"),
            "limit_val_batches": 0,
            "enable_model_summary": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(place / "run"), "name": "logs", "version": ""}},
        },
    }
    (place / "own.yaml").write_text(yaml.safe_dump(options))
    (place / "prompts.txt").write_text("w1 w2 w3\n\nw9 w8\n")
    return SimpleNamespace(folder=place, base=base, plan=plan, even=even, module=module, cut=cut.model)


def source(place: Path, name: str) -> dict[str, str]:
    return {"name": name, "path": str(place / f"{name}.txt")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def command(place: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs one command in the place; what it printed."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(name: str, *options: str) -> str:
        main([name, "--config", "own.yaml", *options])
        return capsys.readouterr().out

    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adapruner: error: ")]
    assert len(lines) == 1
    return lines[0]


def measured(model: Any, place: SimpleNamespace, window: int = WINDOW) -> float:
    """By the function that the report uses."""
    return evaluate_nll(model, held_windows(place, window)).perplexity


def held_windows(place: SimpleNamespace, window: int = WINDOW) -> TextWindows:
    document = Document("held", "held.txt", (place.folder / "held.txt").read_text())
    return joined_windows([document], word_tokenizer(), window)


def logged(place: SimpleNamespace, name: str) -> dict[str, float]:
    with (place.folder / "run" / "logs" / name / "metrics.csv").open() as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


@pytest.mark.parametrize(
    ("options", "title", "model"),
    [
        ([], "the dense model", lambda place: tiny_llama()),
        (["--pruning.plan", "plan.json"], "neither reconstructed nor recovered", lambda place: place.cut),
        (["--ckpt_path", "last.ckpt"], "as of step 2 in last.ckpt", lambda place: place.module.model),
        (["--model.name_or_path", "irregular"], "the export irregular", lambda place: load(place.folder / "irregular")),
    ],
    ids=["dense", "pruned", "recovered", "exported"],
)
def test_test_measures_every_form_as_the_report_does(
    command: Callable[..., str], place: SimpleNamespace, options: list[str], title: str, model: Callable[[Any], Any]
) -> None:
    out = command("test", *options)
    assert title in out
    expected = measured(model(place), place)
    assert logged(place, "test")[f"test/perplexity/held out/{WINDOW}"] == pytest.approx(expected, rel=1e-6)
    row = re.search(rf"held out +{WINDOW} +([\d.,]+)", out)
    assert row is not None
    assert float(row[1].replace(",", "")) == pytest.approx(expected, rel=0.01)
    assert f"non-overlapping windows of {WINDOW} tokens" in out  # the protocol
    assert "non-overlapping windows of 8 tokens" in out
    assert "test_nll" not in out  # Lightning's own table
    for line in (
        rf"held out, window {WINDOW}: .*, hash [0-9a-f]{{16}}",
        "leaks: checked: ",
        "data seed: ",
        "hardware: ",
        "versions: adapruner ",
    ):
        assert re.search(line, out), line
    assert "\nsearch, window" not in out  # it was not measured


def test_part_of_a_set_is_said_to_be_part_and_has_no_bits_per_byte(command: Callable[..., str], place: SimpleNamespace) -> None:
    whole = command("test")
    assert re.search(r"bits per byte", whole)
    assert "only part" not in whole
    out = command("test", "--trainer.limit_test_batches", "2", "--data.batch_size", "3")
    assert "bits per byte" not in out
    count = len(held_windows(place).input_ids)
    assert f"{count} non-overlapping windows" in whole
    assert "6 non-overlapping windows of 16 tokens" in out
    assert f"only part of the set was measured, {6 * 15} of {count * 15} predictions (trainer.limit_test_batches)" in out
    expected = evaluate_nll(tiny_llama(), held_windows(place).select(range(6))).perplexity
    assert logged(place, "test")[f"test/perplexity/held out/{WINDOW}"] == pytest.approx(expected, rel=1e-6)
    searched = command("validate", "--trainer.limit_val_batches", "1", "--data.batch_size", "3")
    assert "search split: 3 windows of 16 tokens" in searched
    assert "only part of the set was measured, 45 of 60 predictions (trainer.limit_val_batches)" in searched


def test_a_stock_export_is_measured_too(command: Callable[..., str], place: SimpleNamespace) -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    cut = PrunableCausalLM(str(place.base))
    cut.apply_plan(place.even)
    assert export_model(cut.model, word_tokenizer(), structure, place.even, place.folder / "stock").stock
    command("test", "--model.name_or_path", "stock")
    assert logged(place, "test")[f"test/perplexity/held out/{WINDOW}"] == pytest.approx(measured(cut.model, place), rel=1e-6)


def test_validate_measures_the_search_split_although_fit_does_not(command: Callable[..., str], place: SimpleNamespace) -> None:
    out = command("validate")
    assert re.search(rf"search split +{WINDOW} ", out)
    assert "recipes are chosen on this text" in out
    assert logged(place, "validate")[f"validate/perplexity/search split/{WINDOW}"] > 1


def test_the_logs_of_fit_stay(command: Callable[..., str], place: SimpleNamespace) -> None:
    logs = place.folder / "run" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "metrics.csv").write_text("step,train_loss\n0,1.0\n")
    command("test")
    assert (logs / "metrics.csv").read_text() == "step,train_loss\n0,1.0\n"


@pytest.mark.parametrize("exported", [False, True], ids=["dense", "exported"])
def test_predict_streams_and_writes(command: Callable[..., str], place: SimpleNamespace, exported: bool) -> None:
    options = ["--model.name_or_path", "irregular"] if exported else []
    out = command("predict", "--data.prompts", "prompts.txt", "--model.generation.max_new_tokens", "5", *options)
    model = load(place.folder / "irregular") if exported else tiny_llama()
    prompts = ["w1 w2 w3", "w9 w8"]
    expected = generate_text(model, word_tokenizer(), prompts, max_new_tokens=5)
    rows = [json.loads(line) for line in (place.folder / "run" / "predictions.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": p, "continuation": c} for p, c in zip(prompts, expected, strict=True)]
    for prompt, text in zip(prompts, expected, strict=True):
        assert f"{prompt}{text}\n" in out
    assert not list((place.folder / "run").glob(".*.tmp"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_predictions_that_break_off_leave_the_earlier_file(tmp_path: Path, error: type[BaseException]) -> None:
    def continued(prompts: list[str], fails: bool) -> None:
        with Continuations(tmp_path / "run" / "predictions.jsonl") as heard:
            for prompt in prompts:
                heard.begin(prompt)
                heard.write(" and on")
                heard.end()
            if fails:
                raise error("broken off")

    with pytest.raises(error, match="broken off"):
        continued(["w0"], fails=True)
    assert list((tmp_path / "run").iterdir()) == []
    continued(["w1", "w2"], fails=False)
    with pytest.raises(error, match="broken off"):
        continued(["w3"], fails=True)
    (file,) = (tmp_path / "run").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [{"prompt": p, "continuation": " and on"} for p in ("w1", "w2")]


def test_predict_hears_every_token_as_it_comes(place: SimpleNamespace) -> None:
    module = PrunableCausalLM(str(place.base))
    module.configure_model()
    heard: list[tuple[str, int]] = []
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    module.model.register_forward_pre_hook(count)
    module.listener = SimpleNamespace(  # type: ignore[assignment]
        begin=lambda prompt: None, write=lambda piece: heard.append((piece, forwards)), end=lambda: None
    )
    (row,) = module.predict_step(["w1 w2 w3"], 0)
    assert len(heard) > 5
    assert "".join(piece for piece, _ in heard) == row["continuation"]
    assert [n for _, n in heard] == sorted({n for _, n in heard})  # a forward between any two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "data.prompts: expected a file of prompts, got none"),
        (["predict", "--data.prompts", "none.txt"], "data.prompts: expected a file, got 'none.txt'"),
        (["predict", "--data.prompts", "prompts.txt", "--model.generation.max_new_tokens", "900"], "max_new_tokens: expected at most"),
        (["predict", "--model.generation.max_new_tokens", "0"], "generation.max_new_tokens: expected 1 or more, got 0"),
        (["test", "--ckpt_path", "none.ckpt"], "ckpt_path: expected a checkpoint, got 'none.ckpt', which does not exist"),
        (["test", "--data.evaluation", "null"], "data.evaluation: expected one held-out set or more"),
        (["test", "--model.name_or_path", "irregular", "--pruning.plan", "other.json"], "plan: expected units"),
        (["test", "--ckpt_path", "last.ckpt", "--pruning.plan", "other.json"], "ckpt_path: expected a checkpoint of the plan"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    place: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(place.folder)
    assert message in refusal(capsys, arguments[0], "--config", "own.yaml", *arguments[1:])


def test_no_code_in_a_checkpoint_is_run(
    place: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (place.folder / "ran",))

    monkeypatch.chdir(place.folder)
    record = torch.load("last.ckpt", weights_only=True)
    torch.save({**record, "evil": Evil()}, "evil.ckpt")
    assert "ckpt_path: expected a whole Lightning checkpoint" in refusal(capsys, "test", "--config", "own.yaml", "--ckpt_path", "evil.ckpt")
    assert not Path("ran").exists()
