"""Measured numbers outlive the process, under what they depend on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from adapruner.files.digests import opened
from adapruner.files.value_cache import ValueCache

VALUES = {"a": 1.5, "b": None, "c": 2.5}


def test_only_what_is_missing_is_measured(tmp_path: Path) -> None:
    file, measured, seen = tmp_path / "values.json", list[str](), list[tuple[int, str]]()

    def measure(name: str) -> float | None:
        measured.append(name)
        return VALUES[name]

    assert ValueCache(file, {"model": "f"}).measure("trial", ["a", "b"], measure) == [1.5, math.inf]
    cache = ValueCache(file, {"model": "f"})
    found = cache.measure("trial", ["a", "b", "c"], measure, lambda done, name: seen.append((done, name)))
    assert found == [1.5, math.inf, 2.5]
    assert measured == ["a", "b", "b", "c"]  # what could not be measured is tried again
    assert seen == [(1, "b"), (2, "c"), (3, "c")]  # what is at work, and the end
    assert opened(json.loads(file.read_text())) == {"identity": {"model": "f"}, "values": {"trial": {"a": 1.5, "c": 2.5}}}
    assert cache.get("other stage", "a") is None


def test_another_identity_or_damage_counts_as_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "values.json"
    ValueCache(file, {"model": "f"}).put("trial", "a", 1.5, write=True)
    assert ValueCache(file, {"model": "f"}).get("trial", "a") == 1.5
    assert ValueCache(file, {"model": "g"}).get("trial", "a") is None
    assert capsys.readouterr().out == ""
    changed = file.read_text().replace("1.5", "1.25")
    for damage in ("{torn", "[]", '{"identity": {"model": "f"}, "values": 3}', changed):
        file.write_text(damage)
        assert ValueCache(file, {"model": "f"}).get("trial", "a") is None
        assert capsys.readouterr().out.count("values.json is damaged") == 1
    assert ValueCache(None, {}).measure("trial", ["a"], lambda _: 4.0) == [4.0]
