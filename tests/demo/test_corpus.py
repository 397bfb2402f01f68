from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from adapruner.demo import corpus
from adapruner.demo.corpus import SOURCES, SPLITS, Document, load_demo_corpus, split_of
from adapruner.errors import ConfigurationError


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Document]]:
    return {split: load_demo_corpus(split) for split in SPLITS}


def shared_between_splits(keys: dict[str, set[str]]) -> list[str]:
    first: dict[str, str] = {}
    return [key for split, members in keys.items() for key in members if first.setdefault(key, split) != split]


def test_no_document_is_in_two_splits(splits: dict[str, list[Document]]) -> None:
    names = {split: {f"{d.source}/{d.name}" for d in documents} for split, documents in splits.items()}
    hashes = {split: {hashlib.sha256(d.text.encode()).hexdigest() for d in documents} for split, documents in splits.items()}
    assert shared_between_splits(names) == []
    assert shared_between_splits(hashes) == []
    assert sum(map(len, names.values())) == sum(map(len, splits.values())) > 1000


def test_no_paragraph_is_in_two_splits(splits: dict[str, list[Document]]) -> None:
    paragraphs = {s: {p.strip() for d in ds for p in d.text.split("\n\n") if len(p.strip()) >= 60} for s, ds in splits.items()}
    assert shared_between_splits(paragraphs) == []
    assert min(map(len, paragraphs.values())) > 500


def test_every_split_has_every_source_and_its_share(splits: dict[str, list[Document]]) -> None:
    total = sum(len(d.text) for documents in splits.values() for d in documents)
    for split, documents in splits.items():
        assert {d.source for d in documents} == set(SOURCES)
        assert all(d.split == split == split_of(d.source, d.name) for d in documents)
        assert sum(len(d.text) for d in documents) / total == pytest.approx(SPLITS[split] / 100, abs=0.04)


def test_one_source_of_one_split(splits: dict[str, list[Document]]) -> None:
    assert load_demo_corpus("search", "torch") == [d for d in splits["search"] if d.source == "torch"]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"split: expected .* got 'tset'; did you mean 'test'"):
        load_demo_corpus("tset")
    with pytest.raises(ConfigurationError, match=r"source: expected .* got 'panda'; did you mean 'pandas'"):
        load_demo_corpus("test", "panda")


def test_a_corpus_that_no_file_can_keep_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(corpus, "_IN_MEMORY", {})
    monkeypatch.setattr(corpus, "build_corpus", lambda: built.append(1) or [Document("topics", "a", "train", "text")])
    (tmp_path / "file").write_text("no folder")
    for split in ("train", "test", "train"):
        load_demo_corpus(split, cache=tmp_path / "file" / "cache.gz")
    assert built == [1]


def test_a_user_without_a_home_has_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAPRUNER_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert str(corpus._cache_file()).startswith(os.devnull)
