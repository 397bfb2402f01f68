"""The table of ablations, by hand-made figures; and the names that it knows are those of the searches."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real_tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("real_tables", "search_arms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import real_tables  # type: ignore[import-not-found]

    return real_tables


def cell(method: str, seed: int, domain: str, perplexity: float, stage: str = "recovered") -> dict[str, Any]:
    unseen = domain == "k8s"
    return {"method": method, "seed": seed, "domain": domain, "unseen": unseen, "perplexity": perplexity, "budget": 0.5, "stage": stage}


def test_an_ablation_stands_beside_the_joint_search_of_its_own_seed(real_tables: Any) -> None:
    cells = [
        *(cell("adapruner", seed, domain, 10.0 * (1 + seed)) for seed in (0, 1) for domain in ("wiki", "k8s")),
        *(cell("metric only", seed, "k8s", 10.0 * (1 + seed) * math.exp(0.01 * (2 + seed))) for seed in (0, 1)),
        cell("metric only", 0, "wiki", 10.0 * math.exp(-0.04)),
        cell("metric only", 2, "k8s", 99.0),  # ours was not measured under this seed
        cell("metric only", 1, "k8s", 99.0, "pruned"),
        cell("best fixed", 0, "k8s", 10.0),
    ]
    head, _, fixed, ablated = real_tables.ablation_table(cells).splitlines()
    assert head == "| beside the joint search | 50%, unseen | 50%, calibrated |"
    assert fixed == "| *best fixed* | +0.0 |  |"
    assert ablated == "| metric only | +2.5 ± 0.7 | -4.0 |"


def test_ablations_are_no_rivals(real_tables: Any) -> None:
    dense = [cell("dense", 0, domain, 5.0) for domain in ("wiki", "k8s")]
    cells = [*dense, *(cell(method, 0, domain, 9.0) for method in ("adapruner", "data only", "flap") for domain in ("wiki", "k8s"))]
    assert real_tables.methods_in_order(cells) == ["adapruner", "flap"]
    assert "data only" not in real_tables.short_table(cells)


def test_all_searches_have_a_name_in_the_tables(real_tables: Any) -> None:
    from search_arms import arms  # type: ignore[import-not-found]

    assert tuple(arms()) == real_tables.ABLATIONS
