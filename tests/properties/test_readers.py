"""What readers make of damaged files: the record, a record that is still right, or one line; never a traceback, never a wrong record."""

from __future__ import annotations

import json
import math
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from adapruner.cli import main
from adapruner.cli.shipped_configs import shipped_configs
from adapruner.errors import PlanError, StudyError
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.search.journal import FILE, KILLED, SEAL, check_journal, fail_killed, open_study, seal_of
from adapruner.search.statistics_cache import read_or_collect

FEW = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
IDENTITY = {"model": "f00d", "space": {"metrics": ["l1", "l2"]}}


def one_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


def damage(content: bytes, at: int, change: str, byte: int) -> bytes:
    """One accident at one place: the rest lost, a byte changed, lost or doubled."""
    at %= len(content)
    return {
        "cut": content[:at],
        "change": content[:at] + bytes([byte]) + content[at + 1 :],
        "drop": content[:at] + content[at + 1 :],
        "double": content[: at + 1] + content[at:],
    }[change]


accidents = {"at": st.integers(0, 10**6), "change": st.sampled_from(["cut", "change", "drop", "double"]), "byte": st.integers(0, 255)}

# ------------------------------------------------------------------------------------------------------------------ plans
PLAN = PruningPlan(
    model={"name": "tiny", "model_type": "llama", "fingerprint": "0123456789abcdef"},
    kept={"0.attention": [0, 2], "0.ffn": [1, 3, 4], "1.attention": [], "1.ffn": [0, 5]},
    units={"0.attention": 4, "0.ffn": 6, "1.attention": 4, "1.ffn": 6},
    parameters={"dense": 1000, "pruned": 700, "block_dense": 800, "block_pruned": 500},
    budget={"pruned_fraction": 0.4, "of": "block"},
    recipe={"coefficients": {"l2": 1.0}},
    provenance={"seed": 0},
)
leaves = st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=True) | st.text(max_size=4)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4
)


def same_surgery(found: PruningPlan) -> None:
    """A plan that was let through cuts as the written one does: what the hash covers is what counts."""
    assert (found.kept, found.hash, found.output_bias) == (PLAN.kept, PLAN.hash, PLAN.output_bias)
    assert found.model["fingerprint"] == PLAN.model["fingerprint"]


@FEW
@given(**accidents)
def test_a_plan_file_after_an_accident(tmp_path_factory: pytest.TempPathFactory, at: int, change: str, byte: int) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged-plan.json"
    PLAN.save(file)
    file.write_bytes(damage(file.read_bytes(), at, change, byte))
    try:
        same_surgery(read_plan(file))
    except PlanError as error:
        one_line(error)


@settings(FEW, max_examples=150)
@given(path=st.integers(0, 10**6), value=values, remove=st.booleans())
def test_a_plan_with_another_value_somewhere(path: int, value: Any, remove: bool) -> None:
    record = PLAN.to_dict()
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    record = json.loads(json.dumps(record))
    walk(record)
    node, key = places[path % len(places)]
    if remove:
        del node[key]
    else:
        node[key] = value
    try:
        same_surgery(read_plan(record))
    except PlanError as error:
        one_line(error)


# ---------------------------------------------------------------------------------------------------------------- journals
@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    """A journal of five trials and what they were worth."""
    folder = tmp_path_factory.mktemp("journal")
    study = open_study(folder, IDENTITY, 1)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for index in range(5):
        trial = study.ask()
        trial.suggest_float("gamma", -1.0, 1.0)
        trial.suggest_categorical("metric", ["l1", "l2"])
        trial.set_user_attr("plan_hash", f"{index:016x}")
        state = TrialState.FAIL if index == 3 else TrialState.COMPLETE
        told = None if state == TrialState.FAIL else 2.0 + index / 7
        trial.set_user_attr(SEAL, seal_of(state.name, trial.params, told, f"{index:016x}"))
        study.tell(trial, told, state=state)
    return (folder / FILE).read_bytes(), [_outcome(t) for t in study.trials]


def _outcome(trial: Any) -> dict[str, Any]:
    return {"params": trial.params, "values": trial.values, "state": trial.state.name}


def reopened(folder: Path, content: bytes) -> list[dict[str, Any]]:
    """Outcomes of the trials that a search would go on with."""
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(content)
    (folder / f"{FILE}.lock").symlink_to(FILE)  # the killed writer held it
    check_journal(folder, IDENTITY)
    study = open_study(folder, IDENTITY, 1)
    fail_killed(study)
    return [_outcome(t) for t in study.get_trials(deepcopy=False) if t.state.is_finished() and KILLED not in t.user_attrs]


@FEW
@given(at=st.integers(0, 10**6))
def test_a_journal_that_a_kill_cut_off_goes_on_with_its_beginning(
    tmp_path_factory: pytest.TempPathFactory, journal: tuple[bytes, list[dict[str, Any]]], at: int
) -> None:
    content, outcomes = journal
    kept = reopened(tmp_path_factory.mktemp("cut"), content[: at % (len(content) + 1)])
    assert kept == outcomes[: len(kept)]


@settings(FEW, max_examples=120)
@given(**accidents)
def test_a_journal_after_an_accident(
    tmp_path_factory: pytest.TempPathFactory, journal: tuple[bytes, list[dict[str, Any]]], at: int, change: str, byte: int
) -> None:
    content, outcomes = journal
    try:
        kept = reopened(tmp_path_factory.mktemp("accident"), damage(content, at, change, byte))
    except StudyError as error:
        one_line(error)
        return
    assert all(one in outcomes for one in kept)  # a trial may be lost, none may say what it did not say


# -------------------------------------------------------------------------------------------------------------- statistics
@FEW
@given(at=st.integers(0, 10**6), garbage=st.binary(max_size=40))
def test_statistics_that_are_cut_off_are_collected_again(tmp_path_factory: pytest.TempPathFactory, at: int, garbage: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "statistics.safetensors"
    whole = {"first": torch.arange(12.0).reshape(3, 4), "second": torch.ones(5)}
    file.unlink(missing_ok=True)
    assert read_or_collect(file, "key", lambda: whole, write=True)[1] is False
    content = file.read_bytes()
    file.write_bytes(content[: at % len(content)] + garbage)
    again, from_file = read_or_collect(file, "key", lambda: whole, write=True)
    assert set(again) == set(whole)
    if from_file:  # only where the garbage made it as long as it was
        assert len(content[: at % len(content)] + garbage) == len(content)
    else:
        assert read_or_collect(file, "key", lambda: pytest.fail("it is there"), write=True)[1]


# ---------------------------------------------------------------------------------------------------------- configurations
TEXT = shipped_configs()["quickstart.yaml"].read_text()
words = st.text(string.ascii_letters + string.digits + " :-[]{}'\"#&*!|>%@`,\n\t\x00", max_size=12)


@settings(FEW, max_examples=12)
@given(line=st.integers(0, 10**6), word=words, whole=st.booleans())
def test_a_configuration_after_an_accident(
    tmp_path_factory: pytest.TempPathFactory, config_parser: Any, line: int, word: str, whole: bool
) -> None:
    lines = TEXT.splitlines()
    at = line % len(lines)
    lines[at] = word if whole else lines[at][: len(lines[at]) // 2] + word
    refused(tmp_path_factory.getbasetemp() / "damaged.yaml", "\n".join(lines), config_parser)


@settings(FEW, max_examples=12)
@given(group=st.sampled_from(["model", "data", "pruning", "recovery", "checkpoint", "report", "export", "trainer"]), value=values)
def test_a_configuration_with_another_value_somewhere(
    tmp_path_factory: pytest.TempPathFactory, config_parser: Any, group: str, value: Any
) -> None:
    record = yaml.safe_load(TEXT)
    record[group] = value
    refused(tmp_path_factory.getbasetemp() / "changed.yaml", yaml.safe_dump(record), config_parser)


@pytest.fixture(scope="module")
def config_parser() -> Any:
    from adapruner.cli.fit import make_parser

    return make_parser("fit")


def refused(file: Path, text: str, parser: Any) -> None:
    """Read, or refused by an ``ArgumentError``, of which the command line makes one line; nothing else comes out."""
    from argparse import ArgumentError

    file.write_text(text)
    with suppress(ArgumentError):
        parser.parse_args(["--config", str(file)])


NO_YAML = ["pruning: {search: {n_trials: [}}", "a: &b *b", "\x00", "trainer: !!python/object:os.system {}", "- 1", "trainer: 3"]


@pytest.mark.parametrize("text", NO_YAML)
def test_what_is_no_configuration_is_one_line_of_the_command_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "damaged.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit", "--config", str(file)])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if "error: " in line]) == 1


def test_the_seal_tells_values_apart() -> None:
    assert seal_of("COMPLETE", {"a": 1}, 2.0, "h") != seal_of("COMPLETE", {"a": 1}, math.nextafter(2.0, 3.0), "h")
    assert seal_of("COMPLETE", {"a": 1}, 2.0, "h") == seal_of("COMPLETE", {"a": 1}, [2.0], "h")
