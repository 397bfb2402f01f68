"""The command line: ``python train.py`` and ``adapruner`` are this program.

``compare`` is :mod:`adapruner.compare`, ``export`` is :mod:`adapruner.cli.export`, ``inspect`` is
:mod:`adapruner.cli.inspect`; everything else, ``fit`` above all, is :mod:`adapruner.cli.lightning`. Torch is loaded where
there is work for it, not for ``inspect`` and not for the help of the other two. A bare configuration name is looked up in the
working directory, then among the shipped ``configs/``.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapruner.errors import AdaPrunerError, ConfigurationError, nearest

CONFIGS = Path(__file__).parents[1] / "configs"
_CONFIG_FLAGS = ("--config", "-c")
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_GOES_ON = "the same command goes on where it stopped"


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; an :class:`AdaPrunerError` becomes one line on stderr and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["compare"]:
            _compare(given[1:])
        elif given[:1] == ["export"]:
            _export(given[1:])
        elif given[:1] == ["inspect"]:
            _inspect(given[1:])
        else:
            _run_lightning(find_configs(given))
    except AdaPrunerError as error:
        print(f"adapruner: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        what = f"{error.strerror}{f' at {error.filename}' if error.filename else ''}"
        print(f"adapruner: error: folder: expected room and the right to write, got {what}; make room, {_GOES_ON}", file=sys.stderr)
        raise SystemExit(2) from None


def _compare(arguments: list[str]) -> None:
    from adapruner.compare.command import run_compare

    try:
        code = run_compare(arguments, find_config, _check_fit)
    except KeyboardInterrupt:
        print("adapruner: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    if code:
        raise SystemExit(code)


def _export(arguments: list[str]) -> None:
    from adapruner.cli.export import run_export

    run_export(arguments)


def _inspect(arguments: list[str]) -> None:
    from adapruner.cli.inspect import run_inspect

    run_inspect(arguments)


def _run_lightning(arguments: list[str]) -> None:
    from adapruner.cli.lightning import build_cli, quiet_libraries

    quiet_libraries()
    build_cli(arguments)


def _check_fit(methods: Mapping[str, Sequence[str]]) -> None:
    """Only where there is something to run: this is what loads torch."""
    from adapruner.cli.lightning import check_fit, quiet_libraries

    quiet_libraries()
    check_fit(methods)


def find_configs(arguments: list[str]) -> list[str]:
    """The arguments with every ``--config NAME`` that is not a file replaced by the shipped file of that name.

    ``sys.argv`` itself stays as it is: ddp starts its other processes from it.

    Raises:
        ConfigurationError: if there is neither a file nor a shipped configuration of that name.
    """
    result = list(arguments)
    for position, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            continue
        if separator:
            result[position] = f"{flag}={find_config(value)}"
        elif position + 1 < len(arguments):
            result[position + 1] = find_config(arguments[position + 1])
    return result


def shipped_configs() -> dict[str, Path]:
    """Name (``quickstart.yaml``, ``baselines/l2.yaml``) -> file."""
    folder = CONFIGS.resolve()
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def find_config(name: str, argument: str = "--config") -> str:
    """The file of a configuration's name; a file of one's own goes before a shipped one.

    Raises:
        ConfigurationError: if there is neither; it names ``argument``.
    """
    if Path(name).exists() or "{" in name or "\n" in name:  # a file, or YAML itself
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ConfigurationError(f"{argument}: expected a file, or the name of a shipped configuration, got {name!r}; {nearest(name, shipped)}")


if __name__ == "__main__":
    main()
