"""Napoleon for everything but attributes, whose docstrings are sentences.

Of "Optimizer steps: those of LoRA" below an attribute napoleon takes what stands before the colon for a type. So it is shown a stand-in
there, and the docstring comes back once it is through.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

_ATTRIBUTES = ("attribute", "property", "data")
_hidden: list[list[str]] = []


def hide(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon, whose priority is 500."""
    if what in _ATTRIBUTES:
        _hidden.append(list(lines))
        lines[:] = [""]


def show(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """After it."""
    if what in _ATTRIBUTES:
        lines[:] = _hidden.pop()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", hide, priority=499)
    app.connect("autodoc-process-docstring", show, priority=501)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
