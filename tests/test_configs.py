"""Every shipped configuration parses; the one for files of one's own runs, as it tells the reader to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from adapruner.cli import main
from adapruner.cli.fit import make_parser
from adapruner.cli.shipped_configs import CONFIGS, find_config, shipped_configs
from adapruner.compare.spec import make_spec, read_spec
from adapruner.demo import MODEL_FOLDER
from adapruner.demo.corpus import load_demo_corpus
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.tiny import tiny_llama

EVERY = sorted(file.relative_to(CONFIGS.resolve()).as_posix() for file in CONFIGS.resolve().rglob("*.yaml"))
OVERLAYS = [name for name in EVERY if "/" in name]
#: Neither a configuration of fit on its own: what a comparison reads, and what prune lays its options over.
APART = ["compare.yaml", "prune.yaml"]
NAMES = [name for name in EVERY if "/" not in name and name not in APART]


@pytest.fixture(scope="module")
def parser() -> Any:
    """The program's own parser of ``fit``; nothing is instantiated."""
    return make_parser("fit")


def test_the_count_is_known() -> None:
    assert NAMES == ["llama.yaml", "local.yaml", "quickstart.yaml", "qwen3.yaml", "smollm2-135m.yaml", "smollm2.yaml"]
    assert [
        *(f"ablations/{name}.yaml" for name in ("data-only", "metric-only", "no-allocation", "random-search", "sequential")),
        "baselines/flap-ul-um.yaml",
        "baselines/flap.yaml",
        "baselines/l2.yaml",
        *(f"baselines/llm-pruner-{form}.yaml" for form in ("first", "mix", "second", "vectorize")),
        "baselines/random.yaml",
        "baselines/wanda-sp-sequential.yaml",
        "baselines/wanda-sp.yaml",
    ] == OVERLAYS
    assert sorted(shipped_configs()) == EVERY == sorted([*NAMES, *OVERLAYS, *APART])


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
        made = parser.instantiate(Namespace({key: parsed[key] for key in ("model", "data", "trainer")}))
        assert made


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("base", ["quickstart.yaml", "llama.yaml"])
def test_an_overlay_fits_any_base_and_changes_the_method_alone(name: str, base: str, parser: Any) -> None:
    text = (CONFIGS / name).read_text()
    assert text.startswith(f"# python train.py fit --config quickstart.yaml --config {name}\n#\n")
    plain = parser.parse_args(["--config", find_config(base)]).as_dict()
    laid = parser.parse_args(["--config", find_config(base), "--config", find_config(name)]).as_dict()
    assert {key for key in plain if key != "config" and plain[key] != laid[key]} == {"pruning"}
    given = yaml.safe_load(text)
    assert set(given) == {"pruning"}
    (key,) = given["pruning"]
    assert key == ("recipe" if name.startswith("baselines/") else "search")
    assert {k for k in plain["pruning"] if plain["pruning"][k] != laid["pruning"][k]} == {key}
    changed = {k: v for k, v in laid["pruning"][key].items() if key == "search" and v != plain["pruning"][key][k]}
    assert changed.keys() <= given["pruning"][key].keys()


#: The published recipe of each baseline: metric, reduction over coupled tensors, over a head, allocation.
RECIPES = {
    "flap": ("flap", "sum", "mean", "gamma"),
    "flap-ul-um": ("flap", "sum", "sum", "uniform"),
    "l2": ("l2", "mean", "sum", "uniform"),
    "llm-pruner-first": ("taylor_first", "sum", "sum", "uniform"),
    "llm-pruner-mix": ("taylor_mix", "sum", "sum", "uniform"),
    "llm-pruner-second": ("taylor_second", "sum", "sum", "uniform"),
    "llm-pruner-vectorize": ("taylor_vectorize", "sum", "sum", "uniform"),
    "random": ("random", "sum", "sum", "uniform"),
    "wanda-sp": ("wanda_sp", "sum", "sum", "uniform"),
    "wanda-sp-sequential": ("wanda_sp", "sum", "sum", "uniform"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_baseline_is_the_published_recipe(name: str, parser: Any) -> None:
    recipe = parser.parse_args(
        ["--config", find_config("quickstart.yaml"), "--config", find_config(f"baselines/{name}.yaml")]
    ).pruning.recipe
    metric, reduction, head_reduction, allocation = RECIPES[name]
    assert dict(recipe.coefficients) == {metric: 1.0}
    assert (recipe.reduction, recipe.head_reduction, recipe.allocation.method) == (reduction, head_reduction, allocation)
    assert recipe.calibration.source_weights is None
    assert recipe.sequential == (name == "wanda-sp-sequential")
    assert recipe.allocation.per == ("unit" if name == "flap" else "cost")
    usual = ("mean", "model", "reduce_first", False)
    own = {"flap": ("standardise", "layer", "normalise_first", True), "flap-ul-um": ("none", "model", "reduce_first", True)}
    assert (recipe.normaliser, recipe.scope, recipe.score_order, recipe.bias_compensation) == own.get(name, usual)


def test_what_each_ablation_leaves_to_the_search(parser: Any) -> None:
    """By the dimensions that a trial is asked for."""
    from adapruner.calibration.pool import CalibrationGroups, CalibrationPool

    class Asked:
        def __init__(self) -> None:
            self.names: set[str] = set()

        def suggest_float(self, name: str, low: float, high: float) -> float:
            if low < high:
                self.names.add(name.split("/")[0])
            return low

        def suggest_int(self, name: str, low: int, high: int) -> int:
            return int(self.suggest_float(name, low, high))

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            if len(choices) > 1:
                self.names.add(name)
            return choices[0]

    pool = CalibrationPool(CalibrationGroups(("books", "code"), torch.tensor([0, 0, 1, 1])))
    searched, settings = {}, {}
    for name in ("quickstart.yaml", *(n for n in OVERLAYS if n.startswith("ablations/"))):
        parsed = parser.parse_args(["--config", find_config("quickstart.yaml"), "--config", find_config(name)])
        search = parser.instantiate(parsed).pruning.options.search
        asked = Asked()
        search.space.suggest(asked, pool)
        searched[Path(name).stem], settings[Path(name).stem] = asked.names, (search.sampler, search.order)
    whole = {"source", "metric", "reduction", "gamma", "log_head_multiplier"}
    assert searched["quickstart"] == searched["random-search"] == searched["sequential"] == whole
    assert searched["no-allocation"] == {"source", "metric", "reduction"}
    assert searched["metric-only"] == {"metric", "reduction"}
    assert searched["data-only"] - {"metric"} == {"source"}  # the one metric's coefficient changes nothing
    others = {name: value for name, value in settings.items() if value != ("tpe", "joint")}
    assert others == {"random-search": ("random", "joint"), "sequential": ("tpe", "data_first")}


def test_the_shipped_comparison_is_one() -> None:
    text = (CONFIGS / "compare.yaml").read_text()
    assert text.startswith("# adapruner compare --config compare.yaml\n#\n")
    spec = make_spec(read_spec(str(CONFIGS / "compare.yaml")), find_config)
    assert [m.name for m in spec.methods][:2] == ["adapruner", "random"]
    assert (len(spec.methods), len(spec.budgets), len(spec.seeds)) == (7, 3, 3)
    assert f"{len(spec.methods)} methods at {len(spec.budgets)} budgets with {len(spec.seeds)} seeds" in text


def test_llamas_budget_is_the_published_size() -> None:
    """5,422,977,024 parameters, 24 of 32 heads and 8256 of 11008 channels in layers 4 to 29 (arXiv 2305.11627)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from adapruner.models.tracing import trace_structure

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # whose defaults are LLaMA-7B's
    structure = trace_structure(model)
    budget = Budget(**yaml.safe_load((CONFIGS / "llama.yaml").read_text())["pruning"]["budget"])
    assert structure.parameters == 6_738_415_616
    assert structure.parameters - budget.costs(structure).remove == 5_422_977_024
    scores = {group.name: torch.arange(group.units).float() for group in structure.groups}
    kept = allocate(scores, structure, budget, Allocation("uniform"))
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
