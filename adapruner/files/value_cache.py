"""Numbers that a killed run had measured already, kept in a small JSON file together with what they depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapruner.distributed import Ranks
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import opened, sealed
from adapruner.progress import announce


class ValueCache:
    """Stage and name -> measured value. A file of another identity counts as empty, and a damaged one, which is said.

    Of several ranks, which must all make one, the first reads the file: machines need not share a folder.

    Args:
        file: rewritten whole after every value, so that it is never torn; ``None`` keeps values in memory alone.
        identity: JSON types: what the values depend on.
        shared: whether all ranks make one; else this process alone does.
    """

    def __init__(self, file: Path | None, identity: dict[str, Any], shared: bool = True) -> None:
        self.file, self.identity = file, json.loads(json.dumps(identity))
        self.values: dict[str, dict[str, float]] = Ranks().on_rank_zero(self._read) if shared else self._read()

    def _read(self) -> dict[str, dict[str, float]]:
        if self.file is None:
            return {}
        try:
            record = opened(json.loads(self.file.read_text()))
            if record["identity"] == self.identity:
                return {str(s): {str(n): float(v) for n, v in rows.items()} for s, rows in record["values"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            announce(f"{self.file} is damaged ({' '.join(str(error).split()):.80}): its values are measured again")
        return {}

    def get(self, stage: str, name: str) -> float | None:
        """The value, if it was measured."""
        return self.values.get(stage, {}).get(name)

    def measure(
        self, stage: str, names: Sequence[str], measure: Callable[[str], float | None], progress: Callable[[int, str], None] | None = None
    ) -> list[float | None]:
        """All values of a stage, those that are missing measured now, one by each rank at a time; every rank must call it.

        Args:
            measure: the value of a name, or ``None`` where it could not be measured; never raises on one rank alone.
            progress: called with the number of values that are known and the name of what is measured now, of the first rank; once more
                after the last.
        """
        ranks, missing = Ranks(), [name for name in names if self.get(stage, name) is None]
        for start in range(0, len(missing), ranks.size):
            batch = missing[start : start + ranks.size]
            if progress:
                progress(len(names) - len(missing) + start, batch[0])
            mine = measure(batch[ranks.rank]) if ranks.rank < len(batch) else None
            for name, value in zip(batch, ranks.gather(mine), strict=False):
                self.put(stage, name, value, write=ranks.rank == 0)
        if progress and missing:
            progress(len(names), missing[-1])
        return [self.get(stage, name) for name in names]

    def put(self, stage: str, name: str, value: float | None, write: bool) -> None:
        """Keeps a value, infinite where it is ``None``; ``write`` on one process only.

        What could not be measured is not written: memory that ran out once may be there in the next attempt.
        """
        self.values.setdefault(stage, {})[name] = math.inf if value is None else value
        if write and self.file is not None:
            finite = {s: {n: v for n, v in rows.items() if math.isfinite(v)} for s, rows in self.values.items()}
            write_atomically(self.file, json.dumps(sealed({"identity": self.identity, "values": finite}), indent=1) + "\n")
