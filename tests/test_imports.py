"""Who may import whom, and one door per foreign library: read from the source with ``ast``, nothing is imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

#: The rooms of the package from the ground up. A room may import the rooms of earlier lines; never its own line, never a later one.
STOREYS: tuple[tuple[str, ...], ...] = (
    ("errors", "_version"),
    ("registry", "distributed", "argument_checks", "bar_columns", "freed_memory", "hub_names", "log_streams", "threads"),
    ("progress",),
    ("files",),
    ("stage_times",),
    ("demo",),
    ("models",),
    ("data",),
    ("importance", "calibration"),
    ("pruning", "evaluation"),
    ("recovery",),
    ("search",),
    ("export", "report"),
    ("own_text",),
    ("stages",),
    ("run",),
    ("pruned_module",),
    ("module", "data_module"),
    ("callbacks",),
    ("compare",),
    ("cli",),
    ("train",),
)
STOREY = {room: storey for storey, rooms in enumerate(STOREYS) for room in rooms}

#: Foreign library -> the modules (or whole packages) that may import it.
DOORS: dict[str, tuple[str, ...]] = {
    "torch_pruning": ("adapruner.models", "adapruner.pruning.surgery"),
    "optuna": ("adapruner.search",),
    "gguf": ("adapruner.export.formats.gguf", "adapruner.models.gguf_input"),
    "peft": ("adapruner.recovery", "adapruner.export"),
    "lm_eval": ("adapruner.evaluation.zero_shot",),
    "sklearn": ("adapruner.calibration.clusters",),
    "torchmetrics": ("adapruner.evaluation.perplexity_metric",),
    "filelock": ("adapruner.files.folder_lock",),
    "jinja2": ("adapruner.report.page", "adapruner.data.conversations"),
    "altair": ("adapruner.report", "adapruner.compare.charts"),
    "vl_convert": ("adapruner.report.vega",),
    "pydantic": ("adapruner.report",),
    "huggingface_hub": ("adapruner.export", "adapruner.hub_names"),
    "lightning": ("adapruner.module", "adapruner.data_module", "adapruner.cli", "adapruner.callbacks"),
}
#: Other names of the same library.
ALIASES = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning"}


def source_files() -> dict[str, Path]:
    """Module name -> file. The symlinks in ``adapruner/`` are not followed: ``callbacks/`` is read where it lives."""
    files = {"train": ROOT / "train.py"}
    for folder, prefix in (("adapruner", "adapruner"), ("callbacks", "adapruner.callbacks")):
        for parent, _, names in os.walk(ROOT / folder):
            for name in names:
                if name.endswith(".py"):
                    parts = (*Path(parent).relative_to(ROOT / folder).parts, name.removesuffix(".py"))
                    files[".".join((prefix, *(p for p in parts if p != "__init__")))] = Path(parent, name)
    return files


def imported_names(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions and ``import_module("...")`` included.

    ``from a import b`` gives ``a.b``: whether ``b`` is a module or a name in ``a`` makes no difference to the rooms.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def room_of(name: str) -> str:
    """``adapruner.search.space`` -> ``search``; ``adapruner`` itself -> ``adapruner``; a foreign name -> ``""``."""
    parts = name.split(".")
    if parts[0] in ("train", "callbacks"):
        return parts[0]
    if parts[0] != "adapruner":
        return ""
    return parts[1] if len(parts) > 1 else "adapruner"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for each import that the rules forbid to ``module``."""
    own, found = room_of(module), []
    for line, name in imported_names(source, module, is_package):
        library = ALIASES.get(name.split(".")[0], name.split(".")[0])
        doors = DOORS.get(library)
        if doors and not any(module == door or module.startswith(f"{door}.") for door in doors):
            found.append(f"{module}:{line} imports {name}; the doors of {library} are {', '.join(doors)}")
        room = room_of(name)
        # The root package only names the rooms; that naming them loads nothing is tested below.
        if not room or room == own or own == "adapruner":
            continue
        if name.startswith("callbacks"):
            found.append(f"{module}:{line} imports {name}; its name is adapruner.{name}")
        elif room not in STOREY:
            found.append(f"{module}:{line} imports {name}; inside the package import from the module that defines the name")
        elif STOREY[room] >= STOREY[own]:
            found.append(f"{module}:{line} imports {name}; {own} stands below or beside {room}")
    return found


def test_every_room_has_a_storey() -> None:
    files = source_files()
    rooms = {room_of(module) for module in files} - {"adapruner"}
    assert rooms <= set(STOREY), "a new room: give it a place in STOREYS"
    assert {"errors", "data", "models", "importance", "pruning", "search", "callbacks", "train"} <= rooms
    assert len(files) > 20
    assert len({path.resolve() for path in files.values()}) == len(files), "a file was read twice, through a symlink"


def imports_at_run_time(tree: ast.AST) -> ast.AST:
    """Without the blocks that only a type checker reads."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> Any:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Drop().visit(tree)


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, inside functions too."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        source = ast.unparse(imports_at_run_time(ast.parse(path.read_text(encoding="utf-8"))))
        names = {name for _, name in imported_names(source, module, path.name == "__init__.py")}
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} & set(files) - {module}
    return graph


def test_no_cycle_of_imports_also_inside_rooms() -> None:
    graph = import_graph(source_files())
    assert sum(map(len, graph.values())) > 300
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_a_cycle_is_found(tmp_path: Path) -> None:
    files = {f"adapruner.room.{name}": tmp_path / f"{name}.py" for name in ("one", "other")}
    files["adapruner.room.one"].write_text("def f():\n    from adapruner.room.other import g\n")
    files["adapruner.room.other"].write_text("from adapruner.room import one\n")
    with pytest.raises(CycleError, match="nodes are in a cycle"):
        TopologicalSorter(import_graph(files)).prepare()
    files["adapruner.room.one"].write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from adapruner.room.other import g\n")
    TopologicalSorter(import_graph(files)).prepare()


@pytest.mark.parametrize("module", sorted(source_files()))
def test_imports_go_downwards_and_through_the_doors(module: str) -> None:
    path = source_files()[module]
    assert violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("adapruner.pruning.plan", "from adapruner.search.space import Space", "pruning stands below or beside search"),
        ("adapruner.pruning.plan", "import adapruner.export.loading", "pruning stands below or beside export"),
        ("adapruner.pruning.plan", "from adapruner import recovery", "pruning stands below or beside recovery"),
        ("adapruner.pruning.plan", "from ..report import page", "pruning stands below or beside report"),
        ("adapruner.pruning", "from ..search import study", "pruning stands below or beside search"),
        (
            "adapruner.data.windows",
            "def f():\n    from adapruner.importance.gram import GramMatrices",
            "data stands below or beside importance",
        ),
        (
            "adapruner.search.study",
            "from importlib import import_module\nimport_module('adapruner.cli')",
            "search stands below or beside cli",
        ),
        ("adapruner.callbacks.pruned_export", "import train", "callbacks stands below or beside train"),
        ("adapruner.cli", "from callbacks import PruningSearchCallback", "its name is adapruner.callbacks"),
        ("adapruner.cli", "from adapruner import PruningPlan", "import from the module that defines the name"),
        ("adapruner.cli", "import adapruner", "import from the module that defines the name"),
        ("adapruner.pipeline", "def f():\n    import optuna.samplers", "the doors of optuna are adapruner.search"),
        ("adapruner.pruning.allocation", "import torch_pruning as tp", "the doors of torch_pruning are"),
        ("adapruner.recovery.lora", "from pytorch_lightning import Trainer", "the doors of lightning are"),
        ("adapruner.data.sources", "import lightning.pytorch", "the doors of lightning are"),
        ("adapruner.evaluation.cost", "import lm_eval", "the doors of lm_eval are adapruner.evaluation.zero_shot"),
        ("adapruner.modules", "import lightning", "the doors of lightning are"),
    ],
)
def test_a_violation_is_found(module: str, source: str, reason: str) -> None:
    found = violations(source, module, is_package=module == "adapruner.pruning")
    assert len(found) == 1, found
    assert reason in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("adapruner.pruning.plan", "from adapruner.errors import PlanError\nfrom adapruner.models.units import KINDS"),
        ("adapruner.pruning.surgery", "from .plan import PruningPlan\nimport torch_pruning as tp"),
        ("adapruner.pruning", "from .plan import PruningPlan"),
        ("adapruner.search.study", "import optuna\nfrom adapruner.pruning import problem as pipeline"),
        (
            "adapruner.cli.fit",
            "from lightning.pytorch.cli import LightningCLI\nfrom adapruner.callbacks import PruningSearchCallback",
        ),
        ("adapruner.data.windows", "import torch\nfrom collections import abc\nprint('optuna')"),
        ("train", "from adapruner.cli import main"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(source, module, is_package=module == "adapruner.pruning") == []


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_adapruner_is_fast_and_loads_no_library() -> None:
    heavy = ["torch", "numpy", "lightning", "transformers", "datasets", "matplotlib", *DOORS]
    code = "import sys; before = set(sys.modules); import adapruner; print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        loaded = run_python(code).split()
        seconds.append(time.perf_counter() - started)
    assert set(heavy) & set(loaded) == set()
    # The best of three, the interpreter's own start included: a busy machine slows one run, not all.
    assert min(seconds) < 1.0


def test_public_names_come_on_first_use() -> None:
    printed = run_python(
        "import sys, adapruner\n"
        "assert set(adapruner.__all__) <= set(dir(adapruner))\n"
        "assert 'adapruner.pruning.plan' not in sys.modules\n"
        "from adapruner import PruningPlan\n"
        "from adapruner.pruning.plan import PruningPlan as same\n"
        "print(PruningPlan is same)"
    )
    assert printed == "True"


def test_unknown_public_name_lists_the_known_ones() -> None:
    import adapruner

    with pytest.raises(AttributeError, match=r"module 'adapruner' has no attribute 'prunes'; public names: AdaPrunerError, .*read_plan"):
        adapruner.prunes  # noqa: B018


@pytest.mark.parametrize("package", ["adapruner", "adapruner.callbacks"])
def test_lazy_names_are_defined_where_they_are_looked_for(package: str) -> None:
    """Read from the source: a class that moves must move in the table of lazy names too."""
    files = source_files()
    tree = ast.parse(files[package].read_text(encoding="utf-8"))
    lazy = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_LAZY")
    assert len(lazy) >= 4
    for name, module in lazy.items():
        assert module in files, f"{name}: no file for {module}"
        defined = ast.parse(files[module].read_text(encoding="utf-8")).body
        assert name in {getattr(node, "name", None) for node in defined}, f"{module} does not define {name}"
