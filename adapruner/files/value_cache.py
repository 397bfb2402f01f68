"""Values that a killed run had measured already, kept in a small JSON file under the conditions they hold for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from adapruner.distributed import Ranks
from adapruner.files.atomic import write_atomically


class ValueCache:
    """Stage and name -> value that was measured before. A file of other conditions, or a damaged one, is as good as none.

    Of several ranks, which must all make one, the first reads the file: machines need not share a folder.

    Args:
        file: rewritten whole after every value, so it is never torn; ``None`` keeps values in memory alone.
        identity: JSON types: what the values depend on.
        shared: whether all ranks make one; else this process alone does, and tells nobody.
    """

    def __init__(self, file: Path | None, identity: dict[str, Any], shared: bool = True) -> None:
        self.file, self.identity = file, json.loads(json.dumps(identity))
        self.values: dict[str, dict[str, float]] = Ranks().on_rank_zero(self._read) if shared else self._read()

    def _read(self) -> dict[str, dict[str, float]]:
        if self.file is None:
            return {}
        try:
            record = json.loads(self.file.read_text())
            if record["identity"] == self.identity:
                return {str(s): {str(n): float(v) for n, v in rows.items()} for s, rows in record["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    def get(self, stage: str, name: str) -> float | None:
        """The value, if it was measured."""
        return self.values.get(stage, {}).get(name)

    def put(self, stage: str, name: str, value: float | None, write: bool) -> None:
        """Remembers a value (``None``: could not be measured); ``write`` on one process only.

        What could not be measured is not written: memory that ran out once may be there in the next attempt.
        """
        self.values.setdefault(stage, {})[name] = math.inf if value is None else value
        if write and self.file is not None:
            finite = {s: {n: v for n, v in rows.items() if math.isfinite(v)} for s, rows in self.values.items()}
            write_atomically(self.file, json.dumps({"identity": self.identity, "values": finite}, indent=1))
