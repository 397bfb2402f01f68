"""``--import my_metrics.py``: a user's own metrics, samplers, objectives and the like, known before a configuration is read.

Such a file registers what it defines (:mod:`adapruner.registry`). Only the command line can name one: importing runs its code, and a
configuration, which may come from somebody else, runs none.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from adapruner.errors import ConfigurationError

OPTION = "--import"
_IMPORTED: set[str] = set()


def take_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is to be imported, and the other arguments.

    >>> take_imports(["--import", "my.py", "--config=a.yaml", "--import=other"])
    (['my.py', 'other'], ['--config=a.yaml'])

    Raises:
        ConfigurationError: if nothing stands behind the option.
    """
    names, others, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        option, separator, name = argument.partition("=")
        if option != OPTION:
            others.append(argument)
            continue
        if not separator:
            name = left.pop(0) if left else ""
        if not name or name.startswith("-"):
            raise ConfigurationError(f"{OPTION}: expected a Python file or the name of a module, got none; write one behind it")
        names.append(name)
    return names, others


def import_all(names: Sequence[str]) -> None:
    """Imports each: what ends with ``.py`` as a file, everything else as an installed module.

    Raises:
        ConfigurationError: if there is no such file or module, or it cannot be imported.
    """
    for name in names:
        module, writes = _module_of(Path(name)) if name.endswith(".py") else name, sys.dont_write_bytecode
        try:
            sys.dont_write_bytecode = True  # as for a script: nothing appears beside the file
            importlib.import_module(module)
            _IMPORTED.add(module)
        except Exception as error:  # a user's code can fail in any way
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                wanted = f"expected a Python file or an installed module, got {name!r}"
                raise ConfigurationError(f"{OPTION}: {wanted}, which is neither; correct it, or write a path that ends with .py") from None
            raise ConfigurationError(f"{OPTION}: expected {name} to be importable, got {_reason(error, module)}; correct it") from error
        finally:
            sys.dont_write_bytecode = writes


def is_imported(module: str) -> bool:
    """Whether the command line imported a module, or the package that it is in."""
    return any(f"{module}.".startswith(f"{name}.") for name in _IMPORTED)


def _module_of(file: Path) -> str:
    """Makes the file importable under its own name, so that a ``class_path`` finds it by that name, and it finds the files beside it.

    Raises:
        ConfigurationError: if there is no such file, or another module has the name.
    """
    if not file.is_file():
        raise ConfigurationError(f"{OPTION}: expected a Python file, got {str(file)!r}, which is not there; correct the path")
    name, folder = file.stem, str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: it hides no installed module
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    origin = None if spec is None or spec.origin is None else spec.origin
    if origin is None or Path(origin).resolve() != file.resolve():
        raise ConfigurationError(f"{OPTION}: expected a file with a name of its own, got {str(file)!r}: {name!r} is {origin}; rename it")
    return name


def _reason(error: Exception, module: str) -> str:
    """The kind of error, the line of the module that it happened in, and what it says."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError in line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem == module.split(".")[-1]]
    place = f" in line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {error!s:.200}"
