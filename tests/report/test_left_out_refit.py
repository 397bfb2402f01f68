"""A run whose refit is taken back: the stage is there with the values of the pruned model, and report, page and card say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import adapruner
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.report.answer import worse_sentences
from adapruner.report.schema import validate_report

WINDOWS = torch.randint(4, 4000, (16, 32), generator=torch.Generator().manual_seed(0))
RECIPE = adapruner.Recipe({"l1": 1.0})


def pruned(folder: Path | None, **refit: Any) -> adapruner.PruningResult:
    given: dict[str, Any] = {
        "recipe": RECIPE,
        "reconstruction": ReconstructionConfig(**refit),
        "evaluation": {"held out": WINDOWS.flip(1)[:4]},
    }
    return adapruner.prune("demo", None, WINDOWS, 0.3, folder=folder, progress=False, **given)


def test_a_run_whose_refit_is_taken_back_says_so(tmp_path: Path) -> None:
    """Hardly damped, a refit on 384 random tokens fits them alone."""
    report = validate_report(pruned(tmp_path, ridge=1e-3).report)
    assert report.recovery is not None
    refit = report.recovery.reconstruction
    assert refit is not None
    assert refit.left_out
    assert refit.pruned is not None
    assert refit.refitted is not None
    assert refit.pruned < refit.refitted
    values = {(row.method, row.stage): row.value for row in report.perplexity or ()}
    assert values["adapruner", "reconstructed"] == values["adapruner", "pruned"]
    assert worse_sentences(report)[0].startswith("The refit was left out: it made the search split worse, ")
    assert "it was left out" in (tmp_path / "report.html").read_text()


def test_one_that_nobody_judges_stays(tmp_path: Path) -> None:
    report = validate_report(pruned(None, ridge=1e-3, only_if_better=False).report)
    assert report.recovery is not None
    assert report.recovery.reconstruction is not None
    assert not report.recovery.reconstruction.left_out
    values = {(row.method, row.stage): row.value for row in report.perplexity or ()}
    assert values["adapruner", "reconstructed"] != values["adapruner", "pruned"]
