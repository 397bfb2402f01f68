"""``adapruner write-texts``: the whole command, killed and gone on with, and what prune makes of its file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapruner.cli import main, write_texts
from adapruner.data.text_source import TextSource, read_documents
from adapruner.own_text.rows_file import RowsFile
from adapruner.stages import write_texts as texts_by
from tests.cli.command_line import elsewhere, run  # noqa: F401  # the former by being there
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
FEW = ["--tokens", "12", "--batch_size", "4", "--seed", "3"]


def rows_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "my-model"))


def test_rows_are_what_python_writes_and_what_texts_reads(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["write-texts", model, "--out", "own.jsonl", "--documents", "10", *FEW])
    said = capsys.readouterr().out
    assert "every document begins with '<s>', the begin-of-text token" in said
    assert "next: adapruner prune my-model --texts own=own.jsonl".replace("my-model", model) in " ".join(said.split())
    texts = rows_of(tmp_path / "own.jsonl")
    assert texts == texts_by(model, documents=10, tokens=12, batch_size=4, seed=3)
    assert [document.text for document in read_documents(TextSource("own", path="own.jsonl"))] == texts
    assert not (tmp_path / ".own.jsonl.lock").exists()


def test_a_finished_file_is_left_and_more_documents_go_on(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.jsonl"
    words = ["write-texts", model, *FEW]
    main([*words, "--out", "own.jsonl", "--documents", "6"])
    before = file.stat()
    main([*words, "--out", "own.jsonl", "--documents", "6"])
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    main([*words, "--out", "own.jsonl", "--documents", "15"])
    assert "goes on behind 6 documents of 15" in capsys.readouterr().out
    main([*words, "--out", "at-once.jsonl", "--documents", "15"])
    assert file.read_bytes() == (tmp_path / "at-once.jsonl").read_bytes()


@pytest.mark.parametrize("killed_behind", [1, 9, 17])
def test_a_killed_call_ends_with_the_same_file(model: str, tmp_path: Path, killed_behind: int) -> None:
    """A process of its own, ended by SIGKILL once it has so many rows; its file has whole rows at every look."""
    words = ["write-texts", model, "--documents", "30", *FEW]
    main([*words, "--out", "unbroken.jsonl"])
    expected, file = (tmp_path / "unbroken.jsonl").read_bytes(), tmp_path / "own.jsonl"
    slow = "import sys, time; from adapruner.own_text import rows_file as r; put = r.RowsFile.put\n"
    slow += "r.RowsFile.put = lambda *a: (put(*a), time.sleep(0.3))\nfrom adapruner.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", slow, *words, "--out", "own.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        there = file.read_bytes() if file.exists() else b""
        assert expected.startswith(there)
        assert there.endswith(b"\n") or not there
        if there.count(b"\n") >= killed_behind:
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = file.read_bytes()
    assert killed_behind <= left.count(b"\n") < 30
    main([*words, "--out", "own.jsonl"])
    assert file.read_bytes() == expected


def test_another_model_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["write-texts", model, "--out", "own.jsonl", "--documents", "5", *FEW])
    content = (tmp_path / "own.jsonl").read_bytes()
    save_tiny(tmp_path / "another", initializer_range=0.2)
    code, _, err = run(capsys, "write-texts", "another", "--out", "own.jsonl", "--documents", "9", *FEW)
    assert code == 2
    assert "model: expected the one that began own.jsonl, got another; give that, or choose another --out" in " ".join(err.split())
    assert (tmp_path / "own.jsonl").read_bytes() == content


def test_what_is_wrong_is_said_before_anything_heavy(model: str, tmp_path: Path) -> None:
    main(["write-texts", model, "--out", "own.jsonl", "--documents", "5", *FEW])
    (tmp_path / "mine.jsonl").write_text("mine")
    refused = {
        ("--out", "mine.jsonl"): "out: expected a new file, or one that write-texts began, got mine.jsonl",
        ("--out", "own.jsonl", *FEW, "--seed", "4"): "seed: expected 3 as in own.jsonl, got 4",
        ("--out", "new.jsonl", "--dtype", "float8"): "dtype: expected one of auto, float32",
        ("--out", "new.jsonl", "--temperature", "0"): "temperature: expected a number above 0, got 0.0",
    }
    code = (
        "import sys\nfrom adapruner.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    print(ended.code, 'torch' in sys.modules)"
    )
    for words, said in refused.items():
        command = [sys.executable, "-c", code, "write-texts", model, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2", "False"], done.stderr
        assert said in done.stderr
    assert not (tmp_path / "new.jsonl").exists()
    assert (tmp_path / "mine.jsonl").read_text() == "mine"


def test_it_takes_the_models_dtype_or_another(model: str, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        main(["write-texts", model, "--out", f"{dtype}.jsonl", "--dtype", dtype, "--documents", "12", *FEW])
    assert rows_of(tmp_path / "float32.jsonl") == texts_by(model, documents=12, tokens=12, batch_size=4, seed=3)
    assert rows_of(tmp_path / "float32.jsonl") != rows_of(tmp_path / "bfloat16.jsonl")


def test_the_defaults_are_pythons() -> None:
    given = write_texts.make_parser().parse_args(["my-model", "--out", "own.jsonl"])
    from adapruner.own_text.settings import Writing

    assert Writing(given.documents, given.tokens, given.temperature, given.batch_size, given.seed) == Writing()


@pytest.mark.slow
def test_a_model_is_pruned_with_what_it_wrote(model: str, tmp_path: Path) -> None:
    """The two commands, one after the other: hence slow."""
    main(["write-texts", model, "--out", "own.jsonl", "--documents", "200", "--tokens", "60"])
    assert RowsFile(Path("own.jsonl")).record.exists()
    short = ["--data.calibration.samples_per_source=8", "--data.search.samples=8", "--report.compare=[]", "--data.calibration.seq_len=32"]
    short += ["--data.search.seq_len=32", "--data.recovery.seq_len=32", "--report.latency_repeats=1", "--trainer.accelerator=cpu"]
    short += ["--pruning.search.rerank=null", "--pruning.search.random_sets=0", "--report.compare_any_width=false", "--export.verify=false"]
    main(["prune", model, "--texts", "own=own.jsonl", "--fraction", "0.3", "--trials", "20", "--recovery", "2", *short])
    assert (tmp_path / "runs/my-model-0.3/model/config.json").is_file()
