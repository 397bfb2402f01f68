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
