"""Arguments of a wrong type: every public one, one line that names it; nothing is done before."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import adapruner
from adapruner import stages
from adapruner.argument_checks import check_between, check_fields, check_seed, check_type, got, typed, typed_as
from adapruner.calibration.choice import CalibrationChoice
from adapruner.callbacks import (
    CompressionReportCallback,
    LoRARecoveryCallback,
    PrunedExportCallback,
    PruningSearchCallback,
    RecoveryCheckpointCallback,
    ZeroShotEvaluationCallback,
)
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.errors import AdaPrunerError, ConfigurationError
from adapruner.evaluation.generation import Decoding
from adapruner.export.options import ExportOptions
from adapruner.search.config import RerankConfig
from tests.complaints import complaint
from tests.tiny import random_windows, tiny_llama

SOURCE = TextSource("mine", texts=["a text"])
#: Records -> what they need besides the field that is wrong.
RECORDS: dict[type, dict[str, Any]] = {
    adapruner.Allocation: {},
    adapruner.Budget: {},
    adapruner.EarlyStopConfig: {},
    adapruner.LoRAConfig: {},
    adapruner.ObjectiveConfig: {},
    adapruner.Recipe: {},
    adapruner.ReconstructionConfig: {},
    adapruner.RecoveryConfig: {},
    adapruner.ReportConfig: {},
    adapruner.SearchConfig: {},
    adapruner.SearchSpace: {},
    RerankConfig: {},
    CalibrationChoice: {},
    Decoding: {},
    ExportOptions: {},
    TextSource: {"name": "mine", "path": "a.txt"},
    CalibrationData: {"sources": [SOURCE]},
    SearchData: {"sources": [SOURCE]},
    RecoveryData: {"sources": [SOURCE]},
    EvaluationSet: {"name": "mine", "source": SOURCE},
}
MODULES: dict[type, dict[str, Any]] = {
    adapruner.PrunableCausalLM: {},
    adapruner.PruningDataModule: {"calibration": CalibrationData([SOURCE]), "search": SearchData([SOURCE])},
    PruningSearchCallback: {},
    LoRARecoveryCallback: {},
    RecoveryCheckpointCallback: {},
    ZeroShotEvaluationCallback: {},
    CompressionReportCallback: {},
    PrunedExportCallback: {},
}
COUNTS = {"dense": 100, "pruned": 90, "block_dense": 40, "block_pruned": 30}
PLAN = adapruner.PruningPlan({"name": "tiny"}, {"0.ffn": [0, 2, 3]}, {"0.ffn": 4}, COUNTS, {"of": "block", "pruned_fraction": 0.25})
MODEL, WINDOWS = tiny_llama(), random_windows(8, 16, seed=0).input_ids
FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    adapruner.prune: {"model": MODEL, "calibration": WINDOWS, "recovery": 1, "evaluation": WINDOWS},
    stages.score: {"model": MODEL, "calibration": WINDOWS},
    stages.apply: {"model": MODEL, "plan": PLAN},
    stages.recover: {"model": MODEL, "texts": WINDOWS},
    stages.evaluate: {"model": MODEL, "texts": WINDOWS},
    stages.export: {"model": MODEL, "folder": "out"},
    adapruner.load: {"folder": "out"},
    adapruner.read_plan: {},
}
#: Options behind ``**options`` -> the function that takes them, and what it is given.
OPTIONS: list[tuple[Callable[..., Any], str, Any]] = [
    *((adapruner.prune, name, "1") for name in ("remove_layers", "hidden_fraction", "statistics_batch_size", "seed", "search", "recipe")),
    *((adapruner.prune, name, 5) for name in ("layer_score", "attention_units", "ffn_units", "plan")),
    (adapruner.prune, "report", None),
    (adapruner.prune, "tokenizer", 5),
    (adapruner.prune, "progress", "no"),
    (stages.evaluate, "window", "a"),
    (stages.evaluate, "window", ["a"]),
    (stages.evaluate, "batch_size", True),
]


class Wrong:
    """A value of no type that anything takes."""


def arguments(functions: Mapping[Any, Any], skipped: tuple[str, ...] = ()) -> list[Any]:
    found = []
    for function in functions:
        named = fields(function) if function in RECORDS else inspect.signature(function).parameters.values()
        for parameter in named:
            if getattr(parameter, "kind", None) is not inspect.Parameter.VAR_KEYWORD and parameter.name not in skipped:
                found.append(pytest.param(function, parameter.name, id=f"{function.__name__}-{parameter.name}"))
    return found


def refusal(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    with pytest.raises(AdaPrunerError, match=r"expected .*, got ") as caught:
        function(**given)
    (line,) = str(caught.value).splitlines()
    assert "; " in line
    return line


@pytest.mark.parametrize(("record", "name"), arguments(RECORDS))
def test_every_field_of_every_record(record: type, name: str) -> None:
    assert name in refusal(record, {**RECORDS[record], name: Wrong()})


@pytest.mark.parametrize(("module", "name"), arguments(MODULES, ("calibration", "tokenizer", "prefix", "held_out")))
def test_every_argument_of_modules_and_callbacks(module: type, name: str) -> None:
    assert name in refusal(module, {**MODULES[module], name: Wrong()})


@pytest.mark.parametrize(("function", "name"), arguments(FUNCTIONS, ("device_map",)))
def test_every_argument_of_functions(function: Callable[..., Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(function, {**FUNCTIONS[function], name: Wrong()})
    assert name.removeprefix("recovery_").removesuffix("s") in line or (name, "windows") == ("texts", "windows"), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("function", "name", "value"), OPTIONS)
def test_options_and_values_that_almost_are_one(function: Callable[..., Any], name: str, value: Any) -> None:
    assert name in refusal(function, {**FUNCTIONS[function], name: value})


def test_an_export_of_a_size_that_is_none(tmp_path: Path) -> None:
    model = tiny_llama()
    found = adapruner.prune(model, calibration=WINDOWS, recipe=adapruner.Recipe(), reconstruction=None, progress=False)
    for name, value in {"max_shard_size": "x", "dtype": 5, "pad": "yes", "card": 3}.items():
        assert name in refusal(found.save, {"folder": tmp_path / "out", name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("1", int, "expected a whole number, got '1'"),
        (True, int, "expected a whole number, got True"),
        (1.5, int, "expected a whole number, got 1.5"),
        ("x", float | None, "expected a number or None, got 'x'"),
        (3, str | Path, "expected a path, got 3"),
        (["a", 3], list[str], "expected text, got 3"),
        ("a", list[str] | None, "expected a list or None, got 'a'"),
        ({"a": "b"}, dict[str, float], "expected a mapping, got {'a': 'b'}"),
        (3, Callable[[int], int], "expected a function, got 3"),
        (3, Literal["a", "b"], "expected 'a' or 'b', got 3"),
        (3, torch.Tensor, "expected a Tensor, got 3"),
        (3, adapruner.Allocation, "expected an Allocation, got 3"),
    ],
)
def test_what_is_said_of_a_value(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(f'argument: {message}; give one')}$"):
        check_type("argument", value, hint)


def test_a_number_that_cannot_be_shown_is_no_error_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="expected text, got a value of int that cannot be shown"):
        check_type("argument", 10**5000, str)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, float),
        ((1, 2), list[int]),
        ({"a": 1}, Mapping[str, float]),
        (None, int | None),
        (print, Callable),
    ],
)
def test_what_passes(value: Any, hint: Any) -> None:
    assert complaint(check_type, "argument", value, hint) is None


def test_seeds_and_bounds() -> None:
    assert complaint(check_seed, "seed", 0) is complaint(check_seed, "seed", 2**32 - 1) is None
    for seed in (-1, 2**32, 1.0, True, "0"):
        with pytest.raises(ConfigurationError, match=r"seed: expected a whole number from 0 to 2\*\*32 - 1, got"):
            check_seed("seed", seed)
    for value in (float("nan"), float("inf"), -1, 11, "1"):
        with pytest.raises(ConfigurationError, match=r"x: expected a number from 0 to 10, got"):
            check_between("x", value, 0, 10)


def test_a_wrapped_function_is_the_same_to_whoever_looks() -> None:
    @typed
    def add(one: int, two: int = 2) -> int:
        """Adds."""
        return one + two

    assert add(1) == 3
    assert str(inspect.signature(add)) == "(one: 'int', two: 'int' = 2) -> 'int'"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        add()  # type: ignore[call-arg]
    named: Any = typed_as("sum.")(add)
    with pytest.raises(ConfigurationError, match=r"^sum\.two: "):
        named(1, "2")
    assert got("x" * 100).endswith("...")
    check_fields(adapruner.Budget())


def test_a_run_leaves_pythons_own_random_numbers_alone() -> None:
    """In a process of its own: it is the first import of a library that moves them."""
    import subprocess
    import sys

    code = (
        "import random, torch; random.seed(0); before = random.getstate(); import adapruner; from adapruner.progress import announce;"
        "announce('x'); assert random.getstate() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    state = random.getstate()
    adapruner.prune(tiny_llama(), calibration=WINDOWS, recipe=adapruner.Recipe(), reconstruction=None)
    assert random.getstate() == state
