"""The steps of docs/add-a-family.md, with the very code that stands there."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapruner.export.loading import load
from adapruner.models.families import FAMILIES, Family, family_of, known_families, register_family
from adapruner.models.tracing import trace_structure
from tests.models.families import conformance
from tests.models.families.table import Row, build
from tests.oracles import family_maps

PAGE = Path(__file__).parents[3] / "docs" / "add-a-family.md"


def page_code() -> list[str]:
    """The page's blocks of code, in order: the row, the file, the oracle."""
    return [re.sub(r"(?m)^   ", "", block) for block in re.findall(r"```python\n(.*?)   ```", PAGE.read_text(), re.DOTALL)]


@pytest.fixture
def row() -> Row:
    return eval(page_code()[0].strip(), {"Row": Row})  # type: ignore[no-any-return]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps 2 and 3."""
    _, file, oracle = page_code()
    exec(file, {})
    for table in ("NAMES", "FFN_WIDTHS"):
        monkeypatch.setattr(family_maps, table, dict(getattr(family_maps, table)))
    exec(oracle, {"NAMES": family_maps.NAMES, "FFN_WIDTHS": family_maps.FFN_WIDTHS})
    yield
    FAMILIES.remove("gptj")


def test_it_is_left_out(row: Row) -> None:
    assert row.model_type not in known_families()
    with pytest.raises(RuntimeError, match="shape"):
        conformance.check_cut(row, "kv_group")


@pytest.mark.usefixtures("added")
def test_the_suite_passes_afterwards(row: Row, tmp_path: Path) -> None:
    model = build(row)
    found = {g.kind: [(m.module, m.dim, m.index.tolist()) for m in g.members] for g in trace_structure(model).of_layer(0)}
    assert {kind: sorted(map(str, entries)) for kind, entries in found.items()} == {
        kind: sorted(map(str, entries)) for kind, entries in family_maps.family_maps(model.config).items()
    }
    conformance.check_cut(row, "kv_group")
    conformance.check_scores(row)
    conformance.check_refit(row)
    conformance.check_generation(row)
    conformance.check_recovery(row)
    for widths in ("uniform", "irregular"):
        _, expected, _ = conformance.export(row, widths, "kv_group", tmp_path / widths)
        torch.testing.assert_close(conformance.logits(load(tmp_path / widths)), expected, rtol=0, atol=1e-5)


def test_a_family_of_one_s_own_replaces_a_shipped_one() -> None:
    shipped = family_of("opt")
    own = register_family(Family("opt", ffn_name="width"))
    try:
        assert family_of("opt") is own
        assert known_families().count("opt") == 1
    finally:
        register_family(shipped)


def test_an_entry_point_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_family.py").write_text("from adapruner.models.families import Family\nOWN = Family('stranger', ffn_name='width')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = importlib.metadata.EntryPoint(name="stranger", value="own_family:OWN", group="adapruner.families")
    monkeypatch.setattr("adapruner.registry.entry_points", lambda group: [entry] if group == "adapruner.families" else [])
    monkeypatch.setattr(FAMILIES, "_loaded", False)
    assert family_of("stranger").ffn_name == "width"
    FAMILIES.remove("stranger")
