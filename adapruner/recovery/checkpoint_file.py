"""Which checkpoints may be read at all: local ones, of tensors and plain values, so that no code in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.files import folder_lock
from adapruner.files.digests import DamagedError
from adapruner.files.paths import check_path

#: Of a sharded checkpoint, the file that holds everything but tensors.
SHARDED = folder_lock.SHARDED
#: Names of Lightning's that stand for a checkpoint, of a registry on the network among them.
_NAMES = ("last", "best", "hpc")
#: In a sharded checkpoint, the pickle that says which tensor lies where; torch reads it without any limit.
_INDEX = ".metadata"
_TORCH = "torch.distributed.checkpoint."
_KNOWN = {
    f"{_TORCH}metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_TORCH}filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", "device", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}


def check_is_local(path: Any, argument: str = "ckpt_path") -> None:
    """Whether a checkpoint is a local file, or the folder of a sharded one; ``None`` passes.

    Raises:
        ConfigurationError: if it is not there, on the network, or a name that stands for something else.
    """
    if path is None:
        return
    check_path(argument, path)
    file = Path(path)
    if not str(path) or str(path) in _NAMES or str(path).startswith("registry"):
        raise ConfigurationError(f"{argument}: expected the path of a checkpoint, got {str(path)!r}; name the file")
    if not file.exists():
        raise ConfigurationError(f"{argument}: expected a checkpoint, got {str(path)!r}, which does not exist; correct the path")
    if file.is_dir() and not (file / SHARDED).is_file():
        got = f"the folder {str(path)!r} without {SHARDED}"
        raise ConfigurationError(f"{argument}: expected a checkpoint, got {got}; name the .ckpt file")


def check_index(folder: Path) -> None:
    """Whether the index of a sharded checkpoint is one, before torch unpickles it.

    Raises:
        DamagedError: if it is damaged, or names anything but what an index is made of.
    """
    try:
        with (folder / _INDEX).open("rb") as file:
            _IndexUnpickler(file).load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DamagedError((str(error).strip().splitlines() or [type(error).__name__])[0][:120]) from None


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)
