"""What is compared: a base configuration, methods, budgets and seeds; from one YAML file, from flags, or from both."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError, nearest

BASE_METHOD = "adapruner"
"""The method that is the base configuration alone."""

KEYS = ("base", "methods", "budgets", "seeds", "folder", "options", "against", "jobs", "devices", "keep_models")
OWNED = {
    "config": "methods",
    "c": "methods",
    "pruning.budget.pruned_fraction": "budgets",
    "seed_everything": "seeds",
    "pruning.search.seed": "seeds",
    "data.seed": "seeds",
    "recovery.seed": "seeds",
    "trainer.default_root_dir": "folder",
    "pruning.folder": "folder",
    "report.folder": "folder",
    "report.name": "folder",
    "export.folder": "folder",
    "import": "--import of compare",
}
#: Options that run code which comes with a model or a task: no file may ask for them.
CODE = ("model.trust_remote_code", "zero_shot.task_folder")
"""Option of ``fit`` that every cell sets for itself -> the key of the comparison that decides it."""

FindConfig = Callable[[str, str], str]
"""(name, argument) -> file; raises a ConfigurationError that names the argument."""


@dataclass(frozen=True)
class Method:
    """A name for the table, and the configurations that are laid over each other, the base first."""

    name: str
    configs: tuple[Path, ...]


@dataclass(frozen=True)
class ComparisonSpec:
    """A checked comparison."""

    base: Path
    methods: tuple[Method, ...]
    """In the order of the table."""
    budgets: tuple[float, ...]
    """Pruned fractions, each in [0, 1)."""
    seeds: tuple[int, ...]
    folder: Path
    options: tuple[str, ...] = ()
    """Further arguments of every ``fit``."""
    against: str | None = None
    """Name of the method that differences are taken to; the first one when empty."""
    jobs: int = 1
    """Cells at a time."""
    devices: tuple[str, ...] = ()
    """GPUs that cells are spread over, as ``CUDA_VISIBLE_DEVICES`` names them; those that are there when empty."""
    keep_models: bool = False
    """Whether the exported model of every cell stays on the disk."""
    imports: tuple[str, ...] = ()
    """Files and modules that every ``fit`` imports first; from the command line alone, because importing runs code."""


def devices_of_a_cell(spec: ComparisonSpec) -> str:
    """``trainer.devices`` of the cells, by the further arguments or the base; ``auto`` where nobody says."""
    name, words = "--trainer.devices", list(spec.options)
    found = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    found += [after for word, after in pairwise(words) if word == name]
    if found:
        return found[-1]
    trainer = _read_yaml(spec.base, "--base").get("trainer")
    return str(trainer.get("devices", "auto")) if isinstance(trainer, Mapping) else "auto"


def read_spec(file: str) -> dict[str, Any]:
    """The keys of a comparison's YAML file, unchecked but for their names.

    Raises:
        ConfigurationError: if the file cannot be read or is not a comparison.
    """
    record = _read_yaml(Path(file), "--config")
    if not isinstance(record, Mapping):
        raise ConfigurationError(f"--config: expected the keys of a comparison ({', '.join(KEYS)}) in {file}, got none; write them")
    if "model" in record and "base" not in record:
        raise ConfigurationError(f"--config: expected a comparison, got the configuration of a run in {file}; give it as --base")
    unknown = [str(key) for key in record if key not in KEYS]
    if unknown:
        raise ConfigurationError(f"--config: expected known keys in {file}, got {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    options = record.get("options") or ()
    for option in options if isinstance(options, Mapping | list) else ():
        if str(option).split("=")[0].lstrip("-") in CODE:
            raise ConfigurationError(f"options: expected none that runs code, got {option!r} in {file}; give it behind --, not in a file")
    return dict(record)


def make_spec(values: Mapping[str, Any], find_config: FindConfig) -> ComparisonSpec:
    """Checks everything that can be checked without a run.

    Args:
        values: what :func:`read_spec` gives, flags laid over it.
        find_config: finds the file of a configuration's name.

    Raises:
        ConfigurationError: in one line, if something is missing, unknown, repeated or out of range.
    """
    for key in ("base", "methods", "budgets"):
        if values.get(key) in (None, [], ()):
            raise ConfigurationError(f"{key}: expected at least one, got none; give --{key}, or the key in the file of --config")
    base = _find_file(str(values["base"]), "base", find_config)
    budgets = tuple(_number("budgets", item, float, 0.2) for item in _listed(values["budgets"]))
    outside = [b for b in budgets if not 0.0 <= b < 1.0]
    if outside:
        raise ConfigurationError(f"budgets: expected fractions in [0, 1), got {outside[0]:g}; give 0.2 to remove 20 %")
    seeds = tuple(_number("seeds", item, int, 0) for item in _listed(values.get("seeds", [0, 1, 2])))
    if not seeds or min(seeds) < 0:
        raise ConfigurationError(f"seeds: expected whole numbers of 0 or more, got {list(seeds)}; give 0 1 2")
    devices = _find_devices(values.get("devices"))
    jobs = _number("jobs", values.get("jobs", len(devices) or 1), int, 1)
    if jobs < 1:
        raise ConfigurationError(f"jobs: expected 1 or more, got {jobs}; give the number of cells to run at a time")
    keep = values.get("keep_models", False)
    if not isinstance(keep, bool):
        raise ConfigurationError(f"keep_models: expected true or false, got {keep!r}; give one of them")
    _refuse_repeats("budgets", budgets)
    _refuse_repeats("seeds", seeds)
    methods = _find_methods(_listed(values["methods"]), base, find_config)
    folder = Path(str(values.get("folder") or "runs/compare")).absolute()
    against, names = values.get("against"), [method.name for method in methods]
    if against is not None and against not in names:
        raise ConfigurationError(f"against: expected a method of the comparison, got {against!r}; {nearest(str(against), names)}")
    return ComparisonSpec(base, methods, budgets, seeds, folder, read_options(values.get("options") or ()), against, jobs, devices, keep)


def _find_devices(given: Any) -> tuple[str, ...]:
    devices = () if given is None else tuple(str(device).strip() for device in _listed(given))
    wrong = [device for device in devices if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", device)]
    if wrong:
        raise ConfigurationError(f"devices: expected numbers or identifiers of GPUs, got {wrong[0]!r}; give 0 1")
    _refuse_repeats("devices", devices)
    return devices


def _find_methods(names: Sequence[Any], base: Path, find_config: FindConfig) -> tuple[Method, ...]:
    methods = []
    for name in map(str, names):
        if name == BASE_METHOD:
            methods.append(Method(BASE_METHOD, (base,)))
        else:
            file = _find_file(name, "methods", find_config)
            methods.append(Method(file.stem, (base, file)))
    _refuse_repeats("methods", [m.name for m in methods])
    for file in dict.fromkeys(file for method in methods for file in method.configs):
        _check_config(file)
    return tuple(methods)


def _check_config(file: Path) -> None:
    """That it is YAML, and leaves the budget to the comparison."""
    record = _read_yaml(file, "methods")
    budget = (record.get("pruning") or {}).get("budget") if isinstance(record, Mapping) else None
    given = {key for key, value in budget.items() if value is not None} if isinstance(budget, Mapping) else set()
    if not given - {"pruned_fraction"}:
        return
    from adapruner.pruning.budget import ABSOLUTE_TARGETS

    absolute = [key for key in ABSOLUTE_TARGETS if key in given]
    if absolute:
        raise ConfigurationError(
            f"methods: expected budgets as fractions, got pruning.budget.{absolute[0]} in {file.name}; leave it out of what is compared"
        )


def _read_yaml(file: Path, argument: str) -> Any:
    import yaml

    from adapruner.files.yaml_text import read_yaml

    try:
        return read_yaml(file)
    except OSError as error:
        raise ConfigurationError(f"{argument}: expected a readable file, got {error.strerror} for {file}; correct the path") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{argument}: expected YAML in {file}, got damage ({error}); mend it") from None


def _find_file(name: str, argument: str, find_config: FindConfig) -> Path:
    file = Path(find_config(name, argument)).resolve()
    if not file.is_file():
        raise ConfigurationError(f"{argument}: expected a file, got {name!r}; name a configuration such as baselines/l2.yaml")
    return file


def read_options(given: Any) -> tuple[str, ...]:
    """A mapping ``{data.batch_size: 4}`` or a list of arguments, as arguments."""
    if isinstance(given, Mapping):
        given = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(f"options: expected a mapping such as {{data.batch_size: 4}}, got {given!r}; write one")
    options = tuple(map(str, given))
    if options and not options[0].startswith("-"):
        raise ConfigurationError(f"options: expected options of fit, got {options[0]!r}; begin with one such as --data.batch_size 4")
    for option in options:
        key = option.split("=")[0].lstrip("-")
        if option.startswith("-") and key in OWNED:
            raise ConfigurationError(f"options: expected none that every cell sets for itself, got {option!r}; use {OWNED[key]}")
    return options


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _number(argument: str, value: Any, kind: type, example: float) -> Any:
    try:
        number = kind(value)
        if isinstance(value, bool) or not math.isfinite(number) or (kind is int and number != float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise ConfigurationError(f"{argument}: expected {what}, got {value!r}; give one such as {example}") from None
    return number


def _refuse_repeats(argument: str, values: Sequence[Any]) -> None:
    repeated = [v for position, v in enumerate(values) if v in values[:position]]
    if repeated:
        raise ConfigurationError(f"{argument}: expected each once, got {repeated[0]!r} twice; leave one out")
