"""A small good input, and ways to spoil it: what the table of bad inputs is made with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import VOCABULARY, prepare_problem, random_windows, save_tiny, tiny_llama, word_tokenizer

BASE = """\
seed_everything: 0
model: {name_or_path: model, dtype: float32}
data:
  batch_size: 4
  calibration: {samples_per_source: 4, seq_len: 16, sources: [{name: books, path: texts/calibration.txt}]}
  search: {samples: 4, seq_len: 16, sources: [{name: search, path: texts/search.txt}]}
  recovery: {samples: 8, seq_len: 16, sources: [{name: recovery, path: texts/recovery.txt}]}
  evaluation: [{name: test, source: {name: test, path: texts/test.txt}, windows: [32], limit: 2}]
pruning:
  budget: {pruned_fraction: 0.3}
  search: {n_trials: 2, space: {metrics: [l2]}}
recovery:
  lora: {r: 2, alpha: 4, dropout: 0.0}
report: {latency_seq_len: 16, latency_repeats: 1}
export: {verify: false}
trainer:
  default_root_dir: run
  accelerator: cpu
  devices: 1
  max_steps: 1
  log_every_n_steps: 1
  limit_val_batches: 0
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: run, name: logs, version: ""}}
"""


def make_workspace(folder: Path) -> None:
    """A model, its tokenizer, four texts, a plan and a configuration: all good, in a few kilobytes."""
    save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for seed, name in enumerate(("calibration", "search", "recovery", "test")):
        drawn = random.Random(seed)
        text = "\n\n".join(" ".join(f"w{drawn.randrange(VOCABULARY - 4)}" for _ in range(80)) for _ in range(12))
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "base.yaml").write_text(BASE)
    _write_plan(folder / "plan.json")


def _write_plan(file: Path, **changes: Any) -> None:
    from adapruner.models.fingerprint import fingerprint_model
    from adapruner.pruning.problem import make_plan
    from adapruner.pruning.recipe import Recipe

    model = tiny_llama(**changes)
    problem = prepare_problem(model, random_windows(2, 16, seed=1))
    object.__setattr__(problem, "fingerprint", fingerprint_model(model))
    make_plan(problem, Recipe()).save(file)


# ------------------------------------------------------------------------------------------------ ways to spoil a file
def text(path: str, content: str) -> Callable[[Path], None]:
    """Puts this content there."""

    def spoil(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)

    return spoil


def content(path: str, given: bytes) -> Callable[[Path], None]:
    """Puts these bytes there."""
    return lambda folder: (folder / path).write_bytes(given) and None


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Changes a part of a text file."""

    def spoil(folder: Path) -> None:
        content = (folder / path).read_text()
        assert old in content, f"{old!r} is not in {path}"
        (folder / path).write_text(content.replace(old, new))

    return spoil


def config(old: str, new: str) -> Callable[[Path], None]:
    """Changes the configuration file."""
    return replaced("base.yaml", old, new)


def empty_folder(path: str) -> Callable[[Path], None]:
    """Makes a folder with nothing in it."""
    return lambda folder: (folder / path).mkdir()


def gone(path: str) -> Callable[[Path], None]:
    """Takes a file away."""
    return lambda folder: (folder / path).unlink()


def cut(path: str) -> Callable[[Path], None]:
    """Cuts a file to its first half."""

    def spoil(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return spoil


def chat_template(template: str, path: str, content: str) -> Callable[[Path], None]:
    """Gives the model's tokenizer a chat template, and writes a file of text."""

    def spoil(folder: Path) -> None:
        (folder / "model/chat_template.jinja").write_text(template)
        (folder / path).write_text(content)

    return spoil


def json_field(path: str, key: str, value: Any, **more: Any) -> Callable[[Path], None]:
    """Changes one field of a JSON file, or several."""

    def spoil(folder: Path) -> None:
        record = json.loads((folder / path).read_text())
        record.update({key: value, **more})
        (folder / path).write_text(json.dumps(record))

    return spoil


def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the model's weights."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model" / "model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})

    return spoil


def with_nan(weights: dict[str, Any]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def too_large_for_float16(weights: dict[str, Any]) -> None:
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e6


def overflowing_in_float16(weights: dict[str, Any]) -> None:
    for name in ("gate", "up"):
        weights[f"model.layers.1.mlp.{name}_proj.weight"] *= 3e3


def overflowing(weights: dict[str, Any]) -> None:
    for name in ("gate", "up"):
        weights[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e25


def without_a_tensor(weights: dict[str, Any]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def shard_index(content: str) -> Callable[[Path], None]:
    """The weights in a shard, with this for an index."""

    def spoil(folder: Path) -> None:
        (folder / "model" / "model.safetensors").rename(folder / "model" / "model-00001-of-00001.safetensors")
        (folder / "model" / "model.safetensors.index.json").write_text(content)

    return spoil


def state_space_model(folder: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder / "model")


def adapter_folder(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "model"}))


def larger_vocabulary(folder: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"x{i}" for i in range(8)])
    tokenizer.save_pretrained(folder / "model")
    (folder / "texts/calibration.txt").write_text("x7 w3 w4 " * 300)


def other_tokenizer(folder: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["unused"])
    tokenizer.save_pretrained(folder / "other")


def no_tokenizer(folder: Path) -> None:
    for file in (folder / "model").glob("*token*"):
        file.unlink()


def foreign_plan(folder: Path) -> None:
    _write_plan(folder / "plan.json", intermediate_size=96)


def plan_of_other_weights(folder: Path) -> None:
    _write_plan(folder / "plan.json", initializer_range=0.2)


def foreign_journal(folder: Path) -> None:
    from adapruner.search.journal import open_study

    (folder / "run").mkdir()
    open_study(folder / "run", {"model": "0123456789abcdef"}, 1)


def file_in_place_of_the_run_folder(folder: Path) -> None:
    (folder / "run").write_text("a file")


def foreign_export_folder(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")


def sharded_checkpoint_that_runs_code(folder: Path) -> None:
    import os
    import pickle

    import torch

    class Runs:
        def __reduce__(self) -> Any:
            return os.system, ("touch PWNED",)

    (folder / "shards").mkdir()
    torch.save({}, folder / "shards" / "meta.pt")
    (folder / "shards" / ".metadata").write_bytes(pickle.dumps(Runs()))
