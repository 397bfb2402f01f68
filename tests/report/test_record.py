import json
import math
from pathlib import Path

import numpy as np
import pytest

from adapruner.errors import ConfigurationError
from adapruner.report.record import check_can_draw, read_report, write_report

from .sample import sample_report


def test_round_trip_by_file_and_by_folder(tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path / "new" / "run")
    assert read_report(tmp_path / "new" / "run" / "report.json").to_dict() == sample_report()
    assert read_report(tmp_path / "new" / "run").to_dict() == sample_report()
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == ["report.html", "report.json"]


def test_same_report_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_report(sample_report(), tmp_path / folder)
    for name in ("report.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_numbers_that_json_lacks_become_null_and_scalars_plain(tmp_path: Path) -> None:
    report = sample_report()
    report["perplexity"][1]["value"] = math.inf
    report["search"]["history"][0]["value"] = math.nan
    report["seed"] = np.int64(7)
    report["cost"]["dense"]["latency_ms"] = np.float32(2.5)
    report["recovery"]["lora"]["history"] = [(0, 3.0), (1, 2.5)]
    report["search"]["recipe"]["folder"] = Path("a/b")
    write_report(report, tmp_path)
    record = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert record["perplexity"][1]["value"] is None
    assert record["search"]["history"][0]["value"] is None
    assert (record["seed"], record["cost"]["dense"]["latency_ms"]) == (7, 2.5)
    assert record["recovery"]["lora"]["history"] == [[0, 3.0], [1, 2.5]]
    assert record["search"]["recipe"]["folder"] == "a/b"


def test_refused_reports_leave_the_old_files(tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match="expected the key 'model'"):
        write_report({k: v for k, v in sample_report().items() if k != "model"}, tmp_path)
    report = sample_report()
    report["search"]["recipe"]["draw"] = {1}
    with pytest.raises(ConfigurationError, match=r"report\.search\.recipe\.draw: expected a JSON value, got set"):
        write_report(report, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a readable report\.json, got No such file"):
        read_report(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"expected JSON in .*bad\.json, got damage"):
        read_report(tmp_path / "bad.json")
    with pytest.raises(ConfigurationError, match="folder: expected a folder, got the file"):
        write_report(sample_report(), tmp_path / "bad.json")


def test_a_limit_that_charts_cannot_be_drawn_under_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    check_can_draw()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (6 * 2**30, 6 * 2**30))
    with pytest.raises(
        ConfigurationError, match=r"report: expected an address space of 64 GiB or more .* got a limit of 6\.0 GiB \(ulimit -v\)"
    ):
        check_can_draw()
