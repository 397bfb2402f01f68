"""How numbers are written in the table and on the page."""

from __future__ import annotations

import math
import re
from typing import Any

MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
NOT_FINITE = "not finite"


def count_text(count: float | None) -> str:
    """Parameters or MACs to three digits.

    >>> count_text(4_031_488), count_text(812), count_text(6_738_415_616)
    ('4.03 M', '812', '6.74 B')
    """
    if count is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{count:.0f}"


def percent_text(fraction: float) -> str:
    """A fraction in percent: ``0.4`` -> ``40.0 %``; what rounds to zero has no sign."""
    return f"{100 * fraction:z.1f} %"


def share_text(fraction: float) -> str:
    """A part of a whole; a small one is not nothing.

    >>> share_text(0.023), share_text(0.0002), share_text(0.0)
    ('2.3 %', 'below 0.1 %', '0.0 %')
    """
    return "below 0.1 %" if 0 < fraction < 0.0005 else percent_text(fraction)


def signed_percent_text(fraction: float, format: str = ".1f") -> str:
    """A change in percent; what rounds to zero has no sign.

    >>> signed_percent_text(0.123), signed_percent_text(-0.02), signed_percent_text(-0.0001)
    ('+12.3 %', '-2.0 %', '0.0 %')
    """
    text = f"{100 * fraction:+{format}}"
    return f"{text if float(text) else text[1:]} %"


def perplexity_text(value: float | None) -> str:
    """Two decimals below 100, fewer above; what is not finite says so.

    >>> perplexity_text(30.123), perplexity_text(412.34), perplexity_text(20480.7), perplexity_text(None)
    ('30.12', '412.3', '20,481', 'not finite')
    """
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def nll_text(value: float | None) -> str:
    """NLL in nats per token, four decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def memory_text(gib: float | None) -> str:
    """Memory given in GiB; small models are shown in MiB.

    >>> memory_text(12.55), memory_text(0.015)
    ('12.6 GiB', '15.4 MiB')
    """
    if gib is None:
        return MISSING
    return f"{_three_digits(gib)} GiB" if gib >= 0.1 else f"{_three_digits(1024 * gib)} MiB"


def unit_text(value: float | None, unit: str) -> str:
    """A number of three digits with its unit.

    >>> unit_text(5.984, "ms"), unit_text(0.75, "J")
    ('5.98 ms', '0.75 J')
    """
    return MISSING if value is None else f"{_three_digits(value)} {unit}"


def quantity_text(value: float | None, unit: str) -> str:
    """A number of a row of the cost table: ``count`` has no unit, ``GiB`` may become MiB.

    >>> quantity_text(4_031_488, "count"), quantity_text(0.015, "GiB"), quantity_text(5.984, "ms")
    ('4.03 M', '15.4 MiB', '5.98 ms')
    """
    if unit == "count":
        return count_text(value)
    return memory_text(value) if unit == "GiB" else unit_text(value, unit)


def ratio_text(dense: float | None, pruned: float | None) -> str:
    """Pruned over dense, after a multiplication sign."""
    return MISSING if not dense or pruned is None else f"{TIMES}{pruned / dense:.2f}"


def duration_text(seconds: float | None) -> str:
    """A duration with two units at most.

    >>> duration_text(4.2), duration_text(192), duration_text(7384)
    ('4.2 s', '3 min 12 s', '2 h 3 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def value_text(value: Any) -> str:
    """A value of a recipe: floats to four digits, lists joined, the rest as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value)
    return MISSING if value is None else str(value)


def unbroken(text: str) -> str:
    """Ties a number to its unit with a no-break space, so that a narrow page never parts them."""
    return re.sub(r"(?<=\d) (?=(?:%|[TBMk]|[GM]iB|ms|min|s|h)(?:\W|$))", "\u00a0", text)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
