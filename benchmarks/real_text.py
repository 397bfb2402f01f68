"""Text of several domains for :mod:`real_models`, from a folder of data; every part of a domain has documents of its own.

A part is a contiguous stretch of a domain's documents: pieces of one book stay on one side of a border, but for the book at the border.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from adapruner.data.text_source import TextSource

CALIBRATED = ("wiki", "books", "rust")
"""Domains that units are scored on, plans are judged on and weights are trained on."""
UNSEEN = ("k8s", "shakespeare")
"""Domains that nothing but the last measurement reads."""
#: Part -> the stretch of a domain's documents that it has, of [0, 1).
_PARTS = {"calibration": (0.0, 0.45), "search": (0.45, 0.6), "recovery": (0.6, 0.9), "test": (0.9, 1.0)}
#: Characters of a piece of test text; pieces come from all over the part.
_PIECE = 800


def read_domains(folder: Path) -> dict[str, list[str]]:
    """Domain -> its documents in their order: ``corpus.jsonl.gz`` by source, and WikiText-2's articles as ``wiki``."""
    domains: dict[str, list[str]] = {name: [] for name in (*CALIBRATED, *UNSEEN)}
    domains["wiki"] = wikitext_articles((folder / "wikitext-2-valid.txt").read_text())
    with gzip.open(folder / "corpus.jsonl.gz", "rt") as rows:
        for row in map(json.loads, rows):
            domains[row["source"]].append(row["text"])
    return domains


def wikitext_articles(text: str) -> list[str]:
    """WikiText's one long text, cut before each line `` = Title = ``; sections, `` = = Title = = ``, stay inside."""
    return [article for article in re.split(r"(?m)^(?= = [^=\n]+ = $)", text) if article.strip()]


def source(domains: dict[str, list[str]], domain: str, part: str) -> TextSource:
    """One part of one domain."""
    documents = domains[domain]
    low, high = (round(share * len(documents)) for share in _PARTS[part])
    return TextSource(f"{domain}-{part}", texts=documents[low:high])


def test_source(domains: dict[str, list[str]], domain: str, windows: int) -> TextSource:
    """Evenly spaced pieces of the domain's test part, as many as windows. Joined, a piece is more than one window of 128 tokens (1.5 to 2):
    the windows that are kept cover the first half to two thirds of the pieces, and some begin in one and end in the next."""
    texts = source(domains, domain, "test").texts or []
    pieces = [text[at : at + _PIECE] for text in texts for at in range(0, len(text) - _PIECE + 1, _PIECE)]
    return TextSource(f"{domain}-test", texts=[pieces[i * len(pieces) // windows] for i in range(windows)])
