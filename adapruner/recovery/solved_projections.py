"""What a refit has solved so far, in files: a killed one goes on behind the last projection, and a finished one is not made again.

A refit of thousands of windows takes as long as the search before it. Hidden states are not kept: they are run again, up to the
projection where the killed refit was, through the weights that it had found, so that the rest is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.files.digests import DamagedError
from adapruner.files.tensor_file import read_tensors, write_tensors
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import cut_layer

FOLDER = "refit"
_WHOLE = "whole"


@dataclass(frozen=True)
class SolvedProjections:
    """Output projections of one refit by name, a file each, a third of the pruned model in all.

    Args:
        folder: made with the first file.
        key: everything that their values depend on; files of another key are replaced.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     solved, found = SolvedProjections(Path(folder) / "refit", "plan 1"), nn.Linear(2, 2, bias=False)
    ...     solved.keep("o_proj", found)
    ...     again = nn.Linear(2, 2, bias=False)
    ...     solved.put("o_proj", again), torch.equal(again.weight, found.weight), solved.put("down_proj", again)
    (True, True, False)
    """

    folder: Path
    key: str
    _names: set[str] = field(default_factory=set)
    """Of the projections that were given or kept."""

    def put(self, name: str, projection: Any) -> bool:
        """Gives a projection ``[out, channels]`` the solution that is there, as new parameters; whether there is one.

        Every process of a run must call it; the first one reads.
        """
        ranks = Ranks()
        found = self._read(name) if ranks.rank == 0 else None
        names: list[str] | None = ranks.broadcast(list(found) if found else None)
        if names is None:
            return False
        self._names.add(name)
        for kind in names:
            old = getattr(projection, kind)
            value = torch.empty_like(old) if found is None else found[kind].to(old)
            ranks.make_equal(value)
            setattr(projection, kind, nn.Parameter(value, old.requires_grad))
        return True

    def keep(self, name: str, projection: Any) -> None:
        """Writes a projection that is solved; every process of a run must call it, and the first one writes.

        Raises:
            ConfigurationError: if there is no room, or no right to write.
        """
        values = {kind: p.detach().cpu() for kind, p in projection.named_parameters(recurse=False)}
        self._write(name, values)
        self._names.add(name)

    def keep_whole(self) -> None:
        """Remembers that nothing is left to solve, and which projections were."""
        self._write(_WHOLE, {name: torch.ones(1) for name in sorted(self._names)})

    def put_whole(self, model: nn.Module, structure: ModelStructure, plan: PruningPlan) -> bool:
        """Cuts the dense model by the plan and gives it all solutions, where the refit had come to its end; whether it had.

        Every process of a run must call it.
        """
        ranks = Ranks()
        if not ranks.broadcast(self._is_whole() if ranks.rank == 0 else None):
            return False
        for layer in range(structure.layers):
            cut_layer(model, structure, plan, layer)
            for name in (group.output.module for group in structure.groups if group.layer == layer):
                self.put(name, model.get_submodule(name))
        return True

    def _is_whole(self) -> bool:
        """Before anything is cut: every projection that was solved is there, and as it was written."""
        names = self._read(_WHOLE)
        return names is not None and all(self._read(name) is not None for name in names)

    def _write(self, name: str, values: dict[str, Tensor]) -> None:
        def write() -> None:
            self.folder.mkdir(exist_ok=True)
            write_tensors(self._file(name), self.key, values)

        Ranks().on_rank_zero(write)

    def _read(self, name: str) -> dict[str, Tensor] | None:
        try:
            return read_tensors(self._file(name), self.key)
        except (DamagedError, OSError) as error:
            announce(f"{self._file(name)} cannot be read ({error}): solved again")
            return None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
