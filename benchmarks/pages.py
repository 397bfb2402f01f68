"""Tables in pages, between two markers that stay."""

from __future__ import annotations


def between_markers(page: str, begin: str, end: str, text: str) -> str:
    """The page with what stands between the two markers replaced.

    >>> between_markers("a <b> old <e> c", "<b>", "<e>", "new")
    'a <b>\\nnew\\n<e> c'
    """
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
