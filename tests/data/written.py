"""Rows and text files of every kind, written on the spot."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from adapruner.data.text_source import TextSource, read_documents

ROWS = [{"text": f"row {i}", "label": i} for i in range(5)] + [{"text": "", "label": 5}]
TEXTS = [row["text"] for row in ROWS]


def write(path: Path, content: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8", newline="")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if path.name.split(".")[1] in ("csv", "tsv"):
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        return write(path, table.getvalue())
    as_lines = ".jsonl" in path.name
    return write(path, "\n".join(map(json.dumps, rows)) + "\n\n" if as_lines else json.dumps(rows))


def texts(**options: Any) -> list[str]:
    return [d.text for d in read_documents(TextSource("own", **options))]
