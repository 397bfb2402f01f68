"""The record of a conformance run, which the page's tables are made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[2] / "docs" / "serving-vllm.json"


@dataclass(frozen=True)
class Row:
    """One folder, served one way."""

    family: str
    form: str
    way: str
    """``vllm``: a class of vLLM's own; ``transformers``: the folder's, by vLLM's transformers backend; ``deci``: vLLM's DeciLM."""
    tokens: int
    """That transformers generated."""
    equal: int
    """Of these, those that vLLM generated in their places; 0 where it did not load."""
    served_by: str
    """The class that vLLM ran."""
    error: str
    """Why it did not load; empty where it did."""

    @classmethod
    def of(cls, family: str, form: str, way: str, expected: list[list[int]], answer: dict[str, Any]) -> Row:
        """Compares one answer with the tokens that transformers generated."""
        got = answer.get("tokens", [[]] * len(expected))
        equal = sum(a == b for ours, theirs in zip(expected, got, strict=True) for a, b in zip(ours, theirs, strict=False))
        return cls(family, form, way, sum(map(len, expected)), equal, answer.get("class", ""), answer.get("error", ""))

    @classmethod
    def read(cls, record: dict[str, Any]) -> Row:
        """Out of the record."""
        return cls(**record)


def load(file: Path = RECORD) -> dict[str, Any]:
    """``rows``, ``versions`` and ``real``; empty where there is no file."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def save(file: Path = RECORD, *, rows: list[Row] | None = None, **parts: Any) -> None:
    """Puts parts in the place of those that the file has; the others stay."""
    if rows is not None:
        parts["rows"] = [asdict(row) for row in rows]
    file.write_text(json.dumps({**load(file), **parts}, indent=1) + "\n", encoding="utf-8")
