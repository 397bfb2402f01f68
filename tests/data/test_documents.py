from __future__ import annotations

import pytest

from adapruner.data.documents import Document, draw_documents


def test_hash_is_the_start_of_sha256() -> None:
    assert Document("s", "n", "abc").hash == "ba7816bf8f01cfea"
    assert 0 <= Document("s", "n", "abc").position < 1
    assert Document("s", "n", "lone surrogate \ud800").hash != Document("s", "n", "lone surrogate \ud801").hash


def test_a_short_source_is_drawn_whole_without_blanks() -> None:
    documents = [Document("s", str(i), "word " * i) for i in range(6)]
    assert draw_documents(documents, 1000, 0) == documents[1:]


def test_a_long_source_gives_an_ordered_sample_from_all_over() -> None:
    documents = [Document("s", str(i), f"{i:010d}") for i in range(2000)]
    counts = [0] * 4
    for seed in range(20):
        drawn = [int(d.name) for d in draw_documents(documents, 1000, seed)]
        assert len(drawn) == 100
        assert drawn == sorted(drawn)
        for name in drawn:
            counts[name // 500] += 1
    assert counts == pytest.approx([500] * 4, rel=0.15)
    assert draw_documents(documents, 1000, 3) == draw_documents(iter(documents), 1000, 3) != draw_documents(documents, 1000, 4)
