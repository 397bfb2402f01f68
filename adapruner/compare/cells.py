"""One cell: a method at a budget with a seed. Its folder, the arguments of its ``fit``, and when it counts as done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapruner.compare.spec import ComparisonSpec, Method
from adapruner.errors import ConfigurationError
from adapruner.files import folder_lock
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import opened, sealed
from adapruner.report.formats import percent_text
from adapruner.report.record import RECORD_NAME, read_report

CELL_NAME = "cell.json"
LOG_NAME = "log.txt"
CHEAP = (
    "--report.compare=[]",
    "--report.compare_any_width=false",
    "--report.compare_recovered=false",
    "--report.prompts=[]",
    "--report.latency_repeats=5",
    "--export.verify=false",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
)
"""What a run does for its own page and a comparison does not need. They come before the options, which may undo them."""


@dataclass(frozen=True)
class Cell:
    """One run of ``fit``."""

    method: str
    budget: float
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    """Arguments of ``adapruner``, from ``fit`` on."""
    identity: dict[str, Any] = field(hash=False)
    """What its result depends on, as far as the comparison decides it."""

    @property
    def title(self) -> str:
        """``l2, 20.0 %, seed 0``."""
        return f"{self.method}, {percent_text(self.budget)}, seed {self.seed}"


def lay_out(spec: ComparisonSpec) -> list[Cell]:
    """All cells, seed by seed and budget by budget, so that a comparison that is cut short still compares."""
    return [make_cell(spec, method, budget, seed) for seed in spec.seeds for budget in spec.budgets for method in spec.methods]


def make_cell(spec: ComparisonSpec, method: Method, budget: float, seed: int) -> Cell:
    """The cell of one method, budget and seed."""
    folder = spec.folder / method.name / repr(budget) / f"seed-{seed}"
    configs = [argument for config in method.configs for argument in ("--config", str(config))]
    own = {
        "pruning.budget.pruned_fraction": budget,
        **{key: seed for key in ("seed_everything", "pruning.search.seed", "data.seed", "recovery.seed")},
        "trainer.default_root_dir": folder,
        **{key: "null" for key in ("pruning.folder", "report.folder", "export.folder")},
        "report.name": f"{method.name}-{budget!r}-seed-{seed}",
    }
    imports = [f"--import={name}" for name in spec.imports]
    arguments = ("fit", *imports, *configs, *CHEAP, *spec.options, *(f"--{key}={value}" for key, value in own.items()))
    overlay = _digest(method.configs[1]) if len(method.configs) > 1 else None
    imported = {name: _digest(Path(name)) if name.endswith(".py") else None for name in spec.imports}
    shared = {"base": _digest(spec.base), "options": list(spec.options), "imports": imported}
    identity = {**shared, "overlay": overlay, "budget": budget, "seed": seed}
    return Cell(method.name, budget, seed, folder, arguments, identity)


def is_done(cell: Cell) -> bool:
    """Whether its report is there, whole, and of exactly these arguments; a damaged one is made again."""
    if _recorded(cell.folder / CELL_NAME).get("identity") != cell.identity:
        return False
    try:
        read_report(cell.folder)
    except ConfigurationError:
        return False
    return True


def claim(cell: Cell, command: Sequence[str]) -> None:
    """Writes ``cell.json``, before the run, with its exact command; a report of other arguments must not pass for this run's."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / RECORD_NAME).unlink(missing_ok=True)
    record = {"method": cell.method, "identity": cell.identity, "command": list(command)}
    write_atomically(cell.folder / CELL_NAME, json.dumps(sealed(record), indent=1, ensure_ascii=False) + "\n")


def tidy(cell: Cell) -> None:
    """Drops what only a run in progress needs and what can be made again: a comparison has many cells, a model is large."""
    for folder in ("model", "checkpoints", "refit"):
        shutil.rmtree(cell.folder / folder, ignore_errors=True)
    for cache in cell.folder.glob("*.safetensors"):  # statistics and the like, which a run that goes on would need
        cache.unlink()


def check_folder(spec: ComparisonSpec, cells: Sequence[Cell]) -> None:
    """Refuses a folder that cannot be written, holds something else, or belongs to another comparison.

    More methods, budgets or seeds than last time are welcome; another base, other options or a changed method are not.

    Raises:
        ConfigurationError: in one line.
    """
    folder = spec.folder
    folder_lock.check_folder(folder)
    known = sorted(folder.glob(f"*/*/seed-*/{CELL_NAME}"))
    if not known and any(not path.name.startswith((".", "comparison.")) for path in folder.iterdir() if path.is_file()):
        raise ConfigurationError(f"folder: expected an empty folder or one of a comparison, got {folder}; choose another")
    wanted = {cell.folder: cell.identity for cell in cells}
    shared = cells[0].identity
    for file in known:
        found = _recorded(file).get("identity")
        if not isinstance(found, dict):  # torn before anything was run
            continue
        expected = wanted.get(file.parent, {key: shared[key] for key in ("base", "options")})
        different = [key for key, value in expected.items() if found.get(key) != value]
        if different:
            raise ConfigurationError(
                f"folder: expected the same {different[0]} as in {file.relative_to(folder)}, got another: the folder belongs to another "
                "comparison; choose another --folder, or delete what is to be made anew"
            )


def has_begun(cell: Cell) -> bool:
    """Whether an earlier run left something to go on from."""
    return (cell.folder / LOG_NAME).exists() and not (cell.folder / RECORD_NAME).exists()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _recorded(file: Path) -> dict[str, Any]:
    try:
        return opened(json.loads(file.read_text(encoding="utf-8")), may_lack=True)
    except (OSError, ValueError):  # DamagedError is one
        return {}
