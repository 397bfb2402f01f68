"""A user's own file with a member of every kind, through ``fit`` and ``export``, and from Python."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapruner.cli import main
from adapruner.cli.imports import import_all
from adapruner.data.text_source import TextSource, read_documents
from adapruner.errors import AdaPrunerError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.families import family_of
from adapruner.models.loading import load_language_model
from adapruner.models.tracing import trace_structure
from adapruner.pruning.budget import Budget
from adapruner.pruning.depth_and_width import DepthWidthConfig
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.recipe import Recipe
from adapruner.registry import Registry
from adapruner.search.config import SearchConfig
from adapruner.search.objectives import ObjectiveConfig
from adapruner.search.options import pruning_options
from adapruner.search.space import SearchSpace
from adapruner.stages import apply, score, search
from tests.tiny import random_windows

from .conftest import REGISTRIES

OPTIONS = """
budget: {pruned_fraction: 0.3, of: channels}
reconstruction: null
search:
  n_trials: 9
  sampler: quasi_random
  objective: {measure: bits}
  random_sets: 0
  space: {metrics: [l2, input_norm]}
"""
FIT = ["fit", "--import", "my_extensions.py", "--config", "tiny.yaml"]


def write_config(old: str = "", new: str = "") -> None:
    """``tiny.yaml``: the workspace's configuration with the names of one's own."""
    config = yaml.safe_load(Path("base.yaml").read_text())
    config["data"]["calibration"]["sources"] = [{"name": "books", "kind": "lines", "options": {"file": "texts/calibration.txt"}}]
    config |= {"pruning": yaml.safe_load(OPTIONS.replace(old, new)), "recovery": None}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))


def read_trials(run: Path) -> list[dict[str, str]]:
    with (run / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def removed_channels(plan: PruningPlan, model: Any) -> float:
    """Counted from the plan alone: a head of the tiny model's KV group has 2 x 8 channels, an FFN unit one."""
    sizes = {g.name: g.channels_per_unit for g in trace_structure(model).groups}
    whole = sum(plan.units[name] * size for name, size in sizes.items())
    return sum((plan.units[name] - len(plan.kept[name])) * size for name, size in sizes.items()) / whole


def test_fit_and_export_with_members_of_ones_own(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    main(FIT)
    run, own = workspace / "run", sys.modules["my_extensions"]
    report, trials = json.loads((run / "report.json").read_text()), read_trials(run)

    # The source: its lines were the calibration text.
    assert next(s for s in report["data"]["sets"] if s["role"] == "calibration")["sources"] == ["books: lines, file texts/calibration.txt"]
    # The metric: tried alone, and it prunes otherwise than L2.
    alone = {row["name"]: row for row in trials if row["name"] in ("l2", "input_norm")}
    assert alone["input_norm"]["plan_hash"] != alone["l2"]["plan_hash"]
    assert any("input_norm" in name for name in trials[0])  # a dimension of the search
    # The sampler: asked for each trial, with a seed of its own.
    assert len(set(own.ASKED)) == len(own.ASKED) >= sum(row["name"] == "searched" for row in trials) > 0
    # The objective: the winner's value is its NLL in bits.
    plan = read_plan(run / "plan.json")
    assert report["search"]["judged"] == "NLL in bits per token of the model as pruned"
    assert report["search"]["dense_value"] is None
    # The budget unit: the plan removes 30 % of the channels.
    assert plan.budget == {"pruned_fraction": 0.3, "of": "channels"}
    assert removed_channels(plan, load_language_model("model")) == pytest.approx(0.3, abs=0.002)
    # The row of the cost table: 3 layers of 2 norms and the last one, 32 wide.
    assert [report["cost"][which]["norm_parameters"] for which in ("dense", "pruned")] == [7 * 32] * 2
    assert "parameters of norms" in (run / "report.html").read_text()
    assert "parameters of norms" in capsys.readouterr().out

    main(["export", "run", "names.txt", "--import", "my_extensions.py", "--format", "names"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set((workspace / "names.txt").read_text().splitlines())
    assert f"wrote {workspace / 'names.txt'} with the names of the files" in capsys.readouterr().out


def test_the_objective_is_what_trials_are_judged_by(workspace: Path) -> None:
    import_all(["my_extensions.py"])
    tokens = random_windows(16, 16, seed=1).input_ids
    values = {}
    for measure in ("nll", "bits"):
        config = SearchConfig(n_trials=3, random_sets=0, objective=ObjectiveConfig(measure, refit="never"), space=SearchSpace(["l2"]))
        scored = score("model", calibration=tokens, search=config, reconstruction=None)
        found = search(scored)
        assert found.outcome is not None
        values[measure] = found.outcome.best.value
        pruned = apply(scored.model, found)
        in_nats = evaluate_nll(pruned.model, scored.data.search_windows).nll
        assert values[measure] == pytest.approx(in_nats if measure == "nll" else in_nats / math.log(2))
    assert values["bits"] == pytest.approx(values["nll"] / math.log(2))


def test_an_own_score_decides_which_layers_go(workspace: Path) -> None:
    recipe = ["--pruning.recipe={coefficients: {input_norm: 1.0}}", "--pruning.reconstruction=null", "--pruning.budget.pruned_fraction=0.5"]
    layers = ["--pruning.remove_layers=1", "--pruning.layer_score=by_place"]
    rest = ["--recovery=null", "--report=null", "--export=null"]
    main(["fit", "--import=my_extensions.py", "--config=base.yaml", *recipe, *layers, *rest])
    plan = read_plan(workspace / "run" / "plan.json")
    assert plan.removed_layers == [0]  # Block Influence would take the last
    assert plan.recipe is not None
    assert plan.recipe["coefficients"] == {"input_norm": 1.0}
    assert yaml.safe_load((workspace / "run" / "config.yaml").read_text())["pruning"]["layer_score"] == "by_place"


def test_python_takes_the_names(workspace: Path) -> None:
    import_all(["my_extensions.py"])
    space = SearchSpace(metrics=["l2", "input_norm"])
    assert SearchConfig(sampler="quasi_random", objective=ObjectiveConfig(measure="bits", cost="channels"), space=space).space is space
    assert Budget(0.3, of="channels").of == "channels"
    assert Recipe({"input_norm": 1.0}).coefficients == {"input_norm": 1.0}
    assert DepthWidthConfig(1, layer_score="by_place").layer_score == "by_place"
    assert pruning_options(remove_layers=1, layer_score="by_place").depth_width.layer_score == "by_place"
    source = TextSource("books", kind="lines", options={"file": "texts/search.txt"}, documents=2)
    expected = [line for line in (workspace / "texts" / "search.txt").read_text().splitlines(keepends=True) if line.strip()]
    assert [(d.name, d.text) for d in read_documents(source)] == [("line 0", expected[0]), ("line 2", expected[1])]
    assert family_of("gptj").ffn_name == "n_inner"


@pytest.mark.parametrize(("registry", "name"), REGISTRIES.values(), ids=REGISTRIES)
def test_an_unknown_name_lists_ones_own(workspace: Path, registry: Registry[Any], name: str) -> None:
    assert name not in registry
    import_all(["my_extensions.py"])
    with pytest.raises(AdaPrunerError, match=rf"the option: expected a known {registry.kind}, got 'no such'; .*Known: .*\b{name}\b"):
        registry.find("no such", "the option")


def test_an_unknown_name_on_the_command_line_lists_ones_own(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config("sampler: quasi_random", "sampler: quasi_randm")
    with pytest.raises(SystemExit, match=r"^2$"):
        main(FIT)
    said = capsys.readouterr().err
    assert "search.sampler: expected a known sampler, got 'quasi_randm'; did you mean 'quasi_random'? Known: " in said
    assert len(said.splitlines()) == 1
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["export", "run", "names.txt", "--import", "my_extensions.py", "--format", "nams"])
    assert "format: expected a known export format, got 'nams'; did you mean 'names'? Known: " in capsys.readouterr().err


def test_without_the_file_nothing_of_it_is_known(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit", "--config", "tiny.yaml"])
    assert "expected a known" in capsys.readouterr().err
    assert not (workspace / "run").exists()
