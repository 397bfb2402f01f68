"""What ``make test-llama-cpp`` found, as ``docs/llama_cpp.json`` and as the tables of ``docs/serving.md``.

    python benchmarks/llama_cpp_table.py build/llama-cpp.xml

Reads what the tests recorded (pytest's ``--junitxml``); where one failed, nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pages import between_markers

from adapruner.files.atomic import write_atomically

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "llama_cpp.json", ROOT / "docs" / "serving.md"
BEGIN, END = "<!-- llama.cpp: written by benchmarks/llama_cpp_table.py -->", "<!-- llama.cpp: end -->"
LIBRARIES = ("llama_cpp_python", "gguf", "transformers", "torch")
REAL = "SmolLM2-135M"


def read_results(file: Path) -> list[dict[str, str]]:
    """What each test recorded, in the order of the tests; ends the program where one failed or none recorded anything."""
    cases = ElementTree.parse(file).getroot().findall(".//testcase")
    failed = [str(case.get("name")) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    rows = [{str(p.get("name")): str(p.get("value")) for p in case.findall("properties/property")} for case in cases]
    rows = [row for row in rows if row]
    if failed or not rows:
        sys.exit(f"{file}: expected tests that passed and recorded something, got {failed or 'no record'}; run make test-llama-cpp")
    return rows


def render(record: Mapping[str, Any]) -> str:
    """Both tables, in Markdown."""
    rows, versions = record["rows"], ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    tiny, real = ([row for row in rows if (row["family"] == REAL) is wanted] for wanted in (False, True))
    return "\n".join(
        [
            f"Tiny random models, float32, eight prompts of 24 greedy tokens against transformers ({versions}):",
            "",
            *_table(("family", "form", "loads as", "tokens equal", "largest logit difference"), map(_tiny_row, tiny)),
            "",
            f"{REAL} pruned at 20 % (uniform: 12.5 %), refitted, not recovered; perplexity on 12 windows of 256 tokens, files in "
            "fewer bits made of that in float32:",
            "",
            *_table(("form", "type", "loads as", "MiB", "matrices", "tokens equal", "perplexity", "of the float file"), _real_rows(real)),
        ]
    )


def _tiny_row(row: Mapping[str, str]) -> tuple[str, ...]:
    if "refused" in row:
        return row["family"], row["form"], f"refused: {row['refused']}", "", ""
    return row["family"], row["form"], f"`{row['architecture']}`", row["tokens"], f"{float(row['logits']):.0e}"


def _real_rows(rows: list[dict[str, str]]) -> Iterable[tuple[str, ...]]:
    whole = {row["form"]: float(row["perplexity"]) for row in rows if row["type"] == "float32"}
    for row in rows:
        found = float(row["perplexity"])
        size, change = f"{int(row['bytes']) / 2**20:.0f}", f"{found / whole[row['form']] - 1:+.2%}"
        change = f"transformers {float(row['transformers']):.3f}" if "transformers" in row else change
        yield row["form"], row["type"], f"`{row['architecture']}`", size, row["matrices"], row.get("tokens", ""), f"{found:.3f}", change


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def main() -> None:
    """Reads, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="pytest's --junitxml")
    rows = [row for file in parser.parse_args().results for row in read_results(file)]
    record = {"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}, "rows": rows}
    write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    write_atomically(PAGE, between_markers(PAGE.read_text(encoding="utf-8"), BEGIN, END, render(record)))
    print(f"{RECORD.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}: {len(rows)} rows")


if __name__ == "__main__":
    main()
