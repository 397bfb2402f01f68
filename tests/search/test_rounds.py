"""Several rounds in one run: the budget is met on what is really there, the plans of all rounds are one, a kill costs no round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner import stages
from adapruner.errors import BudgetError, ConfigurationError, StudyError
from adapruner.export.verification import verify_export
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model, pruned
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.search import find_plan as find_module
from adapruner.search import rounds as rounds_module
from adapruner.search.rounds import join_plans
from tests.models.families import conformance
from tests.models.families.table import ROWS, build
from tests.tiny import random_windows, tiny_llama, word_tokenizer

FRACTION = 0.36
IDS = random_windows(4, 16, seed=3).input_ids
CALIBRATION = random_windows(12, 16, seed=1).input_ids


def dense() -> Any:
    return tiny_llama(intermediate_size=480, num_attention_heads=8, num_key_value_heads=4, hidden_size=64)


def prune(model: Any = None, **options: Any) -> adapruner.PruningResult:
    defaults: dict[str, Any] = {"calibration": CALIBRATION, "budget": FRACTION, "recipe": adapruner.Recipe({"taylor_second": 1.0})}
    return adapruner.prune(model or dense(), progress=False, **{**defaults, **options})


def searched(**options: Any) -> adapruner.PruningResult:
    space = adapruner.SearchSpace(metrics=["l2", "gate_fisher"])
    search = adapruner.SearchConfig(n_trials=5, chunks=2, random_sets=0, space=space)
    return prune(**{"recipe": None, "search": search, **options})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_two_plans_joined_are_one_after_the_other(row: Any) -> None:
    model, experts = build(row), ("kv_group", "expert") if "Mixtral" in row.name else ()
    structure = trace_structure(model, *experts)
    first = _plan_for(structure, seed=2)
    with pruned(model, structure, first):  # as in a round: the configuration is the dense one
        now = trace_structure(model, *experts)
        second = _plan_for(now, seed=3)
        with pruned(model, now, second):
            expected, count = conformance.logits(model), count_parameters(model)
    joined = join_plans(first, second, structure)
    joined.check(structure)
    prune_model(model, structure, joined)
    torch.testing.assert_close(conformance.logits(model), expected, rtol=0, atol=1e-6)
    assert joined.parameters["pruned"] == count_parameters(model) == count


def _plan_for(structure: Any, seed: int) -> Any:
    plan = conformance.plan_for(structure, "irregular", seed)
    least = {g.name: list(range(g.at_least)) for g in structure.groups if len(plan.kept[g.name]) < g.at_least}
    kept = {**plan.kept, **least}
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    left = {"pruned": structure.parameters - removed, "block_pruned": structure.block_parameters - removed}
    return replace(plan, kept=kept, parameters={**plan.parameters, **left})


@pytest.mark.parametrize("rounds", [2, 3])
def test_the_whole_budget_is_met_and_the_plan_is_for_the_dense_model(tmp_path: Path, rounds: int) -> None:
    model, untouched = dense(), dense()
    structure = trace_structure(untouched)
    result = prune(model, rounds=rounds)
    plan = result.plan
    assert plan.model["fingerprint"] == fingerprint_model(untouched)
    removed = structure.parameters - count_parameters(model)
    assert removed / structure.block_parameters == pytest.approx(FRACTION, abs=0.002)
    assert plan.pruned_fraction == pytest.approx(FRACTION, abs=0.002)
    shares = [entry["pruned_fraction"] for entry in plan.provenance["rounds"]]
    assert shares == pytest.approx([FRACTION * n / rounds for n in range(1, rounds)], abs=0.004)
    with masked(untouched, structure, plan):
        expected = logits(untouched)
    torch.testing.assert_close(logits(stages.apply(dense(), plan).model), expected, rtol=0, atol=1e-5)
    record = result.save(tmp_path / "out")
    assert verify_export(record.path, model, IDS).difference < 1e-4
    once = prune()
    assert once.plan.kept != plan.kept  # scores were taken again
    assert count_parameters(once.model) == pytest.approx(count_parameters(model), abs=0.004 * structure.block_parameters)
    assert "rounds" not in once.plan.provenance


def test_a_round_scores_what_the_one_before_has_left_and_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the rounds done by hand: prune and refit for good, score that model, prune it."""
    seen: list[Any] = []
    inner = rounds_module.score_model

    def score(model: Any, *rest: Any, **options: Any) -> Any:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return inner(model, *rest, **options)

    monkeypatch.setattr(rounds_module, "score_model", score)
    result, model = prune(rounds=2), dense()
    recipe = adapruner.Recipe({"taylor_second": 1.0})
    first = stages.score(model, None, CALIBRATION, FRACTION / 2, recipe=recipe)
    found = stages.search(first)
    stages.reconstruct(first, found)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(seen[0][name], value, rtol=0, atol=1e-6)
    left, whole = trace_structure(model), trace_structure(dense())
    rest = (round(whole.block_parameters * FRACTION) - (whole.parameters - left.parameters)) / left.block_parameters
    second = stages.search(stages.score(model, None, CALIBRATION, rest, recipe=recipe))
    assert join_plans(found.plan, second.plan, whole).kept == result.plan.kept
    assert result.plan.provenance["rounds"][0]["plan"] == found.plan.hash


def test_an_irregular_export_is_pruned_in_rounds_and_without_a_refit(tmp_path: Path) -> None:
    prune(budget=0.2).save(tmp_path / "first")
    word_tokenizer().save_pretrained(tmp_path / "first")
    left = trace_structure(adapruner.load(tmp_path / "first"))
    assert len({left.group(layer, "ffn").units for layer in range(left.layers)}) > 1
    again = prune(str(tmp_path / "first"), rounds=2, reconstruction=None)
    removed = left.parameters - count_parameters(again.model)
    assert removed / left.block_parameters == pytest.approx(FRACTION, abs=0.002)
    fewest = prune(str(tmp_path / "first"), rounds=2, budget=adapruner.Budget(parameters_left=int(0.7 * left.parameters)))
    assert count_parameters(fewest.model) == pytest.approx(0.7 * left.parameters, rel=0.002)


class Killed(BaseException):
    pass


@pytest.mark.slow  # three runs of two searches
def test_a_kill_in_the_second_round_does_not_redo_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = searched(rounds=2, folder=tmp_path / "whole", evaluation=IDS)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["model"]["pruned_fraction"] == pytest.approx(FRACTION, abs=0.002)
    assert {row["stage"] for row in report["perplexity"]} >= {"dense", "reconstructed"}
    inner, scored = find_module.run_search, list[str]()

    def search(model: Any, problem: Any, windows: Any, config: Any, folder: Path, identity: Any, on_trial: Any, **options: Any) -> Any:
        def shown(record: Any, best: Any) -> None:
            scored.append(folder.name)
            on_trial(record, best)
            if scored.count("round-2") == 3:
                raise Killed("here")

        return inner(model, problem, windows, config, folder, identity, shown, **options)

    with monkeypatch.context() as patch:
        patch.setattr(find_module, "run_search", search)
        with pytest.raises(Killed, match="here"):
            searched(rounds=2, folder=tmp_path / "killed", evaluation=IDS)
    assert scored == ["round-1"] * 5 + ["round-2"] * 3
    monkeypatch.setattr(rounds_module, "refit_if_better", lambda *_: pytest.fail("the first round is refitted again"))
    resumed = searched(rounds=2, folder=tmp_path / "killed", evaluation=IDS)
    assert resumed.outcome is not None
    assert resumed.outcome.resumed == 3
    assert resumed.plan.hash == unbroken.plan.hash
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    places = {path.parent.name for path in (tmp_path / "killed").rglob("study.journal")}
    assert places == {"round-1", "round-2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, r"^rounds: expected 1 or more, got 0; give 1 to prune once"),
        ({"rounds": 2, "remove_layers": 1}, r"^rounds: expected 1 with remove_layers or hidden_fraction, got 2; give 1, or do"),
        ({"rounds": 2, "attention_units": "query_head"}, r"^rounds: expected 1 with attention_units query_head, got 2"),
        ({"rounds": 2, "budget": adapruner.Budget(latency_ms=1.0)}, r"^rounds: expected 1 with a latency, got 2"),
        (
            {"rounds": 2, "recipe": adapruner.Recipe({"l2": 1.0}, bias_compensation=True)},
            r"^rounds: expected 1 with bias_compensation, got 2",
        ),
        (
            {"rounds": 2, "recipe": adapruner.Recipe({"l2": 1.0}, pruned_fraction=0.2)},
            r"^rounds: expected 1 with a pruned_fraction beside the budget's, got 2",
        ),
    ],
)
def test_what_cannot_be_done_in_rounds_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        prune(**options)


def test_a_plan_that_is_given_needs_no_rounds() -> None:
    plan = prune(rounds=2, reconstruction=None).plan
    again = prune(recipe=None, plan=plan, rounds=2, reconstruction=ReconstructionConfig())
    assert again.plan.hash == plan.hash


def test_what_has_to_stay_stays_over_all_rounds() -> None:
    budget = adapruner.Budget(0.35, keep_at_least=0.5)
    with pytest.raises(BudgetError, match=r"rounds: expected \d+ of \d+ units of .+ to stay, as budget.keep_at_least says"):
        prune(budget=budget, rounds=3)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_folder_holds_searches_of_one_number_of_rounds(tmp_path: Path, first: int, then: int) -> None:
    searched(rounds=first, folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigurationError, match=r"expected one without a search of (several rounds|one round)"):
        searched(rounds=then, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_budget_or_a_recipe_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    searched(rounds=2, folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StudyError, match="expected"):
        searched(rounds=2, folder=tmp_path, budget=0.2)
    with pytest.raises(ConfigurationError, match="expected one without the study of a search"):
        prune(folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
