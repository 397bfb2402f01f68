"""What text a result rests on, so that another laboratory can fetch the same: sources, splits, sizes, hashes, the leak check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapruner.data.leaks import SHORT_CHARACTERS
from adapruner.data.text_source import TextSource
from adapruner.data.windows import TextWindows


def describe_set(role: str, name: str, sources: list[str], windows: TextWindows) -> dict[str, Any]:
    """One set at one window length, as JSON types.

    Returns:
        ``role``, ``name``, ``sources`` (in words), ``windows``, ``seq_len`` in tokens, ``documents`` that these windows touch, ``hash`` of
        their token ids.
    """
    count, length = windows.input_ids.shape
    return {
        "role": role,
        "name": name,
        "sources": sources,
        "windows": int(count),
        "seq_len": int(length),
        "documents": len(windows.documents),
        "hash": windows.fingerprint,
    }


def leaks_in_words(allowed: bool) -> str:
    """What the leak check found, or that it was switched off; a leak that is found ends the run."""
    if allowed:
        return "not checked (allow_leak)"
    return (
        f"checked: no document of {SHORT_CHARACTERS} characters or more is in an evaluation set and in any other set, "
        "nor in the calibration pool and the search split"
    )


def sources_in_words(sources: Sequence[TextSource]) -> list[str]:
    """Each source with all that decides which documents it gives."""
    return [_source_in_words(source) for source in sources]


def part_in_words(source: TextSource) -> str:
    """``, part [0.75, 1)``, or nothing where the source is read whole."""
    low, high = source.part
    return "" if (low, high) == (0.0, 1.0) else f", part [{low:g}, {high:g})"


def _source_in_words(source: TextSource) -> str:
    reader = source.reader
    details = [reader.where]
    details += [] if source.config is None else [source.config]
    files_alone = source.path is not None and source.split == "train"
    details += [f"split {source.split}"] if "split" in reader.fields and not files_alone else []
    details += [] if source.revision is None else [f"revision {source.revision}"]
    details += [part_in_words(source)[2:]] if part_in_words(source) else []
    details += [] if source.documents is None else [f"first {source.documents:,} documents"]
    details += [] if source.column == "text" else [f"column {source.column}"]
    details += ["instructions"] if source.instruction else []
    details += ["conversations"] if source.chat else []
    return f"{source.name}: {', '.join(details)}"
