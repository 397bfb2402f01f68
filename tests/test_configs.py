"""Every shipped configuration parses; the one for files of one's own runs, as it tells the reader to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapruner.cli import CONFIGS, PruningCLI, main, shipped_configs
from adapruner.data.data_module import PruningDataModule
from adapruner.demo import MODEL_FOLDER
from adapruner.demo.corpus import load_demo_corpus
from adapruner.module import PrunableCausalLM
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.tiny import tiny_llama

NAMES = sorted(file.relative_to(CONFIGS.resolve()).as_posix() for file in CONFIGS.resolve().rglob("*.yaml"))


@pytest.fixture(scope="module")
def parser() -> Any:
    """The program's own parser of ``fit``; nothing is instantiated."""

    class Parsed(Exception):
        pass

    class ParseOnly(PruningCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Parsed

    command_line = ParseOnly.__new__(ParseOnly)
    with pytest.raises(Parsed, match=r"^$"):
        command_line.__init__(PrunableCausalLM, PruningDataModule, auto_configure_optimizers=False, args=["fit"])  # type: ignore[misc]
    return command_line._subcommand_parsers["fit"]


def test_the_count_is_known() -> None:
    assert NAMES == ["llama.yaml", "local.yaml", "quickstart.yaml", "qwen3.yaml", "smollm2.yaml"]
    assert sorted(shipped_configs()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_and_opens_with_its_command(name: str, parser: Any) -> None:
    text = (CONFIGS / name).read_text()
    assert text.startswith(f"# python train.py fit --config {name}")
    assert text.splitlines()[1] == "#"
    parsed = parser.parse_path(str(CONFIGS / name))
    given = yaml.safe_load(text)
    assert parsed.model.name_or_path == given["model"]["name_or_path"]
    assert parsed.pruning.budget.pruned_fraction == given["pruning"]["budget"]["pruned_fraction"]
    assert parsed.trainer.default_root_dir == f"runs/{Path(name).stem}"
    if name != "local.yaml":  # whose files are placeholders: made, every value is checked; hub names are not looked up
        for key in ("accelerator", "devices", "precision", "callbacks"):  # of a machine that this one need not be
            parsed.trainer[key] = "cpu" if key == "accelerator" else None
        made = parser.instantiate_classes({key: parsed[key] for key in ("model", "data")} | {"trainer": parsed.trainer})
        assert made


def test_llamas_budget_is_the_published_size() -> None:
    """5,422,977,024 parameters, 24 of 32 heads and 8256 of 11008 channels in layers 4 to 29 (arXiv 2305.11627)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from adapruner.anatomy.tracing import trace_anatomy

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # whose defaults are LLaMA-7B's
    anatomy = trace_anatomy(model)
    budget = Budget(**yaml.safe_load((CONFIGS / "llama.yaml").read_text())["pruning"]["budget"])
    assert anatomy.parameters == 6_738_415_616
    assert anatomy.parameters - budget.parameters_to_remove(anatomy) == 5_422_977_024
    scores = {group.name: torch.arange(group.units).float() for group in anatomy.groups}
    kept = allocate(scores, anatomy, budget, Allocation("uniform"))
    whole = [(32, 11008)] * 4, [(24, 8256)] * 26, [(32, 11008)] * 2
    assert [(len(kept[f"{i}.attention"]), len(kept[f"{i}.ffn"])) for i in range(32)] == [pair for part in whole for pair in part]


@pytest.mark.slow
def test_local_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    tokenizer.save_pretrained("my-model")
    tiny_llama(vocab_size=len(tokenizer), intermediate_size=320).save_pretrained("my-model")
    os.mkdir("my-texts")
    for number, document in enumerate(load_demo_corpus("test")[:160]):
        Path("my-texts", f"{number}.txt").write_text(document.text)
    fewer = ["--pruning.search.n_trials=8", "--trainer.max_steps=2", "--data.calibration.samples_per_source=8", "--data.search.samples=8"]
    fewer += ["--data.evaluation=[{name: mine, source: {name: mine, path: my-texts, part: [0.9, 1.0]}, limit: 4}]"]
    fewer += ["--report.compare=[l2]", "--report.latency_repeats=1", "--export.verify=false"]
    main(["fit", "--config", "local.yaml", "--model.name_or_path", "my-model/", *fewer])
    record = json.loads(Path("runs/local/report.json").read_text())
    assert record["model"]["name"] == "my-model/"
    assert record["model"]["pruned_fraction"] == pytest.approx(0.2, abs=0.002)
    assert record["search"]["trials"] == 8
    assert record["recovery"]["lora"]["steps"] == 2
    assert {row["stage"] for row in record["perplexity"]} == {"dense", "pruned", "reconstructed", "recovered"}
    assert (tmp_path / "runs/local/model/model.safetensors").is_file()
    config = yaml.safe_load(Path("runs/local/config.yaml").read_text())
    assert config["pruning"]["search"]["n_trials"] == 8
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "runs/local/report.html" in printed.out
