"""A docstring names classes and functions that have no entry on the site: of internal modules, of torch, of lightning.

Each is looked up by importing it. What is there stands as its name, without a link; what is not there stays a warning, so that a
misspelt or removed name is found.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: Packages that the short name of an annotation (``Tensor``, ``Budget``) may be imported from, or be imported into.
_PACKAGES = ("adapruner", "torch", "lightning", "collections", "pathlib", "typing", "argparse")


def exists(name: str) -> bool:
    """Whether a dotted name can be imported.

    >>> exists("pathlib.Path.exists"), exists("pathlib.Pat")
    (True, False)
    """
    parts = name.lstrip("~").split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


def is_known(name: str) -> bool:
    """Whether a name without dots is one of Python, or of a module of ours or of those we use.

    >>> is_known("Tensor"), is_known("Tensr")
    (True, False)
    """
    modules = [module for place, module in list(sys.modules.items()) if place.split(".")[0] in _PACKAGES]
    return hasattr(builtins, name) or any(name in vars(module) for module in modules)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> nodes.TextElement | None:
    """The bare name, if it exists."""
    if node.get("refdomain") != "py":
        return None
    name, module, kind = node["reftarget"], node.get("py:module"), node.get("py:class")
    places = [name, f"{module}.{name}", f"{module}.{kind}.{name}", f"adapruner.{name}"]
    known = ("." not in name and is_known(name)) or any(exists(place) for place in places)
    return content if known else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # Where pages come from an earlier build, nothing has imported what they are of.
    for name in ("adapruner.module", "adapruner.data_module", "adapruner.run", "adapruner.callbacks.pruning_search"):
        importlib.import_module(name)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
