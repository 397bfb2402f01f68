"""Statistics of the model on the calibration pool: collected once, kept in the run folder under what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import temporary_beside

Tensors = dict[str, Tensor]


def read_or_collect(file: Path | None, key: str, collect: Callable[[], Tensors], write: bool) -> tuple[Tensors, bool]:
    """The tensors of ``file`` if it was written under this key, else what ``collect`` gives, kept there for the next time.

    Of several ranks, which must all call it, the first one reads; the others get its tensors, or collect with it.

    Args:
        file: ``None`` keeps nothing.
        key: everything the tensors depend on.
        write: whether this process keeps them (the first rank does).

    Returns:
        The tensors, and whether they came from the file.
    """
    ranks = Ranks()
    found = _read(file, key) if file is not None and ranks.rank == 0 else None
    names = ranks.broadcast(None if found is None else list(found))
    if names is not None:
        return {name: ranks.broadcast(None if found is None else found[name]) for name in names}, True
    tensors = collect()
    ranks.on_rank_zero(_write if write and file is not None else None, file, key, tensors)
    return tensors, False


def _read(file: Path, key: str) -> Tensors | None:
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("key") == key:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception:  # absent or damaged: collected again
        pass
    return None


def _write(file: Path, key: str, tensors: Tensors) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with temporary_beside(file) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"key": key})
            temporary.chmod(0o644)  # safetensors writes for the owner alone
            temporary.replace(file)
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other
        raise ConfigurationError(f"folder: expected to write {file}, got {error}; make room there or choose another folder") from error
