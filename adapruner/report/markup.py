"""HTML and SVG elements that escape everything put into them."""

from __future__ import annotations

import html
from typing import Any


class Markup(str):
    """Text that is already markup. Only :func:`element` and :func:`join` make it; everything else is escaped."""

    __slots__ = ()


VOID = frozenset({"meta", "br", "hr"})


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """One element. A trailing underscore in an attribute's name is dropped, others become hyphens; ``None`` leaves it out.

    >>> element("p", "1 < 2", element("b", "!"), class_="note")
    '<p class="note">1 &lt; 2<b>!</b></p>'
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    written = "".join(f' {name}="{html.escape(_text(value))}"' for name, value in given.items())
    return Markup(f"<{tag}{written}>" if tag in VOID else f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: Any) -> Markup:
    """Children one after another: markup as it is, ``None`` as nothing, everything else escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(_text(c), quote=False) for c in children if c is not None))


def _text(value: Any) -> str:
    """Coordinates are rounded, so that the same report gives the same bytes everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
