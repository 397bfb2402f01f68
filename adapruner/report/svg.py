"""The pieces every plot is made of: an axis, marks, a frame.

A plot is as wide as its place: x positions are percentages, y positions pixels, so lettering keeps its size on a phone.
Labels stand left and right of the plot, in margins that the frame keeps free (``overflow: visible``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapruner.report.markup import Markup, element, join

SHAPES = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "dot": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
    "diamond": "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
    "cross": "M-3.5-3.5L3.5 3.5M-3.5 3.5L3.5-3.5",
    "above": "M0-5L4.5 3.5L-4.5 3.5Z",
}


@dataclass(frozen=True)
class Axis:
    """A scale from values to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value: 0 at ``low``, 1 at ``high``."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low)

    def percent(self, value: float) -> str:
        """Position of a value as an SVG length."""
        return f"{100 * self.at(value):.2f}%"

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the axis, ``count`` or a few less."""
        return self._log_ticks(count) if self.log else self._linear_ticks(count)

    def _linear_ticks(self, count: int) -> list[float]:
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 10) for k in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        digits = (1,) if self.high > 300 * self.low else (1, 2, 3, 5)
        ticks = [d * 10.0**k for k in decades for d in digits if self.low <= d * 10.0**k <= self.high]
        spaced: list[float] = []
        for tick in ticks:  # Numbers closer than this would run into each other on a phone.
            if not spaced or self.at(tick) - self.at(spaced[-1]) >= 0.8 / count:
                spaced.append(tick)
        return spaced


def padded(values: Iterable[float], log: bool = False, share: float = 0.05) -> Axis:
    """An axis around values with some air at both ends."""
    known = list(values)
    low, high = min(known), max(known)
    if log:
        factor = (high / low) ** share if high > low else 1 + share
        return Axis(low / factor, high * factor, log=True)
    room = (high - low) * share or abs(high) * share or 1.0
    return Axis(low - room, high + room)


def label(x: str, y: float, text: str, anchor: str = "middle", shift: float = 0, css: str = "label") -> Markup:
    """Text at a position; ``shift`` moves it by pixels in x."""
    return element("text", text, x=x, y=y, dx=shift or None, text_anchor=anchor, class_=css)


def line(x1: str, y1: float, x2: str, y2: float, css: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=css)


def bar(x: float, y: float, width: float, height: float, css: str, title: str | None = None) -> Markup:
    """A rectangle, x and width in percent, y and height in pixels."""
    return element("rect", title and element("title", title), x=f"{x:.2f}%", y=y, width=f"{width:.2f}%", height=height, class_=css)


def mark(shape: str, x: str, y: float, css: str, title: str | None = None) -> Markup:
    """A mark of constant size, with a tooltip."""
    path = element("path", title and element("title", title), d=SHAPES[shape], class_=f"mark {css}")
    return element("svg", path, x=x, y=y, overflow="visible")


def curve(points: Sequence[tuple[float, float]], height: float, css: str) -> Markup:
    """A polyline through points in [0, 1] x [0, 1], y upwards, over the whole width and ``height`` pixels."""
    corners = " ".join(f"{100 * x:.2f},{100 * (1 - y):.2f}" for x, y in points)
    path = element("polyline", points=corners, vector_effect="non-scaling-stroke", class_=css)
    return element(
        "svg", path, x=0, y=0, width="100%", height=height, viewBox="0 0 100 100", preserveAspectRatio="none", overflow="visible"
    )


def horizontal_grid(axis: Axis, height: float, text: str = "g") -> Markup:
    """Rules across the plot at an upright axis' ticks, labelled at the left."""
    parts = []
    for tick in axis.ticks(6):
        y = height * (1 - axis.at(tick))
        parts += [line("0", y, "100%", y, "grid"), label("0", y + 4, format(tick, text), "end", -8)]
    return join(*parts)


def key_of_marks(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """A legend: (shape, class, words); the shape ``line`` draws a stroke."""
    items = []
    for shape, css, words in entries:
        sign = (
            line("0", 7, "16", 7, css)
            if shape == "line"
            else element("g", element("path", d=SHAPES[shape], class_=f"mark {css}"), transform="translate(8 7)")
        )
        items.append(element("li", element("svg", sign, width=16, height=14, aria_hidden="true"), words))
    return element("ul", *items, class_="key")


def frame(title: str, description: str, height: float, *parts: Markup, margin: str = "wide") -> Markup:
    """The plot with its title for readers who see and a description for those who do not."""
    drawing = element("svg", element("title", title), *parts, role="img", aria_label=f"{title}. {description}", width="100%", height=height)
    return element("div", drawing, class_=f"frame {margin}")
