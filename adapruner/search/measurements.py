"""Values that a killed run had measured already, kept in a small JSON file under the conditions they hold for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from adapruner.search.ranks import Ranks
from adapruner.whole_files import write_whole


class Measurements:
    """Stage and name -> value. A file of other conditions, or a damaged one, is as good as none.

    Of several ranks, which must all make one, the first reads the file: machines need not share a folder.

    Args:
        file: rewritten whole after every value, so it is never torn.
        identity: JSON types: what the values depend on.
        shared: whether all ranks make one; else this process alone does, and tells nobody.
    """

    def __init__(self, file: Path, identity: dict[str, Any], shared: bool = True) -> None:
        self.file, self.identity = file, json.loads(json.dumps(identity))
        self.values: dict[str, dict[str, float]] = Ranks().first_does(self._read) if shared else self._read()

    def _read(self) -> dict[str, dict[str, float]]:
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
        if write:
            finite = {s: {n: v for n, v in rows.items() if math.isfinite(v)} for s, rows in self.values.items()}
            write_whole(self.file, json.dumps({"identity": self.identity, "values": finite}, indent=1))
