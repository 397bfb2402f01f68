from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from adapruner.errors import ConfigurationError
from adapruner.registry import Registry


def test_members_are_found_by_name_in_the_order_of_registration() -> None:
    colours: Registry[int] = Registry("colour")

    @colours.register("shade")
    def shade() -> int:  # type: ignore[misc]
        return 3

    colours.add("red", 1)
    assert colours.names() == ("shade", "red")
    assert colours.find("red") == 1
    assert colours.find("shade") is shade
    assert "red" in colours
    assert "blue" not in colours
    assert len(colours) == 2


def test_an_unknown_name_has_the_nearest_one_and_the_option() -> None:
    colours: Registry[int] = Registry("colour")
    colours.add("red", 1)
    with pytest.raises(ConfigurationError, match=r"paint\.colour: expected a known colour, got 'rad'; did you mean 'red'\? Known: red"):
        colours.find("rad", "paint.colour")


def test_a_taken_name_is_refused_and_can_be_given_up() -> None:
    colours: Registry[int] = Registry("colour")
    colours.add("red", 1)
    colours.add("red", 1)  # a module that is imported twice
    with pytest.raises(ConfigurationError, match="colour: expected a new name, got 'red', which is taken"):
        colours.add("red", 2)
    colours.remove("red")
    assert colours.add("red", 2) == 2


def test_shipped_modules_and_entry_points_are_loaded_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipped_colours"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from adapruner.registry import Registry\nCOLOURS = Registry('colour', __name__, 'tests.colours')\n"
    )
    (package / "green.py").write_text("from shipped_colours import COLOURS\nCOLOURS.add('green', 5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.metadata.EntryPoint(name="own", value="math:pi", group="tests.colours")
    monkeypatch.setattr("adapruner.registry.entry_points", lambda group: [own] if group == "tests.colours" else [])
    from shipped_colours import COLOURS  # type: ignore[import-not-found]

    assert "shipped_colours.green" not in sys.modules
    assert COLOURS.names() == ("green", "own")
    assert COLOURS.find("own") == pytest.approx(3.14159, abs=1e-4)


def test_shipped_names_come_first_and_sorted_whatever_was_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipped_shapes"
    package.mkdir()
    (package / "__init__.py").write_text("from adapruner.registry import Registry\nSHAPES = Registry('shape', __name__)\n")
    for name in ("square", "circle"):
        code = f"from shipped_shapes import SHAPES\n@SHAPES.add_class\nclass {name.title()}:\n    name = '{name}'\n"
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import shipped_shapes.square  # type: ignore[import-not-found]
    from shipped_shapes import SHAPES  # type: ignore[import-not-found]

    class Own:
        name = "own"

    assert SHAPES.add_class(Own) is Own
    assert SHAPES.names() == ("circle", "square", "own")
    assert isinstance(SHAPES.find("square"), shipped_shapes.square.Square)
    SHAPES.add_class(Own)  # the same class once more
    with pytest.raises(ConfigurationError, match="shape: expected a new name, got 'circle', which is taken"):
        SHAPES.add_class(type("Other", (), {"name": "circle"}))


def test_a_shipped_name_is_taken_before_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipped_tools"
    package.mkdir()
    (package / "__init__.py").write_text("from adapruner.registry import Registry\nTOOLS = Registry('tool', __name__)\n")
    (package / "hammer.py").write_text("from shipped_tools import TOOLS\n@TOOLS.register('hammer')\ndef hammer(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from shipped_tools import TOOLS  # type: ignore[import-not-found]

    with pytest.raises(ConfigurationError, match="tool: expected a new name, got 'hammer', which is taken"):
        TOOLS.add("hammer", print)


def test_a_member_that_is_refused_is_not_known() -> None:
    def check(member: int) -> None:
        if member < 0:
            raise ConfigurationError(f"number: expected 0 or more, got {member}; give 1")

    numbers: Registry[int] = Registry("number", check=check)
    with pytest.raises(ConfigurationError, match="number: expected 0 or more, got -1"):
        numbers.add("low", -1)
    assert numbers.names() == ()


def test_a_package_whose_member_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = importlib.metadata.EntryPoint(name="own", value="no_such_module:thing", group="tests.numbers")
    monkeypatch.setattr("adapruner.registry.entry_points", lambda group: [broken])
    with pytest.raises(ConfigurationError, match=r"number: expected to load 'no_such_module:thing', got ModuleNotFoundError: .*; mend or"):
        Registry("number", group="tests.numbers").names()
