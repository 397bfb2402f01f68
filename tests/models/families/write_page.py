"""Writes ``docs/families.md``: runs every row of the table through the conformance suite and says what came of it.

python -m tests.models.families.write_page
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from adapruner.export.loading import load
from adapruner.files.atomic import write_atomically
from adapruner.models.tracing import trace_structure
from tests.models.families import conformance
from tests.models.families.table import ROWS, Row, build

PAGE = Path(__file__).parents[3] / "docs" / "families.md"

_TOP = """# Families

Written by `python -m tests.models.families.write_page` from the table in `tests/models/families/table.py`: every row is a tiny random model
that goes through the whole suite (`tests/models/families/conformance.py`), which the tests run too. "yes" in a column:

- **heads**, **query heads**, **channels**: whole KV groups, single query heads (`attention_units: query_head`) and feed-forward
  channels are removed, and the pruned model computes in float64 what the masked dense model does;
- **uniform**, **irregular**: the class that reads the export where all layers are equally wide, and where they are not; its
  logits in a fresh process are within 1e-5. A `Pruned...` class needs `trust_remote_code=True` or `adapruner.load`; with
  `--pad` an irregular export is widened by zeros to a stock class, where the family has one;
- **cache**: greedy tokens with the cache are those without; **LoRA**: adapters attach, train a step and merge.

A decoder that is not here works without a file of its own if it traces; [add-a-family.md](add-a-family.md) is for one that does not.

| family | `model_type` | heads | query heads | channels | uniform | irregular | cache | LoRA |
|---|---|---|---|---|---|---|---|---|
"""


def tried(step: Callable[..., Any], *arguments: Any) -> str:
    """``yes``, or what went wrong."""
    try:
        step(*arguments)
    except Exception as error:  # whatever it is, the page says it
        return f"no: {str(error).splitlines()[0][:80]}"
    return "yes"


def exported(row: Row, widths: Any, folder: Path) -> str:
    """The class that reads the export, if it computes the same."""
    record, expected, _ = conformance.export(row, widths, "kv_group", folder)
    difference = float((conformance.logits(load(folder)) - expected).abs().max())
    return f"`{record.class_name}`" if difference < 1e-5 else f"no: off by {difference:.1e}"


def line(row: Row, folder: Path) -> str:
    """One row of the page."""
    structure = trace_structure(build(row))
    whole = {kind for kind, _ in structure.left_whole}
    cut = tried(conformance.check_cut, row, "kv_group")
    single = tried(conformance.check_cut, row, "query_head")
    attention = [g for g in structure.groups if g.kind == "attention"]
    grouped = bool(attention) and attention[0].channels_per_unit > attention[0].head_dim
    heads = "stay" if "attention" in whole else "the one KV head stays" if attention[0].units == 1 else cut
    cells = [
        row.name,
        f"`{row.model_type}`",
        heads,
        "stay" if "attention" in whole else single if grouped else "as heads",
        "stay" if "ffn" in whole else cut,
        exported(row, "uniform", folder / "uniform"),
        exported(row, "irregular", folder / "irregular"),
        tried(conformance.check_generation, row),
        tried(conformance.check_recovery, row),
    ]
    return f"| {' | '.join(cells)} |"


def notes() -> str:
    """What does not work, or works in another way."""
    lines = [f"- {row.name}: {row.note}." for row in ROWS if row.note]
    return "\n".join(["", "## What does not work, or works in another way", "", *lines, ""])


_REAL = """
## On real weights

`fit` from the GGUF to the verified export with weights that others trained, bfloat16 on one CPU thread: 20 % of the block parameters, 36
calibration windows of 128 tokens, 10 trials, a refit on 24 windows, 6 LoRA steps, one seed. Numbers this small show that it works, not how
well. Perplexity of documentation of the standard library / of pandas, which nothing was calibrated or trained on:

| model | dense | pruned | reconstructed | recovered |
|---|---|---|---|---|
| Gemma 3 270M (Q4_K_M) | 30.2 / 23.8 | 38.3 / 33.4 | 35.1 / 29.1 | 29.7 / 24.1 |
| Qwen2.5-Coder 0.5B Instruct (Q4) | 13.2 / 14.2 | 20.9 / 21.3 | 23.0 / 23.7 | 17.6 / 17.2 |

Qwen's refit makes it worse: 24 windows are 3,072 tokens for FFNs of 4,864 channels, and a refit on fewer tokens than channels fits their
noise; a run says so. Gemma without the begin-of-text token that its tokenizer puts before every text stands at 191.1 on 24 windows of the
demo topics, with it at 27.0 (`data.bos`). SmolLM2-135M, a Llama, is what [results.md](results.md) and `make real` are about.
"""


def main() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = [line(row, Path(folder) / str(index)) for index, row in enumerate(ROWS)]
    write_atomically(PAGE, _TOP + "\n".join(lines) + "\n" + notes() + _REAL)


if __name__ == "__main__":
    main()
