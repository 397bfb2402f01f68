"""The command line: ``python train.py``, ``adapruner`` and ``python -m adapruner.cli`` are this program.

One file for each command: :mod:`adapruner.cli.prune`, :mod:`adapruner.cli.fit`, :mod:`adapruner.cli.evaluation` (``validate``,
``test`` and ``predict``), :mod:`adapruner.compare.command`, :mod:`adapruner.cli.export`, :mod:`adapruner.cli.write_texts` and
:mod:`adapruner.cli.inspect`. Torch is loaded where there is work for it: not for ``inspect``, not for help, and not for the refusal of a
misspelt option.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from adapruner.cli.help_page import COMMANDS, LIKE_FIT, help_page
from adapruner.cli.last_resort import GOES_ON, describe
from adapruner.distributed import is_rank_zero
from adapruner.errors import AdaPrunerError, ConfigurationError, nearest, printable, together, written_as


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; an :class:`AdaPrunerError`, and whatever else ends it, becomes one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character costs that, not the run
    try:
        with _own_environment():
            _run(sys.argv[1:] if arguments is None else arguments)
    except AdaPrunerError as error:
        _end(str(error), 2)
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # inside fit, Lightning ends the process with code 1 and no word
            _end_interrupted()
        raise
    except GeneratorExit:
        raise
    except BrokenPipeError:  # whoever read the output has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # which Python would flush at its end
        raise SystemExit(141) from None
    except BaseException as error:
        line = describe(error)
        if line.startswith("memory: "):
            atexit.register(setattr, sys, "unraisablehook", lambda _: None)  # libraries fail once more at its end, with a traceback
        _end(line, 2)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Only weights are read, of whatever, by whichever library, and in processes started meanwhile; the environment is then as it was.

    Libraries write into it, too: Lightning the seed of everything, which later runs of the same process would take for theirs.
    """
    before = dict(os.environ)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        yield
    finally:
        for name in {*os.environ} - {*before}:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _end_interrupted() -> NoReturn:
    print(f"adapruner: interrupted; {GOES_ON}", file=sys.stderr)
    raise SystemExit(130) from None


def _end(message: str, code: int) -> NoReturn:
    print(f"adapruner: error: {printable(message)}", file=sys.stderr)
    raise SystemExit(code) from None


def _run(arguments: Sequence[str]) -> None:
    """Finds the command, and imports what the command line asks for before anything is read with it."""
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(help_page())
        raise SystemExit(0)
    if command == "--version":
        from adapruner._version import __version__

        print(f"adapruner {__version__}")
        raise SystemExit(0)
    if command not in COMMANDS:
        got = repr(command) if command else "none"
        raise ConfigurationError(f"command: expected a known one first, got {got}; {nearest(command, COMMANDS)}")
    rest = list(arguments[1:])
    if command == "inspect":
        from adapruner.cli.inspect import run_inspect

        return run_inspect(rest)
    from adapruner.cli.imports import import_all, take_imports

    imports, rest = take_imports(rest)
    if command == "prune":
        from adapruner.cli.prune import check_texts, fit_words, short_names

        given, (command, rest) = rest, ("fit", fit_words(rest))
        check_texts(given)
        with written_as(short_names(given)):
            return _run_like_fit(command, rest, imports, "prune")
    if command in LIKE_FIT:
        return _run_like_fit(command, rest, imports)
    import_all(imports)
    if command == "compare":
        return _compare(rest, imports)
    if command == "write-texts":
        from adapruner.cli.write_texts import run_write_texts

        return run_write_texts(rest)
    from adapruner.cli.export import run_export

    return run_export(rest)


def _run_like_fit(command: str, words: list[str], imports: list[str], asked: str | None = None) -> None:
    """``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        asked: the command that the user wrote, where it is another.
    """
    from adapruner.cli.finished_run import AskedRun
    from adapruner.cli.imports import import_all

    _answer_at_once(command, words, imports)
    run = AskedRun.of(asked or command, words, imports) if command == "fit" else None
    if run is not None and run.is_finished():
        return
    import_all(imports)
    if sys.stdout.isatty() and is_rank_zero():  # the imports take some seconds; what is read by a program begins with its answer
        print("adapruner: loads PyTorch and Lightning", flush=True)
    from adapruner.cli.fit import run_trainer
    from adapruner.cli.quiet import quiet_libraries

    quiet_libraries()
    run_trainer(command, words)
    if run is not None:
        run.note()


def _answer_at_once(command: str, words: list[str], imports: Sequence[str]) -> None:
    """Help, and what is wrong with names: known without the parser, for which torch would have to be loaded."""
    from adapruner.cli.command_help import asks_for_help, command_help

    if asks_for_help(words):
        print(command_help(command, words))
        raise SystemExit(0)
    _check_names(command, words, imports)


def _check_names(command: str, words: Sequence[str], imports: Sequence[str]) -> None:
    """Those of options, of metrics and the like, of folders to be written, and of the model.

    Metrics and the like are left to the parser where something was or will be imported, which may add some.
    """
    from adapruner.cli.option_catalogue import FOLDERS, read_catalogue
    from adapruner.cli.shipped_configs import find_configs
    from adapruner.files.paths import check_folder_path

    found, catalogue = find_configs(list(words)), read_catalogue(command)
    faults = catalogue.misspelt(found) + ([] if imports or "torch" in sys.modules else catalogue.unknown(found))
    if faults:
        raise together([ConfigurationError(line) for line in faults])
    for name in FOLDERS:
        folder = catalogue.value(found, name)
        check_folder_path(name, None if folder == "null" else folder)
    model, revision = (catalogue.value(found, f"model.{name}") for name in ("name_or_path", "revision"))
    if isinstance(model, str) and not any(word.startswith("--print_config") for word in words):
        from adapruner.models.model_names import check_model_name

        check_model_name(model, revision if isinstance(revision, str) else None)


def _compare(arguments: list[str], imports: list[str]) -> None:
    from adapruner.cli.shipped_configs import find_config
    from adapruner.compare.command import run_compare

    code = run_compare(arguments, find_config, partial(_check_fit, imports), imports=imports)
    if code:
        raise SystemExit(code)


def _check_fit(imported: Sequence[str], methods: Any) -> None:
    """Only where there is something to run: this is what loads torch, but for a misspelt option."""
    from adapruner.cli.imports import take_imports

    for method, (_, *words) in methods.items():
        try:
            imports, words = take_imports(words)
            _check_names("fit", words, [*imported, *imports])
        except ConfigurationError as error:
            raise ConfigurationError(f"methods: expected arguments that fit understands, got for {method}: {error}") from None
    from adapruner.cli.fit import check_fit
    from adapruner.cli.quiet import quiet_libraries

    quiet_libraries()
    check_fit(methods)
