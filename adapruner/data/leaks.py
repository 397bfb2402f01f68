"""No text in two sets: what a search or a recovery has seen must not be what is reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from adapruner.data.run_data import RunData
from adapruner.errors import DataError, is_shortened

#: Shorter documents are headings, titles and stock phrases, which honest splits of one data set do share.
SHORT_CHARACTERS = 200


def check_disjoint(seen: Mapping[str, Collection[str]], held_out: Mapping[str, Collection[str]], short: Collection[str] = ()) -> None:
    """Refuses a held-out set that shares documents with a set seen before.

    One shared document of at least :data:`SHORT_CHARACTERS` is a leak. Shorter ones are one only when they are more
    than half of the smaller set: then it is the same data, not a repeated heading.

    Args:
        seen: name of a set -> hashes of its documents.
        held_out: the sets that must share nothing with any of ``seen``; a set is not compared with itself.
        short: hashes of the short documents.

    Raises:
        DataError: naming the first pair of sets and how many documents they share.
    """
    few = set(short)
    for held_name, held in held_out.items():
        for name, hashes in seen.items():
            shared = set(held) & set(hashes)
            if name != held_name and (shared - few or 2 * len(shared) > min(len(set(held)), len(set(hashes)))):
                raise shared_documents(name, held_name, len(shared))


def shared_documents(name: str, held_name: str, count: int) -> DataError:
    """What to say of two sets that share documents."""
    options = "give them other splits or disjoint parts, or set allow_leak: true"
    remedy = "leave them out of one of the two" if is_shortened("data") else options  # who wrote texts has no such options
    return DataError(f"data: expected {name} and {held_name} to share no document, got {count} in both; {remedy}")


def check_leaks(data: RunData, short: Collection[str] = ()) -> None:
    """Refuses sets of a run that share documents; recovery may share with calibration, reconstruction and search, and these two with each
    other.

    Args:
        short: hashes of the short documents.

    Raises:
        DataError: naming the first two sets that do.
    """
    calibration = {"calibration": set().union(*(windows.documents for windows in data.calibration_windows_at.values()))}
    search = {"search": data.search_windows.documents}
    if data.reconstruction_windows is not None:
        calibration["reconstruction"] = data.reconstruction_windows.documents
    trained = {} if data.recovery_windows is None else {"recovery": data.recovery_windows.documents}
    held_out = {f"evaluation {name!r}": windows.documents for (name, _), windows in data.evaluation_windows.items()}
    check_disjoint(calibration | search | trained, held_out, short)
    check_disjoint(calibration, search, short)
