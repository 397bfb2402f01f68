"""Text in, token windows out.

Read in order: :mod:`~adapruner.data.sources` (where text comes from; :mod:`~adapruner.data.files` opens local files,
:mod:`~adapruner.data.instructions` renders instruction rows), :mod:`~adapruner.data.windows` (text to token windows),
:mod:`~adapruner.data.calibration_set` (the calibration samples a search found, as a file for another run or model),
:mod:`~adapruner.data.leaks` (no text in two sets), :mod:`~adapruner.data.sets` (what each set is made of),
:mod:`~adapruner.data.text_sets` (all sets as token windows, in one :class:`~adapruner.data.run_data.RunData`). For a Lightning Trainer
:mod:`adapruner.data_module` wraps them.
"""

from adapruner.data.documents import Document
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows

__all__ = ["Document", "TextSource", "TextWindows", "joined_windows", "pad_instructions", "read_documents", "sample_windows"]
