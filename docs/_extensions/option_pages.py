"""Directives for the reference of options, which is written from the program when the site is built.

- ``{options} GROUP ...``: options of ``fit`` whose names begin so, from ``adapruner/cli/options.json``, which a test compares with
  the parser; ``{options} *`` takes those of no group.
- ``{fields} MODULE.CLASS``: the fields of an item of a list, from the class and its docstrings.
- ``{arguments} MODULE``: what the ``make_parser`` of a command takes.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from typing import Any

import docstring_parser
from docutils import nodes
from docutils.nodes import make_id
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from adapruner.cli.option_catalogue import read_catalogue

#: Name, type, default and text of an option; the last three may be empty.
Row = tuple[str, str, str, str]


def option_list(rows: Iterable[Row], prefix: str) -> nodes.definition_list:
    """A list with an anchor for each option: ``#option-pruning-budget-of``."""
    listed = nodes.definition_list(classes=["options"])
    for name, kind, default, text in rows:
        about = "; ".join(part for part in (kind, f"default: {default}" if default else "") if part)
        term = nodes.term("", "", nodes.literal(text=name), ids=[make_id(f"{prefix}-{name}")])
        if about:
            term += nodes.inline("", f" ({about})")
        listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text=text or "No text.")))
    return listed


class Options(SphinxDirective):
    """Options of ``fit`` by the beginnings of their names."""

    required_arguments, optional_arguments = 1, 9

    def run(self) -> list[nodes.Node]:
        """The list."""
        catalogue, groups = read_catalogue("fit"), set(self.arguments)
        heads = {name.split(".")[0] for name in catalogue.options if "." in name}
        rows: list[Row] = []
        for name, option in catalogue.options.items():
            head = name.split(".")[0]
            if any(name == group or name.startswith(f"{group}.") for group in groups) or ("*" in groups and head not in heads):
                rows.append((name, option.type, option.default, option.text))
        if not rows:
            raise self.error(f"expected a group of options of fit, got {' '.join(self.arguments)}")
        return [option_list(rows, "option")]


class Fields(SphinxDirective):
    """Fields of a dataclass."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The list."""
        module, _, name = self.arguments[0].rpartition(".")
        return [option_list(field_rows(getattr(importlib.import_module(module), name)), name)]


def field_rows(kind: Any) -> Iterator[Row]:
    """Every field of a dataclass with its docstring.

    Raises:
        ValueError: if a field has none.
    """
    texts = {one.arg_name: one.description for one in docstring_parser.parse_from_object(kind).params}
    for field in fields(kind):
        if not texts.get(field.name):
            raise ValueError(f"{kind.__name__}.{field.name} has no docstring")
        default = "" if field.default is MISSING else "null" if field.default is None else str(field.default).lower()
        if field.default_factory is not MISSING:
            default = str(field.default_factory())
        yield field.name, str(field.type), default, plain(texts[field.name])


def plain(text: str) -> str:
    """A docstring's text without the marks of reStructuredText.

    >>> plain("One of ``a`` and :class:`b.C`.")
    'One of a and b.C.'
    """
    return " ".join(re.sub(r":[a-z:]+:`~?([^`]*)`", r"\1", text).replace("`", "").split())


class Arguments(SphinxDirective):
    """Options of a command that has an argparse parser of its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The list."""
        parser = importlib.import_module(self.arguments[0]).make_parser()
        return [option_list(argument_rows(parser), f"option-{parser.prog.split()[-1]}")]


def argument_rows(parser: argparse.ArgumentParser) -> Iterator[Row]:
    """Every argument with its help."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and action.dest != "help":
            name = ", ".join(action.option_strings) or str(action.metavar)
            value = str(action.metavar or "") if action.option_strings and action.nargs != 0 else ""
            yield f"{name} {value}".strip(), "", "", (action.help or "") % {**vars(action), "prog": parser.prog}


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    for name, directive in {"options": Options, "fields": Fields, "arguments": Arguments}.items():
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
