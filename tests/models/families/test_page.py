from __future__ import annotations

from tests.models.families.table import ROWS
from tests.models.families.write_page import PAGE


def test_every_row_and_note_is_on_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    for row in ROWS:
        cells = next(line for line in lines if line.startswith(f"| {row.name} | `{row.model_type}` |")).split(" | ")
        assert not any(cell.startswith("no:") for cell in cells)
        assert not row.note or f"- {row.name}: {row.note}." in lines
    assert len([line for line in lines if line.startswith("| ") and "`" in line]) == len(ROWS) + 1
