"""The section "The ten changes" of CONTRIBUTING.md: its table and its lines of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## The ten changes\n(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
assert SECTION is not None
#: Change -> its text, the lines of code included.
CHANGES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", SECTION[1], re.DOTALL | re.MULTILINE))
#: Change -> Python that a file of one's own holds; empty where the change is one to the project.
CODE = {change: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for change, text in CHANGES.items()}
#: Change -> hunks of a change to the project.
HUNKS = {change: re.findall(r"```diff\n(.*?)```", text, re.DOTALL) for change, text in CHANGES.items()}


def read_table() -> dict[str, tuple[list[str], str]]:
    """Change -> the files that it touches, the first one first, and its group of entry points, from the table."""
    assert SECTION is not None
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in SECTION[1].splitlines() if line.startswith("| [")]
    found = {}
    for name, first, second, group in rows:
        files = [file for cell in (first, second) for file in re.findall(r"`([\w/]+\.py)`", cell)]
        found[re.sub(r"\[(.*?)\].*", r"\1", name).capitalize()] = (files, group.strip("`"))
    return found
