"""The two kinds of units; apart from the rest, so that a plan is read without torch."""

from __future__ import annotations

from typing import Literal

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")
