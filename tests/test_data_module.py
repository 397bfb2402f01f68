from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapruner.data.run_data import PruningData, RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource
from adapruner.data_module import PruningDataModule
from adapruner.errors import ConfigurationError, DataError
from tests.data.words import numbered_source as source
from tests.data.words import numbered_word_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return numbered_word_tokenizer()


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "calibration": CalibrationData([source(tmp_path, "b", 0), source(tmp_path, "a", 7)], samples_per_source=5, seq_len=16),
        "search": SearchData([source(tmp_path, "x", 11), source(tmp_path, "y", 13)], samples=7, seq_len=24),
        "recovery": RecoveryData([source(tmp_path, "r", 17)], samples=9, seq_len=16),
        "evaluation": [EvaluationSet("held", source(tmp_path, "e", 19), windows=[16, 32], limit=6)],
        "batch_size": 4,
    }


def built(tokenizer: Any, **options: Any) -> PruningDataModule:
    data = PruningDataModule(**options)
    data.tokenizer_object = tokenizer
    data.setup("fit")
    return data


def test_setup_builds_once(tokenizer: Any, options: dict[str, Any]) -> None:
    data = built(tokenizer, **options)
    pool, fingerprint = data.calibration_windows, data.fingerprint
    data.setup("test")
    assert data.calibration_windows is pool
    assert data.fingerprint == fingerprint


def test_a_run_reads_all_sets_from_it(tokenizer: Any, options: dict[str, Any]) -> None:
    data = built(tokenizer, **options, seed=3)
    assert isinstance(data, PruningData)
    assert RunData.of(data) == data.run_data
    options.pop("batch_size")
    assert TextSets(**options, seed=3).build(tokenizer).fingerprint == data.fingerprint


def test_loaders_serve_the_windows(tokenizer: Any, options: dict[str, Any]) -> None:
    data = built(tokenizer, **options)
    assert data.recovery_windows is not None
    batches = list(data.train_dataloader())
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 1]
    assert set(batches[0]) == {"input_ids", "attention_mask", "labels"}
    served = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert served != data.recovery_windows.input_ids.tolist()
    assert sorted(served) == sorted(data.recovery_windows.input_ids.tolist())
    assert torch.equal(torch.cat([b["input_ids"] for b in data.val_dataloader()]), data.search_windows.input_ids)
    for loader, windows in zip(data.test_dataloader(), data.evaluation_windows.values(), strict=True):
        assert torch.equal(torch.cat([b["labels"] for b in loader]), windows.labels)


def test_training_reads_in_the_order_of_the_seed(tokenizer: Any, options: dict[str, Any]) -> None:
    modules = [built(tokenizer, **options, seed=3) for _ in range(2)]
    orders = [[row for batch in d.train_dataloader() for row in batch["input_ids"].tolist()] for d in modules]
    assert orders[0] == orders[1]


def test_options_of_sets_and_loaders_are_checked_together(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"\(1\) data.seed: .*\(2\) data.batch_size: .* >= 1, got 0.*\(3\) data.num_workers: .* got -1"
    ):
        PruningDataModule(**{**options, "seed": True, "batch_size": 0, "num_workers": -1})
    with pytest.raises(DataError, match=r"calibration set no/set.json: expected a readable file, got No such file"):
        PruningDataModule(**{**options, "calibration": CalibrationData(given_set="no/set.json")})


def test_prepare_data_reads_one_document_of_each_source(options: dict[str, Any], tmp_path: Path) -> None:
    data = PruningDataModule(**options)
    data.prepare_data()
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(DataError, match="source 'r': expected documents with text"):
        data.prepare_data()


def test_the_tokenizer_comes_from_the_trainers_module_or_a_folder(tokenizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    expected = built(tokenizer, **options).fingerprint
    by_trainer = PruningDataModule(**options)
    by_trainer.trainer = SimpleNamespace(lightning_module=SimpleNamespace(tokenizer=tokenizer))  # type: ignore[assignment]
    by_trainer.setup("fit")
    assert by_trainer.fingerprint == expected
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    by_folder = PruningDataModule(**options, tokenizer=str(tmp_path / "tokenizer"))
    by_folder.setup("fit")
    assert by_folder.fingerprint == expected
    with pytest.raises(ConfigurationError, match=r"data.tokenizer: expected a name or a module with a tokenizer, got neither"):
        PruningDataModule(**options).setup("fit")
    with pytest.raises(DataError, match=r"data.tokenizer: expected a tokenizer in"):
        PruningDataModule(**options, tokenizer=str(tmp_path)).setup("fit")


def test_without_recovery_there_is_nothing_to_train_on(tokenizer: Any, options: dict[str, Any]) -> None:
    data = built(tokenizer, **{**options, "recovery": None, "evaluation": None})
    assert data.recovery_windows is None
    assert data.evaluation_windows == {}
    assert data.test_dataloader() == []
    with pytest.raises(ConfigurationError, match=r"data.recovery: expected data to train on, got null"):
        data.train_dataloader()


def test_yaml_can_express_it(tokenizer: Any, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    path = source(tmp_path, "one", 0, rows=60).path
    (tmp_path / "data.yaml").write_text(f"""
data:
  calibration:
    sources:
      - {{name: one, path: {path}, part: [0, 0.4]}}
    samples_per_source: 4
    seq_len: 16
    other_seq_lens: [8]
    clusters: 2
  search:
    sources: [{{name: one, path: {path}, part: [0.4, 0.7]}}]
    samples: 4
  evaluation:
    - name: own
      source: {{name: one, path: {path}, part: [0.7, 1.0], documents: 8}}
      windows: [16, 32]
  seed: 2
""")
    parser = ArgumentParser()
    parser.add_class_arguments(PruningDataModule, "data")
    parser.add_argument("--config", action="config")
    parsed = parser.parse_args([f"--config={tmp_path / 'data.yaml'}", "--data.batch_size=3", "--data.search.seq_len=24"])
    data = parser.instantiate(parsed).data
    data.tokenizer_object = tokenizer
    data.setup()
    assert isinstance(data.calibration.sources[0], TextSource)
    assert tuple(data.search_windows.input_ids.shape) == (4, 24)
    assert list(data.evaluation_windows) == [("own", 16), ("own", 32)]
    assert list(data.calibration_windows_at) == [16, 8]
    parsed = parser.parse_args(["--data.calibration.given_set=set.json", "--data.search.sources=[{name: one, demo: stdlib}]"])
    assert parsed.data.calibration.sources == []
