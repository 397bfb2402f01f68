"""``export.gguf``: ``fit`` writes the file for llama.cpp, too, or says before it begins why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.cli.run_contents import gather
from adapruner.errors import ConfigurationError
from adapruner.export.formats.gguf import write_gguf
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.recovery.last_checkpoint import FILE
from adapruner.report.schema import validate_report
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig
from tests.callbacks.conftest import FFN, ForeignData, ForeignModule, foreign_trainer, search_callback
from tests.callbacks.test_recovery_checkpoint import EndAt, Killed, callbacks
from tests.export.cases import tiny_model
from tests.export.formats.gguf.test_writing import byte_tokenizer
from tests.tiny import tiny_llama, word_tokenizer

pytest.importorskip("gguf")

VOCABULARY = 280


class TokenizedModule(ForeignModule):
    """Somebody else's module whose tokenizer llama.cpp has, too."""

    def __init__(self, language: Any = None, tokenizer: Any = None) -> None:
        super().__init__()
        self.language = tiny_llama(intermediate_size=FFN, vocab_size=VOCABULARY) if language is None else language
        self.tokenizer = byte_tokenizer() if tokenizer is None else tokenizer


def run(folder: Path, given: list[Any], module: Any = None, ckpt_path: Any = None, **options: Any) -> None:
    trainer = foreign_trainer(folder, given, **options)
    trainer.fit(TokenizedModule() if module is None else module, datamodule=ForeignData(), ckpt_path=ckpt_path)


def export(**options: Any) -> PrunedExportCallback:
    return PrunedExportCallback(**{"gguf": "small.gguf", "verify": False, **options})


def test_the_file_is_that_of_the_folder_and_is_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = CompressionReportCallback(latency_seq_len=16, latency_repeats=1)
    run(tmp_path, [search_callback(), report, export(gguf="out/small.gguf", dtype="float16")], max_steps=1)
    file, said = tmp_path / "out" / "small.gguf", capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["small.gguf"]
    other = write_gguf(tmp_path / "model", tmp_path / "again.gguf", "float16")
    assert file.read_bytes() == other.path.read_bytes()
    record = json.loads((tmp_path / "report.json").read_text())
    validate_report(record)
    found = record["export"]["gguf"]
    assert (found["path"], found["architecture"], found["dtype"]) == (str(file), other.architecture, "float16")
    assert found["bytes"] == file.stat().st_size
    assert found["notes"] == list(other.notes)
    told = f"{file}: {other.architecture} in float16"
    assert f"wrote {file} for llama.cpp, {other.architecture} in float16" in said
    assert told.replace(" ", "") in "".join(said.split())  # a terminal folds a long path anywhere
    assert told.replace(": ", ", ") in (tmp_path / "report.html").read_text()


def test_inspect_tells_of_the_file_in_the_run_folder(tmp_path: Path) -> None:
    run(tmp_path, [search_callback(), export()], max_steps=1)
    assert gather(tmp_path)["holds"]["small.gguf"] == {"bytes": (tmp_path / "small.gguf").stat().st_size}


def test_a_resumed_run_writes_it_and_a_run_again_replaces_it(tmp_path: Path) -> None:
    with pytest.raises(Killed, match=r"^killed$"):
        run(tmp_path, [*callbacks(), export(), EndAt(3)], enable_checkpointing=True)
    assert not (tmp_path / "small.gguf").exists()
    run(tmp_path, [*callbacks(), export()], ckpt_path=tmp_path / FILE, enable_checkpointing=True)
    first = (tmp_path / "small.gguf").read_bytes()
    (tmp_path / "small.gguf").write_bytes(first[:5000])  # ours by its head, and cut short
    run(tmp_path, [*callbacks(), export()], ckpt_path=tmp_path / FILE, enable_checkpointing=True)
    assert (tmp_path / "small.gguf").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gguf": "plan.json"}, r"^export\.gguf: expected a file name that ends in \.gguf, got 'plan\.json'; give model\.gguf$"),
        ({"gguf": "s3://bucket/a.gguf"}, r"^export\.gguf: expected a local path, got 's3://bucket/a\.gguf'"),
        ({"gguf": 3}, r"^export\.gguf: expected text"),
        ({"adapters": "folder"}, r"^export\.gguf: expected adapters merged, got adapters: folder"),
    ],
)
def test_options_are_checked_when_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export(**options)


def _foreign_file(folder: Path) -> None:
    (folder / "small.gguf").write_text("of another program")


def _folder(folder: Path) -> None:
    (folder / "small.gguf").mkdir()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (_foreign_file, {}, r"^export\.gguf: expected a new name or an earlier export, got .*small\.gguf, which is another's"),
        (_folder, {}, r"^export\.gguf: expected a file, got the folder .*small\.gguf"),
        (
            None,
            {"gguf": "model/small.gguf"},
            r"^export\.gguf: expected a file outside the exported folder .*model, got .*small\.gguf; give",
        ),
    ],
)
def test_a_place_that_will_not_do_is_refused_before_the_search(tmp_path: Path, spoil: Any, options: Any, message: str) -> None:
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, [search_callback(), export(**options)])
    assert not (tmp_path / "study.journal").exists()


def test_without_the_library_it_is_refused_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigurationError, match=r"^export\.gguf: expected the package gguf .* got none; pip install 'adapruner\[gguf\]'$"):
        run(tmp_path, [search_callback(), export()])
    assert not (tmp_path / "study.journal").exists()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: ForeignModule(), r"expected a tokenizer, which a GGUF file holds, got none; give one, or leave export\.gguf out$"),
        (lambda: TokenizedModule(tokenizer=word_tokenizer()), r"got a WordLevel tokenizer; export with such a tokenizer\); or leave"),
        (lambda: TokenizedModule(tiny_model("gemma2", vocab_size=VOCABULARY)), r"a family that GGUF export knows, got 'gemma2'"),
        (lambda: TokenizedModule(tiny_model("qwen3", vocab_size=VOCABULARY)), r"openelm: no output layer of its own"),
    ],
)
def test_a_model_that_gguf_cannot_hold_is_refused_before_the_search(tmp_path: Path, module: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^export\.gguf: .*{message}"):
        run(tmp_path, [search_callback(), export()], module())
    assert not (tmp_path / "study.journal").exists()


@pytest.mark.parametrize("equal", ["pad", "uniform"])
def test_equal_widths_let_it_through(tmp_path: Path, equal: str) -> None:
    """An output layer of its own stands in the way of a Qwen3 with irregular widths alone."""
    space = SearchSpace(metrics=["l2"], allocation=Allocation("uniform", round_to=1) if equal == "uniform" else Allocation())
    search = search_callback(budget=Budget(0.5, keep_at_least=0.1), search=SearchConfig(n_trials=2, space=space))
    qwen = TokenizedModule(tiny_model("qwen3", vocab_size=VOCABULARY, intermediate_size=FFN))
    run(tmp_path, [search, export(pad=equal == "pad")], qwen, max_steps=1)
    assert (tmp_path / "small.gguf").read_bytes().startswith(b"GGUF")


def test_biases_that_the_search_may_add_count(tmp_path: Path) -> None:
    search = search_callback(search=SearchConfig(n_trials=2, space=SearchSpace(metrics=["l2"], bias_compensations=[False, True])))
    with pytest.raises(ConfigurationError, match=r"qwen3: no bias in down_proj, o_proj"):
        run(tmp_path, [search, export(pad=True)], TokenizedModule(tiny_model("qwen3", vocab_size=VOCABULARY)))
