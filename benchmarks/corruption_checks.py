"""What a command made of a damaged folder: the same as of the whole one, one line, or something worse."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_checks import facts

#: In figures, what a clock or a path says.
_VOLATILE = re.compile(r"second|resumed|latency|_ms|created|command|per_second|energy|memory|bytes|hardware|versions|path|throughput")


@dataclass
class Ended:
    """A command at its end."""

    code: int
    out: str
    err: str
    changed: list[str] = field(default_factory=list)
    """Files that it changed, where it was refused."""


def steady(value: Any) -> Any:
    """Figures without what a clock says."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if not _VOLATILE.search(key) and key not in ("digest", "cost", "measured")}
    return [steady(item) for item in value] if isinstance(value, list) else value


def digests(folder: Path) -> dict[str, str]:
    """File -> digest of its content, of everything in a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def of_fit(folder: Path, ended: Ended) -> Any:
    """What a run is for."""
    report = json.loads((folder / "run/report.json").read_text())
    chosen = json.loads((folder / "run/calibration_set.json").read_text())
    return [facts(folder / "run"), steady(report), chosen["samples"], _card(folder / "run/model")]


def of_export(folder: Path, ended: Ended) -> Any:
    """Weights, plan and model card of what was written."""
    weights = {name: digest for name, digest in digests(folder / "out").items() if name.endswith(".safetensors")}
    return [weights, json.loads((folder / "out/plan.json").read_text())["hash"], _card(folder / "out")]


def of_inspect(folder: Path, ended: Ended) -> Any:
    """What is printed."""
    return steady(json.loads(ended.out))


def of_print(folder: Path, ended: Ended) -> Any:
    """Lines with figures."""
    return [line for line in ended.out.splitlines() if re.search(r"\d", line) and not re.search(r"seconds|it/s|/s\b", line)]


def _card(folder: Path) -> str:
    text = (folder / "README.md").read_text()
    clock = re.compile(r"latency|ms\b|memory|GiB|tokens/s|second|^\| (dense|pruned) \| [\d,]+ \| [\d,]+ \|", re.IGNORECASE)
    return "\n".join(line for line in text.splitlines() if not clock.search(line))


@dataclass
class Command:
    """Something that believes what is in a folder."""

    name: str
    work: Callable[[], None]
    essence: Callable[[Path, Ended], Any]


def judge(made: Command, ended: Ended, folder: Path, reference: Any) -> tuple[str, str]:
    """``right``, ``silent``, ``traceback`` or ``untidy``, and what shows it."""
    said = [line for line in ended.err.splitlines() if line.startswith("adapruner: error: ")]
    if "Traceback (most recent call last)" in ended.err + ended.out or ended.code not in (0, 2):
        return "traceback", (ended.err.strip().splitlines() or [f"exit code {ended.code}"])[-1]
    if ended.code == 2:
        one = len(said) == 1 and re.fullmatch(r"adapruner: error: .+: expected .+, got .+; .+", said[0])
        return ("right", said[0]) if one and not ended.changed else ("untidy", f"{said or ended.err[-200:]}, changed {ended.changed}")
    try:
        found = made.essence(folder, ended)
    except (OSError, ValueError, KeyError) as error:
        return "silent", f"{type(error).__name__}: {error}"
    notes = [
        line
        for line in ended.out.splitlines()
        if any(words in line for words in ("damaged", "not as fit wrote it", "starts anew", "out of the model card"))
    ]
    if found == reference:
        return "right", (notes or ["the same result"])[0]
    if made.name.startswith("inspect") and json.loads(ended.out)["remarks"]:
        return "right", json.loads(ended.out)["remarks"][0]
    if made.name == "export" and notes and found[:2] == reference[:2]:  # the model card lacks what is damaged, and that is said
        return "right", notes[0]
    return "silent", f"exit code 0, another result: {_difference(found, reference)}"


def _difference(found: Any, reference: Any, where: str = "") -> str:
    """The first place in which two results differ."""
    if isinstance(found, dict) and isinstance(reference, dict):
        pairs = [(key, found.get(key), reference.get(key)) for key in {**found, **reference}]
    elif isinstance(found, list) and isinstance(reference, list) and len(found) == len(reference):
        pairs = list(zip(range(len(found)), found, reference, strict=True))
    elif isinstance(found, str) and isinstance(reference, str) and "\n" in found:
        return _difference(found.splitlines(), reference.splitlines(), where)
    else:
        return f"{where}: {str(found)[:150]} != {str(reference)[:150]}"
    return next((_difference(one, other, f"{where}/{key}") for key, one, other in pairs if one != other), "")
