"""``adapruner write-texts``: text that the dense model writes itself, in a file that ``--texts`` of ``prune`` reads."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapruner.cli.one_line_parser import OneLineParser
from adapruner.errors import written_as
from adapruner.models.loading import check_dtype
from adapruner.models.model_names import check_model_name
from adapruner.own_text.rows_file import RowsFile
from adapruner.own_text.settings import Writing
from adapruner.progress import announce, progress_bar

if TYPE_CHECKING:
    from adapruner.own_text.writer import TextWriter

_DESCRIPTION = """\
Let the dense model write text to prune it with, where there is no other: rows {"text": ...}, one document each.

MODEL is a folder, a GGUF file or a hub name. Every document begins with the model's begin-of-text token, is drawn from its own
distribution, and ends where the model ends it, or after --tokens. FILE grows by whole rows. A killed call goes on when it is called
again, and ends with the same file; with more --documents a finished one is gone on with.
"""
_EPILOG = """\
examples:
  adapruner write-texts my-model --out own.jsonl
  adapruner prune my-model --texts own=own.jsonl
  adapruner write-texts my-model --out own.jsonl --documents 4160        # no text twice in 200 steps of recovery
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = OneLineParser("write-texts", "MODEL --out FILE.jsonl [options]", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, a GGUF file or a hub name")
    add("--out", metavar="FILE", required=True, help="where to: new, or what an earlier call began; ends with .jsonl")
    add("--documents", metavar="N", type=int, default=Writing.documents, help=f"how many (default: {Writing.documents})")
    add("--tokens", metavar="N", type=int, default=Writing.tokens, help=f"of a document at most (default: {Writing.tokens})")
    add("--temperature", metavar="T", type=float, default=Writing.temperature, help="1 (default): the model's own distribution")
    add("--seed", metavar="N", type=int, default=Writing.seed, help=f"of what is drawn (default: {Writing.seed})")
    size = Writing.batch_size
    add("--batch_size", metavar="N", type=int, default=size, help=f"documents at a time, as memory allows (default: {size})")
    add("--dtype", metavar="TYPE", default="auto", help="to compute in: float32, bfloat16 (default: as saved)")
    add("--import", metavar="FILE", help="families and the like of your own; may be repeated")
    return parser


def run_write_texts(arguments: Sequence[str]) -> None:
    """The whole command.

    Args:
        arguments: behind ``write-texts``.

    Raises:
        ConfigurationError: for arguments that cannot work, before the model is loaded, and for a file that is another's.
        ModelError: if the model cannot be loaded, or writes nothing.
    """
    with written_as({"model.name_or_path": "model", "model.dtype": "dtype"}):
        _run(make_parser().parse_args(list(arguments)))


def _run(given: argparse.Namespace) -> None:
    writing = Writing(given.documents, given.tokens, given.temperature, given.batch_size, given.seed)
    rows = RowsFile(given.out)
    check_model_name(given.model)
    check_dtype(given.dtype)
    rows.read(writing.identity, writing.documents)
    if sys.stdout.isatty():  # the imports take some seconds
        print("adapruner: loads PyTorch and the model", flush=True)
    writer = _load(given.model, given.dtype, writing)
    with rows.held():
        rows.read(writer.identity, writing.documents)
        _write(writer, rows)
    following = shlex.join(["adapruner", "prune", given.model, "--texts", f"own={rows.file}"])
    announce(f"{rows.file} has {rows.rows} documents of {len(rows.content):,} bytes; next: {following}")


def _write(writer: TextWriter, rows: RowsFile) -> None:
    """What is missing."""
    documents = writer.writing.documents
    if rows.rows >= documents:
        return
    announce(f"every document begins with {writer.boundaries.words}")
    if rows.rows:
        announce(f"goes on behind {rows.rows} documents of {documents} in {rows.file}")
    begun = rows.content[: rows.state.whole].count(b"\n")
    with progress_bar("text", documents) as advance:
        for number, texts in writer.batches(rows.state.batches, advance, begun):
            rows.put(writer.identity, number, texts, documents)
            if rows.rows >= documents:
                return


def _load(name: str, dtype: str, writing: Writing) -> TextWriter:
    """The model on the machine's accelerator, where there is one, with its tokenizer."""
    import torch

    from adapruner.cli.quiet import quiet_libraries
    from adapruner.export.loading import load_by_name
    from adapruner.models.loading import load_tokenizer
    from adapruner.own_text.writer import TextWriter
    from adapruner.threads import choose_threads

    quiet_libraries()
    model = load_by_name(name, dtype)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    else:
        announce(choose_threads())
    return TextWriter(model, load_tokenizer(name), writing)
