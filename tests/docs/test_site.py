"""The site's own directives, and that each page has its place. The build itself is ``make docs``, where a warning is an error."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli.option_catalogue import read_catalogue

from .blocks import PAGES, ROOT

EXTENSIONS = sorted(path.stem for path in (ROOT / "docs" / "_extensions").glob("*.py"))
INDEX = PAGES["docs/index.md"]


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_every_page_is_in_the_index() -> None:
    listed = {line for part in re.findall(r"```{toctree}\n(.*?)```", INDEX, re.DOTALL) for line in part.splitlines() if line[:1].isalpha()}
    assert {Path(page).stem for page in PAGES if page.startswith("docs/")} - {"index", "results-remarks"} == listed


def test_every_option_of_fit_has_its_group_on_the_page() -> None:
    groups = [word for line in re.findall(r"```{options} (.*)", PAGES["docs/reference-options.md"]) for word in line.split()]
    heads = {name.split(".")[0] for name in read_catalogue("fit").options if "." in name}
    for name in read_catalogue("fit").options:
        head = name.split(".")[0]
        assert any(name == group or name.startswith(f"{group}.") for group in groups) or head not in heads, name


def test_the_fields_of_a_source_come_with_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.data.text_source import TextSource

    rows = {name: (default, text) for name, _, default, text in extension("option_pages", monkeypatch).field_rows(TextSource)}
    assert rows["split"][0] == "train"
    assert rows["chat"][1].startswith("Rows have messages")
    assert len(rows) == len(TextSource.__dataclass_fields__)


def test_a_field_without_a_docstring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import make_dataclass

    with pytest.raises(ValueError, match=r"Bare\.size has no docstring"):
        list(extension("option_pages", monkeypatch).field_rows(make_dataclass("Bare", [("size", int)])))


@pytest.mark.parametrize("name", EXTENSIONS)
def test_examples_in_the_extensions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctest.testmod(extension(name, monkeypatch)).failed == 0
