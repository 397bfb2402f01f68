"""Seven ways in which a file may be damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, Path, random.Random], None]:
    def damage(file: Path, other: Path, draw: random.Random) -> None:
        file.write_bytes(change(file.read_bytes(), draw))

    return damage


def _one_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _zeros(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(max(1, min(len(content) // 2, len(content) - (1 << 15))))
    return content[:place] + bytes(min(1 << 16, len(content) - place)) + content[place + (1 << 16) :]


def _to_folder(file: Path, other: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _to_link(file: Path, other: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to("leads/nowhere")


WAYS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "half": _bytes(lambda content, _: content[: len(content) // 2]),
    "empty": _bytes(lambda content, _: b""),
    "one bit": _bytes(_one_bit),
    "64 KiB of zeros": _bytes(_zeros),
    "another run's": lambda file, other, _: file.write_bytes(other.read_bytes()) and None,
    "a folder": _to_folder,
    "a dangling link": _to_link,
}
