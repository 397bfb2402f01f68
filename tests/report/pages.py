"""A page as a test reads it: its text, and what its charts draw."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

#: Elements that are never closed.
VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """Text, tags, attributes and charts of a page; fails on tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.charts: list[dict[str, Any]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            if self.seen[-1][1].get("type") == "application/json":
                self.charts.append(json.loads(data, parse_constant=pytest.fail))
            return
        if "style" not in self.open and data.strip():
            self.text += data.strip() + "\n"
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)

    def chart(self, described: str) -> dict[str, Any]:
        """The chart whose description begins so."""
        (found,) = [chart for chart in self.charts if chart["description"].startswith(described)]
        return found


def rows_of(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that a chart and its layers draw."""
    own: list[dict[str, Any]] = chart.get("data", {}).get("values", [])
    return own + [row for layer in chart.get("layer", ()) for row in rows_of(layer)]
