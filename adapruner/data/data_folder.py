"""Which files of a folder are read: those of one split, as the hub's data sets name their files; never a card or a licence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adapruner.errors import DataError
from adapruner.progress import announce

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in a file's name -> the split, as ``datasets`` reads them."""
_WORD = "|".join(_SPLITS)
_SHARD = re.compile(rf"(?P<split>({_WORD})(_[a-z0-9]+)*)-\d{{5}}-of-\d{{5}}\b.*")
_NAMED = re.compile(rf"(.*[-._])?(?P<split>{_WORD})([-._]?\d+.*)?")
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|citation|changelog|dataset_infos?|dataset_dict|state)\b.*")
"""Names of what is said of a data set."""


@dataclass(frozen=True)
class ChosenFiles:
    """What is read of a folder, and what is not."""

    read: list[Path]
    left_out: list[Path]
    split: str | None
    """The split that the files are of, where their names tell."""


def split_name(split: str) -> str:
    """The usual name of a split: ``validation`` for ``dev``.

    >>> split_name("dev"), split_name("train_sft")
    ('validation', 'train_sft')
    """
    return _SPLITS.get(split.lower(), split.lower())


def split_of_file(file: Path) -> str | None:
    """The split that a file's name, or else one of its folders, tells; ``None`` where they do not.

    >>> [split_of_file(Path(name)) for name in ("data/train-00000-of-00002.parquet", "wiki.valid.txt", "dev/a.txt", "contest.txt")]
    ['train', 'validation', 'validation', None]
    """
    stem = file.name.lower().removesuffix(".gz")
    stem = stem.rpartition(".")[0] or stem
    found = _SHARD.fullmatch(stem) or _NAMED.fullmatch(stem)
    if found:
        return split_name(found["split"])
    return next((_SPLITS[part.lower()] for part in reversed(file.parts[:-1]) if part.lower() in _SPLITS), None)


def choose_files(root: Path, files: Sequence[Path], split: str) -> ChosenFiles:
    """The files of one split; of a folder whose names tell no splits, all.

    Where files of the split are there, only these are read. ``train``, which is also what nobody asked for, otherwise takes the files
    that tell no split, or those of the only split that there is.

    Args:
        root: the folder.
        files: readable ones below it.
        split: as in :class:`adapruner.data.text_source.TextSource`.

    Raises:
        DataError: if the split is not there.
    """
    about = [file for file in files if _ABOUT.fullmatch(file.name.lower())]
    texts = [file for file in files if file not in about]
    wanted, splits = split_name(split), {file: split_of_file(file.relative_to(root)) for file in texts}
    told = sorted({found for found in splits.values() if found})
    plain = [file for file in texts if splits[file] is None]
    chosen = [file for file in texts if splits[file] == wanted]
    if not chosen and wanted == "train":
        chosen, wanted = (plain, "") if plain else (texts, told[0]) if len(told) == 1 else ([], wanted)
    if not chosen:
        got = f"the splits {', '.join(told)}" if told else f"only {about[0].name}" if not texts else "names that tell no split"
        remedy = "name one of them" if told else "put text there" if not texts else "leave split out"
        raise DataError(f"path: expected files of the split {split!r} in {str(root)!r}, got {got}; {remedy}")
    return ChosenFiles(chosen, [file for file in files if file not in chosen], wanted or None)


@lru_cache(maxsize=256)
def say_once(line: str) -> None:
    """One plain line of the run, however often a source is read."""
    announce(line)


def names_of(files: Sequence[Path], root: Path, most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = [file.relative_to(root).as_posix() for file in files[:most]]
    return ", ".join(names) + (f" and {len(files) - most} more" if len(files) > most else "")
