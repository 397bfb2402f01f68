from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapruner.cli import main
from adapruner.cli.inspect import run_inspect
from adapruner.cli.run_contents import gather
from adapruner.errors import ConfigurationError, PlanError
from adapruner.pruning.fixed_recipe import IN_WORDS
from adapruner.pruning.plan import PruningPlan
from tests.report.sample import sample_report

ROOT = Path(__file__).parents[2]


def sample_plan(**changes: Any) -> PruningPlan:
    values: dict[str, Any] = {
        "model": {"name": "tiny", "model_type": "llama", "fingerprint": "f00d"},
        "kept": {"0.attention": [0, 2, 3], "0.ffn": [1, 2, 5], "1.attention": [0, 1, 2, 3], "1.ffn": [0]},
        "units": {"0.attention": 4, "0.ffn": 8, "1.attention": 4, "1.ffn": 8},
        "parameters": {"dense": 2_000_000, "pruned": 1_400_000, "block_dense": 1_500_000, "block_pruned": 900_000},
        "budget": {"pruned_fraction": 0.4, "of": "block"},
        "recipe": {"coefficients": {"l2": 1.0, "gate_fisher": 3.0}, "calibration": {"source_weights": {"code": 0.9, "books": 0.1}}},
    }
    return PruningPlan(**{**values, **changes})


def write_run(folder: Path, report: bool = True) -> PruningPlan:
    folder.mkdir(exist_ok=True)
    plan = sample_plan()
    plan.save(folder / "plan.json")
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x" * 3000)
    if report:
        record = sample_report()
        record["model"]["plan_hash"] = plan.hash
        (folder / "report.json").write_text(json.dumps(record))
    return plan


def write_search(folder: Path) -> None:
    """Three finished trials, one that a kill cut short, a torn last line."""
    (folder / "trials.csv").write_text(
        "trial,name,state,value,seconds,plan_hash\n0,l2,complete,3.5,1.0,a\n1,searched,complete,3.25,1.0,b\n2,searched,pruned,3.9,1.0,c\n"
    )
    journal = [{"op_code": 0, "study_name": "adapruner"}]
    journal += [{"op_code": 4, "study_id": 0} for _ in range(5)]
    journal += [{"op_code": 6, "trial_id": trial, "state": state} for trial, state in ((0, 1), (1, 1), (2, 2), (3, 3))]
    journal += [{"op_code": 8, "trial_id": 3, "user_attr": {"killed": True}}]
    (folder / "study.journal").write_text("\n".join(map(json.dumps, journal)) + '\n{"op_code": 6, "tri')


def write_export(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True)
    plan = sample_plan()
    plan.save(folder / "plan.json")
    record = {"architectures": ["LlamaForCausalLM"], "dtype": "float32", "adapruner": {"plan_hash": plan.hash}, **config}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "model.safetensors").write_bytes(b"x" * 2000)


def printed(path: Path) -> str:
    console = Console(file=io.StringIO(), width=160)
    run_inspect([str(path)], console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_finished_run(tmp_path: Path) -> None:
    plan = write_run(tmp_path / "run")
    write_export(tmp_path / "run" / "model")
    text = printed(tmp_path / "run")
    assert "run: a finished run" in text
    assert f"Plan {plan.hash} for tiny (llama): 2.00 M -> 1.40 M parameters" in text
    assert "Removed 40.0 % of the block parameters; asked for: 40.0 % of the block parameters" in text
    assert "Recipe: metrics 0.75 gate_fisher + 0.25 l2; sources code 0.90, books 0.10" in text
    rows = [line.split() for line in text.splitlines() if " of 4" in line]
    assert [row[0] for row in rows] == ["0", "1"]
    assert rows[0][1:] == ["████████████░░░░", "3", "of", "4", "██████░░░░░░░░░░", "3", "of", "8"]
    assert rows[1][1:5] == ["████████████████", "4", "of", "4"]
    assert "Perplexity on wikitext, window of 512 tokens" in text  # the report's own tables
    assert "checkpoints/last.ckpt: checkpoint, 2.9 KiB" in text
    assert "model: LlamaForCausalLM, stock, float32, 2.0 KiB" in text
    assert "another plan" not in text


def test_a_plan_that_is_a_plain_recipe_says_so_once(tmp_path: Path) -> None:
    plan, said = sample_plan(provenance={"fixed recipe": "l2"}), "The chosen plan is a plain recipe, l2, that the search began with"
    write_run(tmp_path / "run")
    for file in (tmp_path / "plan.json", tmp_path / "run" / "plan.json"):
        plan.save(file)
    assert printed(tmp_path / "plan.json").count(said) == 1
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    record["search"]["fixed_recipe"] = "l2"
    (tmp_path / "run" / "report.json").write_text(json.dumps(record))
    assert printed(tmp_path / "run").count(said) == 1
    for changed in ({}, {"gates": {"best": {"exchanged": 3}}}, {"rounds": [{}]}):
        sample_plan(provenance={**({"fixed recipe": "l2"} if changed else {}), **changed}).save(tmp_path / "other.json")
        assert "plain recipe" not in printed(tmp_path / "other.json")


def test_a_run_that_was_killed_in_its_search(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    write_search(tmp_path)
    text = printed(tmp_path)
    assert "a run that has no plan yet" in text
    assert "Search so far: 3 trials, 2 complete." in text
    assert "Best so far: 3.2500 (trial 1, searched)." in text
    assert f"Best fixed recipe, {IN_WORDS}: 3.5000 (trial 0, l2)." in text
    assert "study.journal: 3 finished trials" in text
    assert gather(tmp_path)["search"]["journal"] == {"begun": 5, "finished": 3}


@pytest.mark.parametrize("way", ["empty", "zeros", "another"])
def test_a_journal_of_something_else_is_said(tmp_path: Path, way: str) -> None:
    """Of a whole run the table of trials tells of the same search."""
    from adapruner.files.digests import sealed

    def journal(values: list[float]) -> str:
        entries: list[dict[str, Any]] = []
        for trial, value in enumerate(values):
            entries += [{"op_code": 4, "study_id": 0}, {"op_code": 8, "trial_id": trial, "user_attr": {"name": "l2"}}]
            entries += [{"op_code": 6, "trial_id": trial, "state": 1, "values": [value]}]
        return "".join(json.dumps(sealed(entry)) + "\n" for entry in entries)

    write_run(tmp_path / "run")
    file = tmp_path / "run/study.journal"
    (tmp_path / "run/trials.csv").write_text("trial,name,state,value\n0,l2,complete,3.5\n1,l2,complete,3.25\n")
    file.write_text(journal([3.5, 3.25]))
    assert [remark for remark in gather(tmp_path / "run")["remarks"] if "trials.csv" in remark] == []
    file.write_text({"empty": "", "zeros": "\0" * 999, "another": journal([3.5, 3.125])}[way])
    (remark,) = [remark for remark in gather(tmp_path / "run")["remarks"] if "trials.csv" in remark]
    expected = "are of different searches" if way == "another" else "has no trial where trials.csv tells of 2: it is damaged"
    assert expected in remark


def test_a_run_that_was_killed_in_its_recovery(tmp_path: Path) -> None:
    write_run(tmp_path / "run", report=False)
    text = printed(tmp_path / "run")
    assert "a run that has its plan and no report" in text
    assert "checkpoints/last.ckpt" in text
    (tmp_path / "run" / "report.json").write_text("{")
    assert "left out: path: expected JSON" in printed(tmp_path / "run")
    record = sample_report()
    (tmp_path / "run" / "report.json").write_text(json.dumps(record))
    assert f"report.json is of another plan, {record['model']['plan_hash']}" in printed(tmp_path / "run")


def test_an_export_and_a_plan_by_themselves(tmp_path: Path) -> None:
    write_export(tmp_path / "model", pruned_shapes=[[1, 2]])
    (tmp_path / "model" / "adapter").mkdir()
    text = printed(tmp_path / "model")
    assert "model: an export" in text
    assert "export: LlamaForCausalLM, its own modelling file, float32, adapters apart" in text
    text = printed(tmp_path / "model" / "plan.json")
    assert "plan.json: a plan" in text
    assert "3 of 4" in text


def test_removed_layers_and_hidden_channels_are_said(tmp_path: Path) -> None:
    kept = {"0.attention": [0, 1, 2, 3], "0.ffn": list(range(8)), "1.attention": [0], "1.ffn": [0, 1]}
    sample_plan(kept=kept, removed_layers=[0], kept_hidden=[0, 1, 2]).save(tmp_path / "plan.json")
    text = printed(tmp_path / "plan.json")
    assert "Hidden channels kept: 3" in text
    assert [line.split() for line in text.splitlines() if " removed " in line] == [["0", "removed", "removed"]]


def test_json_is_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_run(tmp_path / "run")
    write_search(tmp_path / "run")
    main(["inspect", str(tmp_path / "run"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"path", "kind", "plan", "report", "search", "holds", "remarks"}
    assert record["plan"]["hash"] == plan.hash
    assert record["plan"]["layers"][1] == {
        "layer": 1,
        "removed": False,
        "attention": {"kept": 4, "units": 4},
        "ffn": {"kept": 1, "units": 8},
    }
    assert record["report"]["cost"] == sample_report()["cost"]
    assert record["search"]["best"] == {"trial": 1, "name": "searched", "value": 3.25}
    assert record["holds"]["checkpoints/last.ckpt"] == {"checkpoint": True, "bytes": 3000}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "run: expected a run, an export or a plan.json, got nothing at nothing; check the path"),
        (["empty"], r"got empty without plan.json, report.json"),
        ([], r"inspect: expected adapruner inspect RUN \[--json\], got the following arguments are required: RUN"),
        (["empty", "--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_what_cannot_be_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ConfigurationError, match=message):
        run_inspect(arguments)


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    record = {**sample_plan().to_dict(), "hash": "0" * 16}
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(PlanError, match="the plan was changed"):
        run_inspect([str(tmp_path)])


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    code = (
        f"import sys\nfrom adapruner.cli import main\nmain(['inspect', {str(tmp_path / 'run')!r}])\n"
        "print(*sorted({'torch', 'numpy', 'lightning', 'transformers', 'optuna', 'matplotlib'} & set(sys.modules)), 'loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


NAMES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_names_from_a_file_reach_the_terminal_as_printable_text(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a plan, a report, a model, a study and a folder."""
    write_run(tmp_path / "run")
    sample_plan(model={"name": NAMES, "model_type": NAMES, "fingerprint": "f00d"}, recipe={"coefficients": {NAMES: 1.0}}).save(
        tmp_path / "run" / "plan.json"
    )
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    record["model"]["name"] = record["name"] = NAMES
    (tmp_path / "run" / "report.json").write_text(json.dumps(record))
    write_export(tmp_path / "run" / "model", architectures=[NAMES], dtype=NAMES)
    (tmp_path / "run" / "\x1b[1m.ckpt").write_text("")
    main(["inspect", str(tmp_path / "run"), *words])
    out = capsys.readouterr().out
    assert "owned" in out
    assert all(c.isprintable() or c == "\n" for c in out)
