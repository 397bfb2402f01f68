"""The blocks of code of all pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: All pages that a reader sees, by their names from the root.
_FILES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in _FILES}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
#: An option with its value as it stands in a sentence or a table: `--a.b 3`.
_INLINE = re.compile(r"`(--[a-z_]+\.[a-z_.]+[^`\n]*)`")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """All, or those of one language."""
    found = []
    for page, text in PAGES.items():
        for match in _FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page, line, match["language"].strip(), textwrap.dedent(match["code"])))
    return [block for block in found if language in (None, block.language)]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, comments and variables set before it left out.

    >>> commands(Block("", 1, "bash", "# first\\nA=1 make test \\\\\\n  B=2  # second\\n\\nadapruner --help"))
    [['make', 'test', 'B=2'], ['adapruner', '--help']]
    """
    lines = block.code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    for words in found:
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words.pop(0)
    return [words for words in found if words]


def arguments(words: list[str]) -> list[str] | None:
    """What stands behind ``adapruner``, or behind ``train.py``, which is the same program; ``None`` for another program."""
    for position, word in enumerate(words):
        if (word == "adapruner" and position == 0) or word == "train.py":
            return words[position + 1 :]
    return None


def inline_options() -> list[tuple[str, list[str]]]:
    """Page and words of every option that stands in a sentence or a table."""
    return [(page, shlex.split(found)) for page, text in PAGES.items() for found in _INLINE.findall(text)]
