"""What a refit has solved so far, in files: a killed one goes on behind the last projection, and a finished one is not made again.

A refit of thousands of windows takes as long as the search before it. Hidden states are not kept: they are run again, up to the
projection where the killed refit was, through the weights that it had found, so that the rest is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks, is_rank_zero
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

    def put(self, name: str, projection: Any, ranks: Ranks | None = None) -> bool:
        """Gives a projection ``[out, channels]`` the solution that is there, as new parameters; whether there is one.

        Args:
            ranks: those that share a refit: the first one reads. ``None`` where this process works alone.
        """
        found = self._read(name) if ranks is None or ranks.rank == 0 else None
        names: list[str] | None = list(found) if found else None
        names = names if ranks is None else ranks.broadcast(names)
        if names is None:
            return False
        for kind in names:
            old = getattr(projection, kind)
            value = torch.empty_like(old) if found is None else found[kind].to(old)
            if ranks is not None:
                ranks.make_equal(value)
            setattr(projection, kind, nn.Parameter(value, old.requires_grad))
        return True

    def keep(self, name: str, projection: Any, ranks: Ranks | None = None) -> None:
        """Writes a projection that is solved; of several processes the first one does.

        Args:
            ranks: as for :meth:`put`; what the first one cannot write, all of them refuse.

        Raises:
            ConfigurationError: if there is no room, or no right to write.
        """
        values = {kind: p.detach().cpu() for kind, p in projection.named_parameters(recurse=False)}
        if ranks is None:
            self._write(name, values)
        else:
            ranks.on_rank_zero(self._write, name, values)

    def keep_whole(self, structure: ModelStructure) -> None:
        """Remembers that nothing is left to solve, and which projections were."""
        names = sorted({group.output.module for group in structure.groups})
        self._write(_WHOLE, {name: torch.ones(1) for name in names if self._file(name).exists()})

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
                self.put(name, model.get_submodule(name), ranks)
        return True

    def _is_whole(self) -> bool:
        """Before anything is cut: every projection that was solved is there, and as it was written."""
        names = self._read(_WHOLE)
        return names is not None and all(self._read(name) is not None for name in names)

    def _write(self, name: str, values: dict[str, Tensor]) -> None:
        if is_rank_zero():
            self.folder.mkdir(exist_ok=True)
            write_tensors(self._file(name), self.key, values)

    def _read(self, name: str) -> dict[str, Tensor] | None:
        try:
            return read_tensors(self._file(name), self.key)
        except DamagedError as error:
            announce(f"{self._file(name)} is damaged ({error}): solved again")
            return None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
