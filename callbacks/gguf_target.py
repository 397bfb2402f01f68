"""The GGUF file that ``fit`` writes beside the exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.export.formats.gguf import GgufRecord, check_feasible, check_free, check_gguf, write_gguf
from adapruner.export.options import ExportOptions
from adapruner.export.staging import check_parent
from adapruner.files.paths import check_path
from adapruner.progress import announce
from adapruner.search.options import PruningOptions

ARGUMENT = "export.gguf"


class GgufTarget:
    """Where the file goes, what refuses it before the run, and what was written at its end.

    Args:
        name: of the file; a relative path lies in the run folder.
        options: how weights are written.

    Raises:
        ConfigurationError: if the name cannot be a GGUF file's, or adapters are to stay apart, which the file cannot hold.

    >>> GgufTarget("out/model.gguf", ExportOptions()).path(Path("runs/llama"))
    PosixPath('runs/llama/out/model.gguf')
    """

    def __init__(self, name: str, options: ExportOptions) -> None:
        check_path(ARGUMENT, name)
        if Path(name).suffix != ".gguf":  # in the run folder, where another name might be one of the run's own files
            raise ConfigurationError(f"{ARGUMENT}: expected a file name that ends in .gguf, got {name!r:.100}; give model.gguf")
        if options.adapters == "folder":
            raise ConfigurationError(f"{ARGUMENT}: expected adapters merged, got adapters: folder; leave one of the two out")
        self.name, self.options = name, options
        self.record: GgufRecord | None = None

    def path(self, run: Path) -> Path:
        """Of the file, for a run folder."""
        return run / self.name

    def check(self, run: Path, folder: Path) -> None:
        """Refuses, with no model yet, a place that cannot be written, is another's, or goes when the folder is replaced.

        Args:
            run: the run folder.
            folder: of the export.

        Raises:
            ConfigurationError: in these cases, or without the package ``gguf``.
        """
        file = self.path(run)
        check_gguf(file, self.options.dtype, ARGUMENT)
        check_parent(file, ARGUMENT)
        check_free(file, ARGUMENT)
        if file.resolve().is_relative_to(folder.resolve()):
            raise ConfigurationError(f"{ARGUMENT}: expected a file outside the exported folder {folder}, got {file}; give model.gguf")

    def check_model(self, model: Any, tokenizer: Any, pruning: PruningOptions) -> None:
        """Refuses a model that llama.cpp would not compute, as far as its configuration and the run's options tell.

        Raises:
            ConfigurationError: with what is in the way.
        """
        irregular = not self.options.pad and _may_be_irregular(pruning)
        check_feasible(model, tokenizer, irregular=irregular, output_bias=_may_add_biases(pruning), argument=ARGUMENT)

    def write(self, folder: Path, run: Path) -> None:
        """Writes the file of the finished folder, and says so."""
        self.record = write_gguf(folder, self.path(run), self.options.dtype)
        announce(f"wrote {self.record.path} {self.record.summary}")

    def to_report(self) -> dict[str, Any] | None:
        """The report's part; ``None`` where nothing was written."""
        found = self.record
        if found is None:
            return None
        size = found.path.stat().st_size
        return {
            "path": str(found.path),
            "architecture": found.architecture,
            "dtype": found.dtype,
            "bytes": size,
            "notes": list(found.notes),
        }


def _may_be_irregular(pruning: PruningOptions) -> bool:
    """Whether layers may end up with widths of their own; a model that has them already shows it by its tensors."""
    if pruning.plan is not None:
        return not pruning.plan.is_uniform()
    allocation = pruning.search.space.allocation if pruning.recipe is None else pruning.recipe.allocation
    return allocation.method != "uniform" or pruning.budget.protect_first + pruning.budget.protect_last > 0


def _may_add_biases(pruning: PruningOptions) -> bool:
    if pruning.plan is not None:
        return pruning.plan.output_bias
    return any(pruning.search.space.bias_compensations) if pruning.recipe is None else pruning.recipe.bias_compensation
