"""All sets of a run, from text to token windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.data.calibration_set import make_set
from adapruner.data.leaks import check_leaks
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, ReconstructionData, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource
from adapruner.errors import ConfigurationError, DataError

from .words import numbered_source as source


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "calibration": CalibrationData([source(tmp_path, "b", 0), source(tmp_path, "a", 7)], samples_per_source=5, seq_len=16),
        "search": SearchData([source(tmp_path, "x", 11), source(tmp_path, "y", 13)], samples=7, seq_len=24),
        "recovery": RecoveryData([source(tmp_path, "r", 17)], samples=9, seq_len=16),
        "evaluation": [EvaluationSet("held", source(tmp_path, "e", 19), windows=[16, 32], limit=6)],
    }


def built(tokenizer: Any, **options: Any) -> RunData:
    sets = TextSets(**options)
    sets.check()
    return sets.build(tokenizer)


def test_every_set_has_its_size(tokenizer: Any, options: dict[str, Any]) -> None:
    data = built(tokenizer, **options)
    assert data.calibration_windows.source_names == ["b", "a"]
    assert data.calibration_windows.source_index.tolist() == [0] * 5 + [1] * 5
    assert tuple(data.calibration_windows.input_ids.shape) == (10, 16)
    assert tuple(data.search_windows.input_ids.shape) == (7, 24)
    assert sorted(data.search_windows.source_index.tolist()) == [0] * 4 + [1] * 3
    assert data.recovery_windows is not None
    assert tuple(data.recovery_windows.input_ids.shape) == (9, 16)
    shapes = {key: tuple(windows.input_ids.shape) for key, windows in data.evaluation_windows.items()}
    assert shapes == {("held", 16): (6, 16), ("held", 32): (6, 32)}


def test_what_a_limit_leaves_out_is_said(tokenizer: Any, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    whole = EvaluationSet("held", options["evaluation"][0].source, windows=[16])
    count = len(built(tokenizer, **{**options, "evaluation": [whole]}).evaluation_windows["held", 16])
    assert "measures perplexity of" not in capsys.readouterr().out
    limited = EvaluationSet("held", whole.source, windows=[16], limit=6)
    windows = built(tokenizer, **{**options, "evaluation": [limited]}).evaluation_windows["held", 16]
    assert (len(windows), windows.left_out) == (6, count - 6)
    said = " ".join(capsys.readouterr().out.split())
    assert f"measures perplexity of held on the first 6 of {count} windows of 16 tokens" in said


def test_the_seed_decides_every_draw(tokenizer: Any, options: dict[str, Any]) -> None:
    first, same, other = (built(tokenizer, **options, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert first.calibration_windows.fingerprint != other.calibration_windows.fingerprint
    assert first.search_windows.fingerprint != other.search_windows.fingerprint
    assert all(torch.equal(w.input_ids, other.evaluation_windows[key].input_ids) for key, w in first.evaluation_windows.items())


@pytest.mark.parametrize(
    ("role", "replacement", "message"),
    [
        ("calibration", lambda leak: CalibrationData([leak], 5, 16), "expected calibration and evaluation 'held' to share no document"),
        ("search", lambda leak: SearchData([leak], 5, 16), "expected search and evaluation 'held' to share no document"),
        ("recovery", lambda leak: RecoveryData([leak], None, 16), r"expected recovery and evaluation 'held' .* got 12 in both"),
    ],
)
def test_a_leak_is_refused_and_can_be_allowed(tokenizer: Any, options: dict[str, Any], role: str, replacement: Any, message: str) -> None:
    options[role] = replacement(options["evaluation"][0].source)
    with pytest.raises(DataError, match=message):
        built(tokenizer, **options)
    assert len(built(tokenizer, **options, allow_leak=True).evaluation_windows) == 2


def test_search_may_not_share_with_calibration(tokenizer: Any, options: dict[str, Any]) -> None:
    options["search"] = SearchData([options["calibration"].sources[0]], 5, 16)
    with pytest.raises(DataError, match="expected calibration and search to share no document"):
        built(tokenizer, **options)


def test_parts_of_one_file_serve_every_set(tokenizer: Any, tmp_path: Path) -> None:
    path = source(tmp_path, "one", 0, rows=200).path

    def part(low: float, high: float) -> list[TextSource]:
        return [TextSource("one", path=path, part=[low, high])]

    data = built(
        tokenizer,
        calibration=CalibrationData(part(0, 0.3), 8, 32),
        search=SearchData(part(0.3, 0.6), 8, 32),
        recovery=RecoveryData(part(0.6, 0.8), None, 32),
        evaluation=[EvaluationSet("one", part(0.8, 1)[0], [32])],
    )
    assert data.recovery_windows is not None
    assert len(data.recovery_windows) > 50


def test_instruction_sources_are_masked_in_recovery(tokenizer: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    rows = [{"instruction": f"w{i} w1", "input": "", "output": f"w{i} w2 w3"} for i in range(20)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    options["recovery"] = RecoveryData([TextSource("alpaca", path=str(tmp_path / "alpaca.json"), instruction=True)], 6, 64)
    data = built(tokenizer, **options)
    assert data.recovery_windows is not None
    assert len(data.recovery_windows) == 6
    assert ((data.recovery_windows.labels != -100).sum(1) <= 5).all()
    assert (data.recovery_windows.attention_mask.sum(1) > 10).all()


def test_a_stream_is_read_only_as_far_as_needed(tokenizer: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    read: list[int] = []

    def endless(*arguments: Any, **keywords: Any) -> Any:
        while True:
            read.append(len(read))
            yield {"text": " ".join(f"w{(23 * len(read) + j) % 2000}" for j in range(100))}

    monkeypatch.setattr(datasets, "load_dataset", endless)
    monkeypatch.setattr("adapruner.data.sources.hub.hub_fault", lambda *_: None)
    stream = TextSource("stream", hub="me/set", streaming=True)
    data = built(tokenizer, **{**options, "recovery": RecoveryData([stream], samples=20, seq_len=16)})
    assert data.recovery_windows is not None
    assert len(data.recovery_windows) == 20
    assert len(read) <= 5
    with pytest.raises(ConfigurationError, match=r"data.recovery: expected a limit for the streamed source 'stream', got none"):
        TextSets(**{**options, "recovery": RecoveryData([stream])}).check()
    with pytest.raises(ConfigurationError, match=r"data.evaluation: expected a limit for the streamed source"):
        TextSets(**{**options, "evaluation": [EvaluationSet("e", stream)]}).check()


def test_errors_name_the_set_and_the_source(tokenizer: Any, options: dict[str, Any]) -> None:
    options["calibration"] = CalibrationData(options["calibration"].sources, samples_per_source=500, seq_len=16)
    with pytest.raises(DataError, match=r"data, calibration, source 'b': expected 500 windows of 16 tokens, got 72 "):
        built(tokenizer, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, 0)}, "data.calibration.samples_per_source: .* >= 1, got 0"),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, 5, 1)}, "data.calibration.seq_len: .* >= 2, got 1"),
        (lambda o: {"calibration": CalibrationData()}, "data.calibration: expected exactly one of sources and given_set, got neither"),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, given_set="set.json")}, "sources and given_set, got both"),
        (
            lambda o: {"calibration": CalibrationData(given_set="s", other_seq_lens=[8])},
            r"other_seq_lens: expected none with given_set, got \[8\]",
        ),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, clusters=1)}, "clusters: expected 0 or at least 2, got 1"),
        (
            lambda o: {"calibration": CalibrationData(o["calibration"].sources, clusters=-1)},
            "clusters: expected a whole number >= 0, got -1",
        ),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, other_seq_lens=[1])}, "other_seq_lens: .* >= 2, got 1"),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, other_seq_lens=[8, 8])}, "each once, got 128, 8, 8"),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources, other_seq_lens=[128])}, "each once, got 128, 128"),
        (lambda o: {"calibration": CalibrationData(o["calibration"].sources * 2)}, "each once, got b, a, b, a"),
        (lambda o: {"search": SearchData(o["search"].sources, 1)}, "data.search.samples: expected a whole number >= 2, got 1"),
        (lambda o: {"search": SearchData([])}, "data.search.sources: expected one or more"),
        (lambda o: {"recovery": RecoveryData(o["recovery"].sources, 0)}, "data.recovery.samples: .* >= 1, got 0"),
        (lambda o: {"evaluation": [EvaluationSet("e", o["recovery"].sources[0], [])]}, "data.evaluation.e.windows: .* got none"),
        (lambda o: {"evaluation": [EvaluationSet("e", o["recovery"].sources[0], [1])]}, "data.evaluation.e.windows: .* >= 2, got 1"),
        (lambda o: {"evaluation": [EvaluationSet("e", o["recovery"].sources[0], limit=0)]}, "data.evaluation.e.limit: .* >= 1, got 0"),
        (lambda o: {"evaluation": o["evaluation"] * 2}, "data.evaluation: expected .* each once, got held, held"),
        (lambda o: {"seed": True}, "data.seed: expected a whole number from 0 to 2.*, got True"),
    ],
)
def test_numbers_are_checked_before_anything_is_read(options: dict[str, Any], change: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextSets(**{**options, **change(options)}).check()


def test_a_missing_file_is_refused_before_anything_is_read(options: dict[str, Any]) -> None:
    options["search"] = SearchData([TextSource("gone", path="no/such/file.txt")])
    with pytest.raises(DataError, match=r"source 'gone': path: expected a file or a folder, got 'no/such/file.txt'"):
        TextSets(**options).check()


def test_every_length_has_as_many_samples(tokenizer: Any, options: dict[str, Any]) -> None:
    plain = built(tokenizer, **options)
    sources = options["calibration"].sources
    data = built(tokenizer, **{**options, "calibration": CalibrationData(sources, 5, 16, other_seq_lens=[8, 32])})
    assert [(n, tuple(w.input_ids.shape)) for n, w in data.calibration_windows_at.items()] == [(16, (10, 16)), (8, (10, 8)), (32, (10, 32))]
    assert data.calibration_windows is data.calibration_windows_at[16]
    assert torch.equal(data.calibration_windows.input_ids, plain.calibration_windows.input_ids)
    assert all(w.source_names == ["b", "a"] and w.source_index.tolist() == [0] * 5 + [1] * 5 for w in data.calibration_windows_at.values())
    assert data.calibration_sample_weights is None
    assert plain.calibration_fingerprint == plain.calibration_windows.fingerprint
    assert len({plain.calibration_fingerprint, data.calibration_fingerprint}) == 2 == len({plain.fingerprint, data.fingerprint})


def test_other_lengths_may_leak_too(tokenizer: Any, options: dict[str, Any]) -> None:
    calibration = CalibrationData(options["calibration"].sources, 1, 16, other_seq_lens=[64])
    data = built(tokenizer, **{**options, "calibration": calibration, "recovery": None, "evaluation": []})
    only_long = data.calibration_windows_at[64].documents - data.calibration_windows.documents
    data.search_windows.document_hashes[0] = sorted(only_long)[0]
    with pytest.raises(DataError, match="expected calibration and search to share no document, got 1 in both"):
        check_leaks(data)


def test_clusters_need_samples(tokenizer: Any, options: dict[str, Any]) -> None:
    sources = options["calibration"].sources
    assert built(tokenizer, **{**options, "calibration": CalibrationData(sources, 5, 16, clusters=10)}).clusters == 10
    with pytest.raises(ConfigurationError, match=r"data.calibration.clusters: expected at most one per sample \(10\), got 11"):
        built(tokenizer, **{**options, "calibration": CalibrationData(sources, 5, 16, clusters=11)})


def test_a_given_set_is_the_pool(tokenizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    first = built(tokenizer, **options)
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    make_set(first.calibration_windows, tokenizer, weights).write(tmp_path / "set.json")
    options["calibration"] = CalibrationData(given_set=str(tmp_path / "set.json"), seq_len=16)
    data = built(tokenizer, **options)
    weighted = weights.nonzero().flatten()
    assert data.calibration_sample_weights is not None
    assert data.calibration_sample_weights.tolist() == pytest.approx((weights[weighted] / 8).tolist())
    assert torch.equal(data.calibration_windows.input_ids, first.calibration_windows.input_ids[weighted])
    assert list(data.calibration_windows_at) == [16]
    assert data.calibration_fingerprint != data.calibration_windows.fingerprint, "weights are part of it"
    options["search"] = SearchData([TextSource("b", path=str(tmp_path / "b.jsonl"))], 20, 16)
    with pytest.raises(DataError, match="expected calibration and search to share no document"):
        built(tokenizer, **options)


def test_a_given_set_is_read_before_anything_is_read(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"calibration set no/set.json: expected a readable file, got No such file"):
        TextSets(**{**options, "calibration": CalibrationData(given_set="no/set.json")}).check()


def test_the_refit_has_windows_of_its_own(tokenizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    plain = built(tokenizer, **options)
    assert plain.reconstruction_windows is None
    assert plain.refitted_on is plain.calibration_windows
    of_pool = built(tokenizer, **options, reconstruction=ReconstructionData(samples_per_source=8))
    assert of_pool.refitted_on.source_names == ["b", "a"]
    assert tuple(of_pool.refitted_on.input_ids.shape) == (16, 16)
    of_its_own = ReconstructionData([source(tmp_path, "own", 23)], samples_per_source=4, seq_len=24)
    own = built(tokenizer, **options, reconstruction=of_its_own)
    assert tuple(own.refitted_on.input_ids.shape) == (4, 24)
    assert len({plain.fingerprint, of_pool.fingerprint, own.fingerprint}) == 3
    assert plain.calibration_fingerprint == own.calibration_fingerprint
    assert own.card is not None
    row = next(row for row in own.card["sets"] if row["role"] == "reconstruction")
    assert (row["windows"], row["seq_len"], row["hash"]) == (4, 24, own.refitted_on.fingerprint)


@pytest.mark.parametrize("role", ["search", "evaluation"])
def test_the_refit_must_not_see_what_is_judged(tokenizer: Any, options: dict[str, Any], role: str) -> None:
    text = options["search"].sources[0] if role == "search" else options["evaluation"][0].source
    with pytest.raises(DataError, match=f"expected reconstruction and {role}.* to share no document"):
        built(tokenizer, **options, reconstruction=ReconstructionData([text], samples_per_source=2))


def test_a_refit_without_sources_is_refused_beside_a_given_set(tokenizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    given = CalibrationData(given_set=str(tmp_path / "set.json"))
    sets = TextSets(**{**options, "calibration": given}, reconstruction=ReconstructionData())
    with pytest.raises(ConfigurationError, match=r"data\.reconstruction\.sources: expected sources beside a given calibration set"):
        sets.check()


def test_sources_of_the_search_have_their_shares(tokenizer: Any, options: dict[str, Any]) -> None:
    search = SearchData(options["search"].sources, samples=8, seq_len=24, shares={"y": 3.0})
    found = built(tokenizer, **{**options, "search": search}).search_windows
    assert sorted(found.source_index.tolist()) == [0] * 2 + [1] * 6
