"""Configurations by name: a file of one's own, else one of the shipped ``configs/``."""

from __future__ import annotations

import os
from pathlib import Path

from adapruner.errors import ConfigurationError, nearest

CONFIGS = Path(__file__).parents[1] / "configs"
_CONFIG_OPTIONS = ("--config", "-c")


def shipped_configs() -> dict[str, Path]:
    """Name (``quickstart.yaml``, ``baselines/l2.yaml``) -> file."""
    folder = CONFIGS.resolve()
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def find_config(name: str, argument: str = "--config") -> str:
    """The file of a configuration's name; a file of one's own goes before a shipped one.

    Raises:
        ConfigurationError: if there is neither; it names ``argument``.
    """
    if "{" in name or "\n" in name or os.path.exists(name):  # YAML itself, or a file
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ConfigurationError(f"{argument}: expected a file, or the name of a shipped configuration, got {name!r}; {nearest(name, shipped)}")


def find_configs(arguments: list[str]) -> list[str]:
    """The arguments with every ``--config NAME`` that is not a file replaced by the shipped file of that name.

    ``sys.argv`` itself stays as it is: ddp starts its other processes from it.

    Raises:
        ConfigurationError: if there is neither a file nor a shipped configuration of that name.
    """
    result = list(arguments)
    for position, argument in enumerate(arguments):
        option, separator, value = argument.partition("=")
        if option not in _CONFIG_OPTIONS:
            continue
        if separator:
            result[position] = f"{option}={find_config(value)}"
        elif position + 1 < len(arguments):
            result[position + 1] = find_config(arguments[position + 1])
    return result
