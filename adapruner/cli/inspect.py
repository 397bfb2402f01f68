"""``adapruner inspect``: what a run, an export or a plan holds, on the terminal or as JSON. Nothing heavy is loaded.

A run that was ended half-way shows what is there so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapruner.cli.one_line_parser import OneLineParser
from adapruner.cli.run_contents import gather
from adapruner.progress import terminal
from adapruner.pruning.fixed_recipe import IN_WORDS, fixed_recipe_of, plain_recipe_sentence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BAR = 16
_DESCRIPTION = """\
Print a run's plan and results. RUN is a folder that fit wrote into, an exported folder, or a plan.json.

A run that was ended half-way shows what is there so far: its trials, the best of them, its last checkpoint.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = OneLineParser("inspect", "RUN [--json]", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the folder of a run, an export, or a plan.json")
    parser.add_argument("--json", action="store_true", help="everything as JSON instead of tables")
    return parser


def run_inspect(arguments: Sequence[str], console: Console | None = None) -> None:
    """The whole command.

    Raises:
        ConfigurationError: if there is nothing of adapruner's at the path.
        PlanError: if a plan was changed or is damaged.
    """
    given = make_parser().parse_args(list(arguments))
    found = gather(Path(given.run))
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print_inspection(found, console or terminal(soft_wrap=True, highlight=False))


def print_inspection(found: Mapping[str, Any], console: Console) -> None:
    """Plan, results, what the folder holds."""
    from rich.text import Text

    from adapruner.report.terminal import print_report

    console.print(Text(_title(found), style="bold"))
    if found["plan"]:
        plain = None if found["report"] else fixed_recipe_of(found["plan"].get("provenance") or {})  # which a report says itself
        _print_plan(found["plan"], console, plain)
    if found["report"]:
        print_report(found["report"], console)
    elif found["search"]:
        console.print()
        for line in _search_lines(found["search"]):
            console.print(Text(line))
    if found["holds"]:
        console.print()
        console.print(Text("In the folder", style="bold"))
        for name, what in found["holds"].items():
            console.print(Text(f"  {name}: {what if isinstance(what, str) else _described(what)}"))
    for remark in found["remarks"]:
        console.print(Text(remark, style="bold"))


def recipe_in_words(recipe: Mapping[str, Any]) -> str:
    """What chose the units, in one line; empty for a plan that does not say.

    >>> mixture = {"l2": 0.25, "flap_wifv": 0.75, "l1": 0.0}
    >>> recipe_in_words({"coefficients": mixture, "reduction": "sum", "allocation": {"method": "uniform"}})
    'metrics 0.75 flap_wifv + 0.25 l2; sum over coupled tensors; allocation uniform'
    """
    parts = []
    weights = {name: float(value) for name, value in (recipe.get("coefficients") or {}).items()}
    total = sum(weights.values())
    if total > 0:
        shares = sorted(((value / total, name) for name, value in weights.items() if value / total >= 0.005), reverse=True)
        parts.append("metrics " + " + ".join(f"{share:.2f} {name}" for share, name in shares))
    calibration = recipe.get("calibration") or {}
    for key, word in (("source_weights", "sources"), ("cluster_weights", "clusters")):
        if calibration.get(key):
            parts.append(f"{word} " + ", ".join(f"{name} {weight:.2f}" for name, weight in calibration[key].items()))
    if calibration.get("count"):
        parts.append(f"{calibration['count']} samples drawn with seed {calibration.get('seed', 0)}")
    if recipe.get("reduction"):
        parts.append(f"{recipe['reduction']} over coupled tensors")
    parts += ["bias compensation"] if recipe.get("bias_compensation") else []
    allocation = recipe.get("allocation") or {}
    if allocation.get("method"):
        gamma = f" {allocation['gamma']:.2f}" if allocation["method"] == "gamma" and "gamma" in allocation else ""
        parts.append(f"allocation {allocation['method']}{gamma}")
    return "; ".join(parts)


def bar_text(kept: int, units: int) -> str:
    """A bar and the numbers.

    >>> bar_text(3, 4)
    '████████████░░░░ 3 of 4'
    """
    full = 0 if kept == 0 else max(1, round(_BAR * kept / units))
    width = len(f"{units:,}")
    return f"{'█' * full}{'░' * (_BAR - full)} {kept:>{width},} of {units:,}"


def _title(found: Mapping[str, Any]) -> str:
    if found["kind"] != "run":
        return f"{found['path']}: {'an export' if found['kind'] == 'export' else 'a plan'}"
    if found["report"]:
        return f"{found['path']}: a finished run"
    return f"{found['path']}: {'a run that has its plan and no report' if found['plan'] else 'a run that has no plan yet'}"


def _print_plan(plan: Mapping[str, Any], console: Console, plain: str | None) -> None:
    from rich.text import Text

    from adapruner.report.answer import COUNTED
    from adapruner.report.formats import count_text, percent_text

    model, parameters, budget = plan["model"], plan["parameters"], plan["budget"]
    of = COUNTED.get(budget.get("of"), (str(budget.get("of")), ""))[0]
    console.print()
    sizes = f"{count_text(parameters['dense'])} -> {count_text(parameters['pruned'])} parameters"
    block = 1 - parameters["block_pruned"] / parameters["block_dense"]
    console.print(Text(f"Plan {plan['hash']} for {model.get('name')} ({model.get('model_type')}): {sizes}"))
    target = budget.get("pruned_fraction")
    asked = "" if target is None else f"; asked for: {percent_text(target)} of the {of}"
    console.print(Text(f"Removed {percent_text(block)} of the block parameters{asked}"))
    words = recipe_in_words(plan["recipe"])
    if words:
        console.print(Text(f"Recipe: {words}"))
    if plain is not None:
        console.print(Text(plain_recipe_sentence(plain)))
    if "kept_hidden" in plan:
        console.print(Text(f"Hidden channels kept: {plan['kept_hidden']:,}"))
    console.print(_layer_table(plan["layers"]))


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table

    kinds = [kind for kind in ("attention", "ffn") if any(kind in layer for layer in layers)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right")
    for kind in kinds:
        table.add_column({"attention": "attention units kept", "ffn": "FFN channels kept"}[kind], no_wrap=True)
    for layer in layers:
        cells = ["removed" if layer["removed"] else bar_text(**layer[kind]) if kind in layer else "" for kind in kinds]
        table.add_row(str(layer["layer"]), *cells)
    return table


def _search_lines(search: Mapping[str, Any]) -> list[str]:
    """The search so far."""
    from adapruner.report.formats import nll_text

    best, fixed, journal = search["best"], search["best_fixed"], search["journal"]
    count = f"{search['trials']} trials, {search['complete']} complete"
    if journal is not None and journal["finished"] != search["trials"]:
        count += f" ({journal['finished']} finished in the journal)"
    lines = [f"Search so far: {count}."]
    for row, word in ((best, "Best so far"), (fixed, f"Best fixed recipe, {IN_WORDS}")):
        if row is not None:
            lines.append(f"{word}: {nll_text(row['value'])} (trial {row['trial']}, {row['name']}).")
    return lines


def _described(what: Mapping[str, Any]) -> str:
    words = [f"{what['class']}, {'stock' if what['stock'] else 'its own modelling file'}, {what['dtype']}"] if "class" in what else []
    words += ["adapters apart"] if what.get("adapters") else []
    words += ["checkpoint"] if what.get("checkpoint") else []
    words += [f"{what['trials']} finished trials"] if "trials" in what else []
    size = what["bytes"]
    return ", ".join([*words, _size_text(size)])


def _size_text(size: int) -> str:
    from adapruner.report.formats import memory_text

    return memory_text(size / 2**30) if size >= 2**20 else f"{size / 2**10:.1f} KiB"
