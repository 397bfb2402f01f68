"""The tables of ``docs/refit.md`` are those of the figures beside it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refit_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("refit_page", "refit_strength", "real_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import refit_page  # type: ignore[import-not-found]

    return refit_page


def cell(method: str, stage: str, domain: str, perplexity: float, seed: int = 0) -> dict[str, Any]:
    return {"method": method, "stage": stage, "domain": domain, "perplexity": perplexity, "seed": seed, "budget": 0.5}


def test_the_distance_is_of_geometric_means_to_the_dense_model_after_the_same_training(refit_page: Any) -> None:
    cells = [
        cell("ours", "refit", "a", 8.0),
        cell("ours", "refit", "b", 18.0),
        cell("dense", "LoRA", "a", 4.0),
        cell("dense", "LoRA", "b", 4.0),
    ]
    assert refit_page.above_dense(cells, [0], ("refit", "LoRA"), ("a", "b"), method="ours") == "200.0 %"  # sqrt(8 * 18) = 12 beside 4
    assert refit_page.above_dense(cells, [1], ("refit", "LoRA"), ("a", "b"), method="ours") == ""
    cells += [cell("ours", "refit", "a", 6.0, 1), cell("ours", "refit", "b", 6.0, 1), *(cell("dense", "LoRA", d, 4.0, 1) for d in "ab")]
    spread = math.sqrt(2) / 2 * 150.0
    assert refit_page.above_dense(cells, [0, 1], ("refit", "LoRA"), ("a", "b"), method="ours") == f"125.0 ± {spread:.1f} %"


def test_the_page_holds_what_was_measured(refit_page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = ROOT / "docs"
    for name in ("refit.md", "refit_strength.json", "after_pruning.json", "real_models.json"):
        (tmp_path / name).write_text((docs / name).read_text())
    monkeypatch.setattr(sys, "argv", ["refit_page.py", str(tmp_path)])
    refit_page.main()
    assert (tmp_path / "refit.md").read_text() == (docs / "refit.md").read_text()
