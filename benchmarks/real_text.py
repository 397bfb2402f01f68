"""Text of several domains for :mod:`real_models`, from a folder of data; every part of a domain has documents of its own.

A part is a contiguous stretch of a domain's documents: pieces of one book stay on one side of a border, but for the book at the border.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from adapruner.data.text_source import TextSource
from adapruner.data.windows import TextWindows

CALIBRATED = ("wiki", "books", "rust")
"""Domains that units are scored on, plans are judged on and weights are trained on."""
UNSEEN = ("k8s", "shakespeare")
"""Domains that nothing but the last measurement reads."""
#: Part -> the stretch of a domain's documents that it has, of [0, 1).
_PARTS = {"calibration": (0.0, 0.45), "search": (0.45, 0.6), "recovery": (0.6, 0.9), "test": (0.9, 1.0)}


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


def evenly_spaced(windows: TextWindows, count: int) -> TextWindows:
    """That many windows, from all over."""
    have = len(windows.input_ids)
    if count > have:
        raise SystemExit(f"--test-windows: expected at most the {have} windows that a test part has, got {count}; give fewer")
    return windows.select([i * have // count for i in range(count)])
