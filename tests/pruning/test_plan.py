"""The plan's record: what is read is what was written, or it is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner.errors import PlanError
from adapruner.files.digests import sealed
from adapruner.models.tracing import trace_structure
from adapruner.pruning.plan import PruningPlan, read_plan
from tests.oracles.surgery import plan_of

PLAN = PruningPlan(
    model={"name": "m", "model_type": "llama", "fingerprint": "abc"},
    kept={"0.attention": [0, 2], "0.ffn": [1, 2, 3], "1.attention": [1, 3], "1.ffn": [0, 1, 2]},
    units={"0.attention": 4, "0.ffn": 5, "1.attention": 4, "1.ffn": 5},
    parameters={"dense": 100, "pruned": 70, "block_dense": 60, "block_pruned": 30},
    budget={"pruned_fraction": 0.5, "of": "block"},
    recipe={"coefficients": {"l2": 1.0}},
    provenance={"seed": 3},
)


def test_round_trip_through_a_file(tmp_path: Any) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == PLAN
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]


def test_derived_figures() -> None:
    assert PLAN.pruned_fraction == 0.5
    assert replace(PLAN, budget={"pruned_fraction": 0.3, "of": "all"}).pruned_fraction == pytest.approx(0.3)
    assert PLAN.widths("attention") == [2, 2]
    assert PLAN.is_uniform()
    assert not replace(PLAN, kept={**PLAN.kept, "1.ffn": [0]}).is_uniform()


def test_hash_says_which_units_of_which_model() -> None:
    backwards = dict(reversed(PLAN.kept.items()))
    assert replace(PLAN, kept=backwards, provenance={}, recipe={}).hash == PLAN.hash
    assert replace(PLAN, kept={**PLAN.kept, "0.ffn": [0, 2, 3]}).hash != PLAN.hash
    assert replace(PLAN, model={**PLAN.model, "fingerprint": "other"}).hash != PLAN.hash


def test_output_bias_is_written_and_hashed_only_when_true(tmp_path: Any) -> None:
    assert PLAN.hash == "912a7d2e41a562dd"  # as before there was the switch
    assert "output_bias" not in PLAN.to_dict()
    assert read_plan({**PLAN.to_dict(), "output_bias": False}) == PLAN
    biased = replace(PLAN, output_bias=True)
    assert biased.to_dict()["output_bias"] is True
    assert biased.hash != PLAN.hash
    biased.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == biased
    without = {key: value for key, value in biased.to_dict().items() if key != "output_bias"}
    for changed in (without, {**PLAN.to_dict(), "output_bias": True}):
        with pytest.raises(PlanError, match=r"the plan was changed; restore it or search again"):
            read_plan(changed)


def test_layers_and_hidden_channels_are_written_and_hashed_only_when_used(tmp_path: Any) -> None:
    assert not {"removed_layers", "kept_hidden"} & set(PLAN.to_dict())
    assert read_plan({**PLAN.to_dict(), "removed_layers": [], "kept_hidden": None}) == PLAN
    whole = {"1.attention": [0, 1, 2, 3], "1.ffn": [0, 1, 2, 3, 4]}
    plans = [
        replace(PLAN, kept={**PLAN.kept, **whole}),
        replace(PLAN, kept={**PLAN.kept, **whole}, removed_layers=[1]),
        replace(PLAN, kept={**PLAN.kept, **whole}, kept_hidden=[1]),
        replace(PLAN, kept_hidden=[0, 2, 3]),
        replace(PLAN, kept_hidden=[0, 2, 4], output_bias=True),
    ]
    assert len({plan.hash for plan in [PLAN, *plans]}) == 6
    for plan in plans:
        plan.save(tmp_path / "plan.json")
        assert read_plan(tmp_path / "plan.json") == plan
    assert [plan.cuts_depth_or_width for plan in plans] == [False, True, True, True, True]
    short = plans[1]
    assert short.kept_layers() == [0]
    assert short.widths("ffn") == [3, 0]
    assert short.is_uniform()
    assert not plans[0].is_uniform()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed_layers": [2]}, r"expected removed_layers to be some, sorted, of the 2 layers and not all, got others"),
        ({"removed_layers": [0, 1]}, r"expected removed_layers to be some, sorted, of the 2 layers and not all"),
        ({"removed_layers": [True]}, r"expected removed_layers to be some, sorted, of the 2 layers and not all"),
        ({"removed_layers": None}, r"expected removed_layers to be some, sorted, of the 2 layers and not all"),
        ({"removed_layers": [1]}, r"expected kept\.1\.attention of a removed layer to have all units, got fewer; restore"),
        ({"kept_hidden": []}, r"expected kept_hidden to be sorted channel indices, or null, got others; restore"),
        ({"kept_hidden": [2, 1]}, r"expected kept_hidden to be sorted channel indices, or null"),
        ({"kept_hidden": [0, -1]}, r"expected kept_hidden to be sorted channel indices, or null"),
        ({"kept_hidden": 3}, r"expected kept_hidden to be sorted channel indices, or null"),
        ({"kept_hidden": [1, 2]}, r"the plan was changed; restore it or search again"),
        ({"output_bias": 1}, r"expected output_bias to be true or false, got 1; restore the file"),
        ({"output_bias": None}, r"expected output_bias to be true or false, got None; restore the file"),
        ({"version": 9}, r"expected version 1, got 9"),
        ({"kept": None}, r"expected the field 'kept' to be an object, got None"),
        ({"parameters": {**PLAN.parameters, "pruned": 0}}, r"expected parameters\.pruned to be a positive integer, got 0"),
        ({"parameters": {**PLAN.parameters, "dense": True}}, r"expected parameters\.dense to be a positive integer, got True"),
        ({"units": {"0.attention": 4}}, r"'kept' and 'units' to name the same groups"),
        ({"kept": {**PLAN.kept, "0.ffn": [3, 1]}}, r"kept\.0\.ffn to be sorted unit indices below 5"),
        ({"kept": {**PLAN.kept, "0.ffn": [1, 5]}}, r"kept\.0\.ffn to be sorted unit indices below 5"),
        ({"kept": {**PLAN.kept, "0.ffn": [True]}}, r"kept\.0\.ffn to be sorted unit indices below 5"),
        ({"units": {**PLAN.units, "1.ffn": 0}}, r"units\.1\.ffn to be a positive integer, got 0"),
        ({"kept": {**PLAN.kept, "0.ffn": [0, 1, 2]}}, r"the plan was changed; restore it or search again"),
        ({"hash": "0"}, r"got '0': the plan was changed"),
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan({**PLAN.to_dict(), **change})


@pytest.mark.parametrize("group", ["ffn", "x.ffn", "0.mlp", "0", "-1.ffn", "\u00b2.ffn"])
def test_group_names_are_checked(group: str) -> None:
    record = {**PLAN.to_dict(), "kept": {group: [0]}, "units": {group: 2}}
    with pytest.raises(PlanError, match=r"expected group names like '3\.attention', got"):
        read_plan(record)


def test_widths_are_in_the_order_of_layers() -> None:
    kept = {f"{layer}.ffn": list(range(layer + 1)) for layer in (10, 2, 0)}
    assert replace(PLAN, kept=kept).widths("ffn") == [1, 3, 11]


def test_a_plan_is_checked_against_a_model(tiny_model: Any) -> None:
    structure = trace_structure(tiny_model("llama"))
    plan = plan_of(structure, {"0.ffn": [1]})
    plan.check(structure)
    plan.check(structure, plan.model["fingerprint"])
    replace(plan, model={"name": "tiny"}).check(structure, "beef")  # a plan without a fingerprint goes by its groups
    with pytest.raises(PlanError, match=r"expected a plan for the model with fingerprint beef, got one for 'tiny' \(f00d\)"):
        plan.check(structure, "beef")
    with pytest.raises(PlanError, match=r"expected removed_layers to be some of this model's 3 layers and not all, got \[3\]"):
        replace(plan, removed_layers=[3]).check(structure)
    with pytest.raises(PlanError, match=r"expected units 4 in group '2\.attention' of this model, got None"):
        plan_of(trace_structure(tiny_model("llama", num_hidden_layers=2)), {}).check(structure)


def test_files_that_are_no_plan(tmp_path: Any) -> None:
    with pytest.raises(PlanError, match="expected a readable file, got No such file"):
        read_plan(tmp_path / "missing.json")
    torn = tmp_path / "torn.json"
    torn.write_text(json.dumps(PLAN.to_dict())[:-20])
    with pytest.raises(PlanError, match="expected JSON, got damage"):
        read_plan(torn)
    for damage in (b"", b"\xff\xfe\x00", b"[" * 100_000):
        torn.write_bytes(damage)
        with pytest.raises(PlanError, match=r"plan .*torn\.json: expected JSON, got damage"):
            read_plan(torn)
    torn.write_text("[1]")
    with pytest.raises(PlanError, match="expected a JSON object, got list"):
        read_plan(torn)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from([*sorted(PLAN.to_dict()), "output_bias", "removed_layers", "kept_hidden"]), value=JSON, biased=st.booleans())
def test_any_change_is_refused_or_harmless(key: str, value: Any, biased: bool) -> None:
    """Whatever stands in a field: a one-line PlanError, or a plan that cuts exactly the same units."""
    plan = replace(PLAN, output_bias=biased)
    try:
        read, message = read_plan({**plan.to_dict(), key: value}), ""
    except PlanError as caught:
        read, message = plan, str(caught)
    assert "\n" not in message
    assert (read.kept, read.units, read.output_bias) == (plan.kept, plan.units, biased)
    assert (read.removed_layers, read.kept_hidden) == ([], None)


FULL = replace(
    PLAN,
    parameters={"dense": 200, "pruned": 156, "block_dense": 98, "block_pruned": 54},
    unit_parameters={"0.attention": 6, "0.ffn": 5, "1.attention": 6, "1.ffn": 5},
    model={**PLAN.model, "weights": "0123"},
)


def falsified(**changes: Any) -> dict[str, Any]:
    """By somebody who makes a digest of it, too: the numbers still have to be those of the units."""
    record = json.loads(json.dumps(FULL.to_dict()))
    for path, value in changes.items():
        *inside, last = path.split("__")
        part = record
        for name in inside:
            part = part[name]
        part[last] = value
    return sealed(record)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters__block_pruned": 9}, r"expected parameters that the kept units have \(44 fewer in blocks\), got 89 fewer there"),
        ({"parameters__pruned": 20}, r"expected parameters that the kept units have .* and 180 in all"),
        ({"parameters__dense": 400}, r"expected parameters that the kept units have"),
        ({"parameters__block_dense": 980, "parameters__dense": 1082}, r"expected parameters that the kept units have"),
        ({"unit_parameters__0.ffn": 50}, r"expected parameters that the kept units have"),
        ({"unit_parameters": {"0.ffn": 5}}, r"expected unit_parameters and added_biases to be whole numbers"),
        ({"parameters__added_biases": "many"}, r"expected unit_parameters and added_biases to be whole numbers"),
        ({"budget__of": 3}, r"and budget\.of a name"),
    ],
)
def test_what_a_plan_says_of_its_size_is_checked_by_its_units(changes: dict[str, Any], message: str) -> None:
    assert read_plan(FULL.to_dict()) == FULL
    with pytest.raises(PlanError, match=message):
        read_plan(falsified(**changes))


@pytest.mark.parametrize("name", ["model", "budget", "recipe", "provenance", "unit_parameters"])
def test_a_plan_that_was_changed_anywhere_is_refused(name: str) -> None:
    record = FULL.to_dict()
    record[name] = {**record[name], "name": "other"} if name != "unit_parameters" else {}
    with pytest.raises(PlanError, match=r"plan: expected .*(the plan that was written, got another|parameters that the kept units have)"):
        read_plan(record)


def test_a_plan_is_checked_against_the_model_itself(tiny_model: Any) -> None:
    model = tiny_model("llama")
    structure = trace_structure(model)
    plan = plan_of(structure, {g.name: list(range(g.units)) for g in structure.groups})
    facts = {"dense": structure.parameters, "block_dense": structure.block_parameters}
    sound = replace(
        plan,
        model={"name": "m", "model_type": "llama", "fingerprint": "f", "weights": "w"},
        parameters={**facts, "pruned": structure.parameters, "block_pruned": structure.block_parameters},
        unit_parameters={g.name: g.parameters_per_unit for g in structure.groups},
    )
    sound.check(structure, "f", "w")
    for wrong, message in (
        (replace(sound, model={**sound.model, "weights": "v"}), r"expected a plan for the model with weights w, got one for 'm' \(v\)"),
        (replace(sound, model={**sound.model, "model_type": "opt"}), r"expected model\.model_type llama of this model, got opt"),
        (replace(sound, parameters={**sound.parameters, "dense": 5}), r"expected parameters\.dense \d+ of this model, got 5"),
        (replace(sound, unit_parameters={**sound.unit_parameters, "0.ffn": 1}), r"expected unit_parameters others of this model"),
    ):
        with pytest.raises(PlanError, match=message):
            wrong.check(structure, "f", "w")
