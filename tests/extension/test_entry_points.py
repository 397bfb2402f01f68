"""A member that an installed package lists as an entry point is known without ``--import``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli import main
from adapruner.errors import ConfigurationError
from adapruner.pruning.plan import read_plan
from adapruner.registry import Registry

from .conftest import REGISTRIES
from .contributing import read_table


def install(monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], entry: importlib.metadata.EntryPoint) -> None:
    """As if a package that lists the entry point had been there from the start."""
    monkeypatch.setattr("adapruner.registry.entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setattr(registry, "_loaded", False)


@pytest.mark.parametrize(
    ("change", "value"), [("A metric", "InputNorm"), ("An export format", "Names"), ("A kind of data source", "Lines")]
)
def test_each_has_its_group(workspace: Path, monkeypatch: pytest.MonkeyPatch, change: str, value: str) -> None:
    monkeypatch.syspath_prepend(str(workspace))
    registry, name = REGISTRIES[change]
    install(monkeypatch, registry, importlib.metadata.EntryPoint(name, f"my_extensions:{value}", read_table()[change][1]))
    assert name in registry.names()
    member = registry.find(name)  # a class, or an instance of it
    assert value in (type(member).__name__, getattr(member, "__name__", ""))


def test_a_run_prunes_by_an_installed_metric(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, name = REGISTRIES["A metric"]
    monkeypatch.syspath_prepend(str(workspace))
    with pytest.raises(ConfigurationError, match=r"expected a known metric, got 'input_norm'"):
        registry.find(name)
    install(monkeypatch, registry, importlib.metadata.EntryPoint(name, "my_extensions:InputNorm", "adapruner.metrics"))
    options = ["--pruning.recipe={coefficients: {input_norm: 1.0}}", "--pruning.reconstruction=null", "--recovery=null"]
    main(["fit", "--config", "base.yaml", *options, "--report=null", "--export=null"])
    recipe = read_plan(workspace / "run" / "plan.json").recipe
    assert recipe is not None
    assert recipe["coefficients"] == {"input_norm": 1.0}
