from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapruner.compare.cells import CHEAP, check_folder, claim, is_done, lay_out, tidy
from adapruner.compare.spec import OWNED
from adapruner.errors import ConfigurationError

from .fakes import fake_report, fake_spec


def test_cells_go_seed_by_seed_each_in_its_folder(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path)
    cells = lay_out(spec)
    assert len(cells) == 2 * 2 * 3
    assert [(c.seed, c.budget, c.method) for c in cells[:5]] == [
        (0, 0.2, "adapruner"),
        (0, 0.2, "l2"),
        (0, 0.5, "adapruner"),
        (0, 0.5, "l2"),
        (1, 0.2, "adapruner"),
    ]
    assert cells[3].folder == spec.folder / "l2" / "0.5" / "seed-0"
    assert len({c.folder for c in cells}) == 12
    assert cells[3].title == "l2, 50.0 %, seed 0"


def test_the_arguments_of_a_cell_settle_everything_it_owns_and_come_last(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, options={"pruning.search.n_trials": 3, "export.verify": True})
    cell = lay_out(spec)[-1]
    assert cell.arguments[:5] == ("fit", "--config", str(spec.base), "--config", str(tmp_path / "l2.yaml"))
    own = {f"--{key}" for key in OWNED} - {"--config", "--c", "--import"}
    assert {a.split("=")[0] for a in cell.arguments[-len(own) :]} == own
    assert {"--seed_everything=2", "--data.seed=2", "--pruning.search.seed=2", "--recovery.seed=2"} < set(cell.arguments)
    assert {"--pruning.budget.pruned_fraction=0.5", f"--trainer.default_root_dir={cell.folder}"} < set(cell.arguments)
    # What is switched off for speed can be switched on again.
    assert cell.arguments.index("--export.verify=true") > cell.arguments.index("--export.verify=false")
    assert set(CHEAP) < set(cell.arguments)


def test_done_is_a_whole_report_of_the_same_arguments(tmp_path: Path) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    assert not is_done(cell)
    claim(cell, ["fit"])
    assert not is_done(cell)
    report = cell.folder / "report.json"
    report.write_text(json.dumps(fake_report(cell, 40.0)))
    assert is_done(cell)
    whole = report.read_text()
    report.write_text(whole[:100])
    assert not is_done(cell)
    report.write_text(whole)
    other = lay_out(fake_spec(tmp_path, options={"data.batch_size": 2}))[0]
    assert other.folder == cell.folder
    assert not is_done(other)
    claim(other, ["fit"])  # an old report must not pass for the new run's
    assert not report.exists()


def test_more_of_the_same_is_welcome_another_comparison_is_not(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path)
    cells = lay_out(spec)
    check_folder(spec, cells)
    claim(cells[1], ["fit"])
    larger = fake_spec(tmp_path, ["adapruner", "l2", "random"], budgets=[0.2, 0.5, 0.7], seeds=[0, 5])
    check_folder(larger, lay_out(larger))
    changed = fake_spec(tmp_path, options={"data.batch_size": 2})
    with pytest.raises(ConfigurationError, match=r"^folder: expected the same options as in l2/0.2/seed-0/cell.json.*another --folder"):
        check_folder(changed, lay_out(changed))
    (tmp_path / "l2.yaml").write_text("pruning: {recipe: {coefficients: {l1: 1.0}}}\n")
    with pytest.raises(ConfigurationError, match=r"expected the same overlay"):
        check_folder(spec, lay_out(spec))
    without = fake_spec(tmp_path, ["adapruner"])
    check_folder(without, lay_out(without))  # the changed method is not in it
    (tmp_path / "base.yaml").write_text("model: {name_or_path: other}\n")
    with pytest.raises(ConfigurationError, match=r"expected the same base"):
        check_folder(without, lay_out(without))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path)
    spec.folder.mkdir()
    (spec.folder / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match=r"^folder: expected an empty folder or one of a comparison"):
        check_folder(spec, lay_out(spec))
    blocked = fake_spec(tmp_path, folder=str(tmp_path / "base.yaml"))
    with pytest.raises(ConfigurationError, match=r"^folder: expected a folder that can be written, got .*base.yaml \(File exists\)"):
        check_folder(blocked, lay_out(blocked))


def test_what_is_large_and_can_be_made_again_goes(tmp_path: Path) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    claim(cell, ["fit"])
    tidy(cell)
    for name in ("model", "checkpoints", "refit"):
        (cell.folder / name).mkdir()
    for name in (
        "model/model.safetensors",
        "checkpoints/last.ckpt",
        "refit/o.safetensors",
        "statistics.safetensors",
        "grams.safetensors",
        "trials.csv",
    ):
        (cell.folder / name).write_text("")
    tidy(cell)
    assert sorted(path.name for path in cell.folder.iterdir()) == ["cell.json", "trials.csv"]
