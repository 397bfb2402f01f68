"""What a configuration may have made: the table of what it may not is in ``tests/bad_inputs.py``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentParser, Namespace

from adapruner.cli import imports, main
from adapruner.cli.class_paths import class_faults, classes_in, find_class, installed_only, parser_of


class Engine:
    """Something with a value of every kind."""

    def __init__(
        self,
        size: int = 1,
        anything: Any = None,
        parts: list[Engine] | None = None,
        named: dict[str, Engine] | None = None,
        make: Callable[[int], Engine] | None = None,
        call: Callable | None = None,
    ) -> None:
        self.size = size


class Turbine(Engine):
    """A kind of it."""


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Engine, (Engine,)),
        (Engine | None, (Engine,)),
        (list[Engine] | Turbine | bool, (Engine, Turbine)),
        (dict[str, Engine], (Engine,)),
        (Callable[[Turbine], Engine | None], (Engine,)),
        (Callable, ()),
        (Literal["a"], ()),
        (str | int | None, ()),
        (Any, ()),
    ],
)
def test_classes_of_a_type(hint: Any, expected: tuple[type, ...]) -> None:
    assert classes_in(hint) == expected


def test_classes_outside_of_containers_alone() -> None:
    assert classes_in(list[Engine] | Turbine, items=False) == (Turbine,)


HERE = __name__


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{HERE}.Turbine", Turbine),
        ("Turbine", Turbine),
        (f"{HERE}.Enginee", f"expected a class of {HERE}, got 'Enginee'; did you mean {HERE}.Engine?"),
        ("os.system", "expected a subclass of Engine, got 'os.system'"),
        ("collections.OrderedDict", "expected a subclass of Engine, got 'collections.OrderedDict'"),
        ("no.such.Module", "expected the path of a class"),
        ("", "expected the path of a class"),
    ],
)
def test_a_class_is_found_or_what_is_wrong_with_it(path: str, expected: Any) -> None:
    found = find_class(path, (Engine,))
    assert found is expected if isinstance(expected, type) else str(found).startswith(expected)


SYSTEM = {"class_path": "os.system", "init_args": {"command": "true"}}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"size": 3}, ""),
        ({"parts": [{"class_path": f"{HERE}.Turbine"}]}, ""),
        ({"parts": [{"class_path": f"{HERE}.Turbine", "init_args": {"parts": [SYSTEM]}}]}, "parts.parts"),
        ({"parts": [SYSTEM]}, "parts"),
        ({"named": {"one": SYSTEM}}, "named"),
        ({"make": SYSTEM}, "make"),
        ({"make": sys.exit}, "make"),
        ({"call": SYSTEM}, "call"),
        ({"call": sys.exit}, "call"),
        ({"call": Engine(3)}, ""),
        ({"anything": SYSTEM}, ""),  # it stays a mapping: nothing is made of it
    ],
    ids=lambda given: re.sub(r" at 0x\w+", "", str(given)),
)
def test_faults_of_a_configuration(value: dict[str, Any], fault: str) -> None:
    lines = list(class_faults(parser_of(Engine), Namespace(value)))
    assert [line.split(":")[0] for line in lines] == ([fault] if fault else [])


def test_functions_of_what_the_command_line_imports_may_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(size: int) -> Engine:
        return Engine(size)

    config = Namespace(make=make, call={"class_path": f"{HERE}.anything"})
    assert len(list(class_faults(parser_of(Engine), config))) == 2
    monkeypatch.setattr(imports, "_IMPORTED", {HERE})
    assert list(class_faults(parser_of(Engine), config)) == []


def test_the_default_of_an_option_may_be_a_function() -> None:
    parser = ArgumentParser()
    parser.add_argument("--make", type=Callable[[int], Engine], default=find_class)
    assert list(class_faults(parser, Namespace(make=find_class))) == []


def test_modules_beside_a_configuration_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_it.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    with installed_only():
        assert str(find_class("beside_it.Any", ())).startswith("expected the path of a class")
        sys.path.append("/added/meanwhile")
    assert sys.path[:2] == ["", str(tmp_path)]
    assert sys.path[-1] == "/added/meanwhile"
    assert str(find_class("beside_it.Any", ())).startswith("expected a class of beside_it")


def test_only_weights_are_read_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    only, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(only, raising=False)
    monkeypatch.setenv(never, "1")
    before, seen = dict(os.environ), []

    def run(arguments: Any) -> None:
        seen.append((os.environ.get(only), os.environ.get(never)))
        os.environ["PL_GLOBAL_SEED"] = "7"

    monkeypatch.setattr("adapruner.cli._run", run)
    main([])
    assert seen == [("1", None)]
    assert dict(os.environ) == before
