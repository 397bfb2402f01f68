"""Text in, token windows out.

Read in order: :mod:`~adapruner.data.text_source` (one source of documents; :mod:`adapruner.data.sources` has a file for each kind),
:mod:`~adapruner.data.windows` (documents to token windows), :mod:`~adapruner.data.draw_windows` (so many windows of each source),
:mod:`~adapruner.data.sets` (what each set is made of), :mod:`~adapruner.data.leaks` (no text in two sets),
:mod:`~adapruner.data.text_sets` (all sets, in one :class:`~adapruner.data.run_data.RunData`). :mod:`~adapruner.data.from_texts` does the
same for lists of texts, :mod:`adapruner.data_module` for a Lightning Trainer. :mod:`~adapruner.data.calibration_set` is the calibration
set that a search found, as a file for another run or model.

Windows are imported on first use: what a source is, is judged without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapruner.data.documents import Document
from adapruner.data.text_source import TextSource, read_documents

if TYPE_CHECKING:
    from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows

__all__ = ["Document", "TextSource", "TextWindows", "joined_windows", "pad_instructions", "read_documents", "sample_windows"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("adapruner.data.windows"), name)
