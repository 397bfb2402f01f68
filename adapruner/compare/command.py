"""``adapruner compare``: reads what to compare, runs what is missing, writes the table and the plot."""

from __future__ import annotations

import argparse
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapruner.compare.cells import Cell, check_folder, is_done, lay_out
from adapruner.compare.plots import write_plots
from adapruner.compare.process import Starter
from adapruner.compare.progress import Display, Outcome
from adapruner.compare.schedule import Start, run_cells
from adapruner.compare.spec import BASE_METHOD, ComparisonSpec, FindConfig, devices_of_a_cell, make_spec, read_options, read_spec
from adapruner.compare.summary import make_sections, read_cell
from adapruner.compare.tables import NAME, Result, print_tables, write_tables
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import write_atomically
from adapruner.files.folder_lock import FolderLock
from adapruner.progress import announce, progress_bar
from adapruner.report.answer import provenance_lines
from adapruner.report.record import check_can_draw, read_report

CheckFit = Callable[[Mapping[str, Sequence[str]]], None]
"""Method -> arguments of ``fit``: refuses what its parser refuses, before the first cell."""

_DESCRIPTION = """\
Compare methods over budgets and seeds: every method at every budget with every seed is one fit in its own folder,
FOLDER/METHOD/BUDGET/seed-N. Then one page (comparison.html), one table with mean, spread and paired differences (comparison.md, .tex,
.csv, .json), one plot (.svg, .png), and a Pareto plot of perplexity against parameters and latency (comparison.pareto.svg, .png, .json).

Killed and started again, it runs only what is missing, and a run that was cut short goes on where it stopped.
A failed cell is named in the table, the others go on, and the exit code is 1.
"""
_EPILOG = f"""\
examples:
  adapruner compare --config compare.yaml
  adapruner compare --base quickstart.yaml --methods {BASE_METHOD} baselines/l2.yaml ablations/data-only.yaml \\
                    --budgets 0.2 0.5 --seeds 0 1 2 --folder runs/compare -- --pruning.search.n_trials 64

A method is a configuration laid over the base; "{BASE_METHOD}" is the base alone. Differences are taken to the first method, or to that of
--against, at the same budget and seed.
Everything behind -- goes to every fit. The exported models are deleted after each cell, unless --keep_models.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = argparse.ArgumentParser(
        prog="adapruner compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="adapruner compare [--config FILE] [options] [-- options of fit]",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="a comparison in YAML: the options below as keys, and options: {data.batch_size: 4} for every fit")
    add("--base", metavar="CONFIG", help="the configuration that all methods share, such as quickstart.yaml")
    add("--methods", nargs="+", metavar="CONFIG", help=f"{BASE_METHOD}, baselines/l2.yaml, ablations/data-only.yaml, files of your own")
    add("--budgets", nargs="+", metavar="FRACTION", help="pruned fractions, each in [0, 1)")
    add("--seeds", nargs="+", metavar="N", help="of data, search and recovery alike (default: 0 1 2)")
    add("--folder", metavar="DIR", help="where everything goes (default: runs/compare)")
    add("--against", metavar="METHOD", help="the method that differences are taken to, by its name in the table (default: the first)")
    add("--jobs", metavar="N", help="cells at a time; each has its share of the cores, and a GPU where there are some (default: 1)")
    add("--devices", nargs="+", metavar="GPU", help="GPUs to spread the cells over, by number or UUID; one cell on each, unless --jobs")
    add("--keep_models", action="store_true", default=None, help="keep the exported model of every cell")
    add("--import", metavar="FILE", help="metrics, samplers and the like of your own, which every fit imports, too; may be repeated")
    return parser


def run_compare(
    arguments: Sequence[str],
    find_config: FindConfig,
    check_fit: CheckFit | None = None,
    start: Start | None = None,
    imports: Sequence[str] = (),
) -> int:
    """The whole command; 0, or 1 if a cell failed.

    Args:
        arguments: behind ``compare``.
        find_config: finds the file of a configuration's name.
        check_fit: called once before the first cell, if there is one to run.
        start: starts a cell; ``adapruner fit`` in a process of its own when empty.
        imports: files and modules that every ``fit`` imports first (``--import``).

    Raises:
        ConfigurationError: before anything is run.
    """
    spec = replace(make_spec(_values(arguments, find_config), find_config), imports=tuple(imports))
    check_can_draw("lift it")
    cells = lay_out(spec)
    made = not Path(spec.folder).exists()
    check_folder(spec, cells)
    if check_fit is not None and not all(map(is_done, cells)):
        try:
            check_fit({cell.method: cell.arguments for cell in cells})
        except BaseException:
            if made:  # what is refused leaves nothing behind
                shutil.rmtree(spec.folder, ignore_errors=True)
            raise
    with ExitStack() as at_the_end:
        lock = FolderLock()
        lock.take(spec.folder)  # two comparisons in one folder would run the same cells
        at_the_end.callback(lock.release)
        write_atomically(spec.folder / f"{NAME}.yaml", to_yaml(spec))
        done = sum(map(is_done, cells))
        with _terminated_is_interrupted(), progress_bar("comparison", len(cells)) as advance:
            outcomes = run_cells(
                cells,
                start or Starter(spec.jobs, spec.devices, devices_of_a_cell(spec)),
                Display(advance, len(cells), done),
                # A comparison that is cut short shows what it has.
                after_each=lambda outcomes: write_tables(collect(spec, cells, outcomes), spec.folder),
                jobs=spec.jobs,
                keep_models=spec.keep_models,
            )
        result = collect(spec, cells, outcomes)
        write_tables(result, spec.folder)
        drawn = write_plots(result, spec.folder)
    print_tables(result)
    announce(f"comparison: {', '.join(str(path) for path in (spec.folder / f'{NAME}.md', *drawn))}")
    return 1 if result.failures else 0


def collect(spec: ComparisonSpec, cells: Sequence[Cell], outcomes: Mapping[Cell, Outcome]) -> Result:
    """The result of the cells with an outcome, in the order of the comparison, whatever order they were run in."""
    position = {method.name: number for number, method in enumerate(spec.methods)}
    ordered = sorted(outcomes, key=lambda c: (spec.budgets.index(c.budget), position[c.method], spec.seeds.index(c.seed)))
    done = [cell for cell in ordered if outcomes[cell].failure is None]
    reports = [read_report(cell.folder) for cell in done]
    measured = [read_cell(cell, report) for cell, report in zip(done, reports, strict=True)]
    rows, methods = tuple(row for own, _ in measured for row in own), tuple(position)
    return Result(
        methods,
        spec.budgets,
        spec.seeds,
        rows,
        tuple(make_sections(rows, methods, spec.budgets, spec.against)),
        failures=tuple((c.method, c.budget, c.seed, str(outcomes[c].failure)) for c in ordered if outcomes[c].failure is not None),
        missing=len(cells) - len(outcomes),
        protocol=(reports[0].protocol or "") if reports else "",
        card=tuple(provenance_lines(reports[0])) if reports else (),
        other=spec.against,
        costs=tuple(cost for _, cost in measured),
        jobs=spec.jobs,
    )


def to_yaml(spec: ComparisonSpec) -> str:
    """The comparison as a file for ``--config``."""
    import yaml

    record = {
        "base": str(spec.base),
        "methods": [m.name if len(m.configs) == 1 else str(m.configs[-1]) for m in spec.methods],
        "budgets": list(spec.budgets),
        "seeds": list(spec.seeds),
        "folder": str(spec.folder),
        "options": list(spec.options),
        "against": spec.against,
        "jobs": spec.jobs,
        "devices": list(spec.devices),
        "keep_models": spec.keep_models,
    }
    imports = "".join(f" --import {name}" for name in spec.imports)
    return f"# adapruner compare --config {spec.folder / NAME}.yaml{imports}\n" + yaml.safe_dump(record, sort_keys=False)


def _values(arguments: Sequence[str], find_config: FindConfig) -> dict[str, Any]:
    """The file's keys, the flags laid over them."""
    own, options = list(arguments), []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    given, unknown = make_parser().parse_known_args(own)
    if unknown:
        raise ConfigurationError(f"compare: expected its own options, got {unknown[0]!r}; options of fit go behind --, see compare --help")
    flags = {key: value for key, value in vars(given).items() if value is not None}
    file = flags.pop("config", None)
    values = {**({} if file is None else read_spec(find_config(file, "--config"))), **flags}
    if options:
        values["options"] = [*read_options(values.get("options") or ()), *options]
    return values


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """A plain ``kill`` ends the cells at work too; without a handler it would end this process alone."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, for instance under a test
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
