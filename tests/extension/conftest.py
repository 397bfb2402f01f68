"""Members that a test registers are forgotten after it, whatever kind they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapruner.data.text_source import SOURCE_KINDS
from adapruner.evaluation.cost_table import COST_ROWS
from adapruner.export.formats import FORMATS
from adapruner.importance.metrics import METRICS
from adapruner.models.families.family import FAMILIES
from adapruner.pruning.costs import COSTS
from adapruner.pruning.layer_scores import LAYER_SCORES
from adapruner.registry import Registry
from adapruner.search.objectives import OBJECTIVES
from adapruner.search.samplers import SAMPLERS
from tests.spoilt import make_workspace

from .contributing import CODE

#: Change -> its registry, and the name of the page's example.
REGISTRIES: dict[str, tuple[Registry, str]] = {  # type: ignore[type-arg]
    "A metric": (METRICS, "input_norm"),
    "A sampler": (SAMPLERS, "quasi_random"),
    "A family": (FAMILIES, "gptj"),
    "An objective": (OBJECTIVES, "bits"),
    "A row of the cost table": (COST_ROWS, "norm_parameters"),
    "A budget unit": (COSTS, "channels"),
    "A kind of data source": (SOURCE_KINDS, "lines"),
    "An export format": (FORMATS, "names"),
    "A score of whole layers": (LAYER_SCORES, "by_place"),
}
#: Notes how often the sampler was asked: nothing that a run writes tells who chose a trial.
NOTES = """

ASKED = []
_make = QuasiRandom.make


def _noted(self, seed, startup, objectives):
    ASKED.append(seed)
    return _make(self, seed, startup, objectives)


QuasiRandom.make = _noted
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a tiny model, its texts and ``my_extensions.py``; what is imported from it is forgotten."""
    make_workspace(tmp_path)
    (tmp_path / "my_extensions.py").write_text("\n\n".join(CODE.values()) + NOTES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry, _ in REGISTRIES.values():
        registry.names()  # the shipped members are loaded
    yield tmp_path
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(tmp_path))]:
        del sys.modules[name]
    for registry, name in REGISTRIES.values():
        registry.remove(name)
