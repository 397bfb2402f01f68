"""The plan: the one record that passes between search, surgery, checkpoint, export and report.

Plain JSON, checked when read. Two plans that keep the same units of the same model have the same hash, however they
were found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapruner.argument_checks import typed
from adapruner.errors import PlanError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import DamagedError, opened, sealed
from adapruner.models.kinds import KINDS

if TYPE_CHECKING:
    from adapruner.models.units import ModelStructure, UnitGroup

MARK = "adapruner"
"""Key of an export's configuration, under which it says its plan's hash."""
PLAN_VERSION = 1

#: Fields that a record has only where they are used -> their unused value.
_OPTIONAL: dict[str, Any] = {"output_bias": False, "removed_layers": [], "kept_hidden": None, "unit_parameters": {}}


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """Which units stay, for which model, and why.

    >>> counts = {"dense": 100, "pruned": 90, "block_dense": 40, "block_pruned": 30}
    >>> plan = PruningPlan({"name": "tiny"}, {"0.ffn": [0, 2, 3]}, {"0.ffn": 4}, counts, {"of": "block", "pruned_fraction": 0.25})
    >>> plan.pruned_fraction, plan.widths("ffn")
    (0.25, [3])
    >>> plan  # doctest: +ELLIPSIS
    PruningPlan(tiny, 25.0 % of block parameters removed, ...)
    """

    model: dict[str, Any]
    """``name``, ``model_type``, ``fingerprint`` and ``weights``, a digest of every bit of them, of the dense model."""
    kept: dict[str, list[int]]
    """Group name (``layer.kind``) -> sorted indices of the units that stay. A group with none keeps ``[]``."""
    units: dict[str, int]
    """Group name -> number of units in the dense model."""
    parameters: dict[str, int]
    """``dense``, ``pruned``, ``block_dense``, ``block_pruned``; ``added_biases`` where the plan adds some."""
    budget: dict[str, Any]
    """What was asked for: ``pruned_fraction`` and ``of`` (``block`` or ``all``)."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """What chose the units: calibration weights, metric mixture, allocation."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Seed, data fingerprint, code version, objective. Not part of the hash."""
    output_bias: bool = False
    """Every output projection (o_proj, down_proj) of the pruned model has a bias, zero where nothing made up for removed
    units; see :mod:`adapruner.pruning.bias_compensation`."""
    removed_layers: list[int] = field(default_factory=list)
    """Sorted indices of the decoder layers that go as a whole, in the dense model's numbering. In ``kept`` their groups keep
    all units; in ``parameters`` they are gone. See :mod:`adapruner.pruning.depth`."""
    kept_hidden: list[int] | None = None
    """Sorted hidden channels that stay; ``None``: all. See :mod:`adapruner.pruning.hidden_width`."""
    unit_parameters: dict[str, int] = field(default_factory=dict)
    """Group name -> parameters of one unit of the dense model: what ``parameters`` is checked by. Not part of the hash."""
    version: int = PLAN_VERSION

    def __repr__(self) -> str:
        """Without the units, which fill screens."""
        counted = "block parameters" if self.budget.get("of") == "block" else "parameters"
        return f"{type(self).__name__}({self.model.get('name')}, {self.pruned_fraction:.1%} of {counted} removed, {self.hash})".replace(
            "%", " %"
        )

    @property
    def pruned_fraction(self) -> float:
        """Removed part of what the budget counts, in [0, 1)."""
        block = self.budget.get("of") == "block"
        dense, pruned = ("block_dense", "block_pruned") if block else ("dense", "pruned")
        return 1.0 - self.parameters[pruned] / self.parameters[dense]

    @property
    def hash(self) -> str:
        """16 hex digits over the model's fingerprint and all that stays and is added: equal exactly when the surgery is."""
        record = [self.version, self.model.get("fingerprint"), sorted(self.kept.items())]
        if self.output_bias:  # what a plan makes no use of does not change its hash
            record.append("output_bias")
        if self.removed_layers:
            record.append(["removed_layers", self.removed_layers])
        if self.kept_hidden is not None:
            record.append(["kept_hidden", self.kept_hidden])
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:16]

    def keeps_all(self, group: UnitGroup) -> bool:
        """Whether a group loses nothing."""
        return len(self.kept[group.name]) == group.units

    def widths(self, kind: str) -> list[int]:
        """Number of kept units per layer of the dense model, for one kind; 0 in a removed layer."""
        layers = sorted(_layer_of(n) for n in self.kept if n.endswith(f".{kind}"))
        return [0 if layer in self.removed_layers else len(self.kept[f"{layer}.{kind}"]) for layer in layers]

    def is_uniform(self) -> bool:
        """Whether every layer that stays keeps the same number of units of each kind."""
        counts = {kind: {len(self.kept[n]) for layer in self.kept_layers() if (n := f"{layer}.{kind}") in self.kept} for kind in KINDS}
        return all(len(found) <= 1 for found in counts.values())

    def kept_layers(self) -> list[int]:
        """Indices of the decoder layers that stay, in the dense model's numbering: entry j is layer j of the pruned model."""
        return sorted({_layer_of(name) for name in self.units} - set(self.removed_layers))

    @property
    def cuts_depth_or_width(self) -> bool:
        """Whether whole layers or hidden channels go."""
        return bool(self.removed_layers) or self.kept_hidden is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON types only, with a digest of them; a checkpoint carries this. What a plan makes no use of is left out."""
        record = {**asdict(self), "hash": self.hash}
        for name, unused in _OPTIONAL.items():
            if record[name] == unused:
                del record[name]
        return sealed(json.loads(json.dumps(record)))

    def save(self, path: str | Path) -> None:
        """Writes the JSON; a reader sees the old file or the new one."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def check(self, structure: ModelStructure, fingerprint: str | None = None, weights: str | None = None) -> None:
        """Refuses a plan made for another model, or that says other numbers of parameters than its units have in this one.

        Args:
            fingerprint, weights: of the dense model (:mod:`adapruner.models.fingerprint`); ``None`` where nobody asks.

        Raises:
            PlanError: if groups, unit counts, parameters, the fingerprint or a single weight differ, or no layer is left.
        """
        expected = {g.name: g.units for g in structure.groups}
        if self.units != expected:
            different = sorted(set(self.units.items()) ^ set(expected.items()))[0][0]
            raise PlanError(
                f"plan: expected units {expected.get(different)} in group {different!r} of this model, "
                f"got {self.units.get(different)}; the plan was made for {self.model.get('name')!r}: give that model, or search again"
            )
        if self.removed_layers and not set(self.removed_layers) < set(range(structure.layers)):
            raise PlanError(
                f"plan: expected removed_layers to be some of this model's {structure.layers} layers and not all, "
                f"got {self.removed_layers}; search again"
            )
        for what, known, own in (
            ("fingerprint", fingerprint, self.model.get("fingerprint")),
            ("weights", weights, self.model.get("weights")),
        ):
            if known and own not in (None, known):
                raise PlanError(
                    f"plan: expected a plan for the model with {what} {known}, got one for "
                    f"{self.model.get('name')!r} ({own}); give that model, or search again"
                )
        if fingerprint or weights or self.unit_parameters:  # else of a test, or of somebody's own making
            self._check_counts(structure)

    def _check_counts(self, structure: ModelStructure) -> None:
        """What the plan says of the model against the model itself."""
        counted = {"dense": structure.parameters, "block_dense": structure.block_parameters}
        said: dict[str, Any] = {f"parameters.{name}": self.parameters.get(name) for name in counted}
        facts: dict[str, Any] = {f"parameters.{name}": value for name, value in counted.items()}
        if self.unit_parameters:
            facts["unit_parameters"] = {g.name: g.parameters_per_unit for g in structure.groups}
            said["unit_parameters"] = self.unit_parameters
        facts["model.model_type"], said["model.model_type"] = structure.model_type, self.model.get("model_type", structure.model_type)
        for name, value in facts.items():
            if said[name] != value:
                short = (str(v) if len(str(v)) < 60 else "others" for v in (value, said[name]))
                expected, got = short
                raise PlanError(f"plan: expected {name} {expected} of this model, got {got}; restore the plan or search again")


def plan_of_widths(structure: ModelStructure, kept: Mapping[str, list[int]]) -> PruningPlan:
    """A plan that keeps these units, and all of groups without an entry: for a measurement, not to be written."""
    counts = dict.fromkeys(("dense", "pruned", "block_dense", "block_pruned"), structure.parameters)
    every = {g.name: kept.get(g.name, list(range(g.units))) for g in structure.groups}
    return PruningPlan({}, every, {g.name: g.units for g in structure.groups}, counts, {})


@typed
def read_plan(source: str | Path | Mapping[str, Any]) -> PruningPlan:
    """A plan from a JSON file or from a checkpoint's dictionary, checked against its own hash.

    Raises:
        PlanError: if the file is missing, is not JSON, lacks a field, is of another version, or was changed by hand.

    >>> counts = {"dense": 100, "pruned": 90, "block_dense": 40, "block_pruned": 30}
    >>> plan = PruningPlan({"name": "tiny"}, {"0.ffn": [0, 2, 3]}, {"0.ffn": 4}, counts, {"of": "block", "pruned_fraction": 0.25})
    >>> read_plan(plan.to_dict()) == plan
    True
    """
    name = "plan" if isinstance(source, Mapping) else f"plan {source}"
    if isinstance(source, Mapping):
        record: Any = dict(source)
    else:
        try:
            record = json.loads(Path(source).read_text())
        except OSError as error:
            raise PlanError(f"{name}: expected a readable file, got {error.strerror}; give the path of a plan.json") from None
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{name}: expected JSON, got damage ({error}); restore the file or search again") from None
    return _validated(record, name)


def _validated(record: Any, name: str) -> PruningPlan:
    if not isinstance(record, dict):
        raise PlanError(f"{name}: expected a JSON object, got {type(record).__name__}; give a file that adapruner wrote")
    if record.get("version") != PLAN_VERSION:
        raise PlanError(f"{name}: expected version {PLAN_VERSION}, got {record.get('version')!r}; search again with this release")
    fields = {"model": dict, "kept": dict, "units": dict, "parameters": dict, "budget": dict, "recipe": dict, "provenance": dict}
    for key, kind in fields.items():
        if not isinstance(record.get(key), kind):
            raise PlanError(
                f"{name}: expected the field {key!r} to be an object, got {record.get(key)!r}; restore the file or search again"
            )
    for key in ("dense", "pruned", "block_dense", "block_pruned"):
        got = record["parameters"].get(key)
        if type(got) is not int or got < 1:  # a bool is an int to isinstance
            raise PlanError(f"{name}: expected parameters.{key} to be a positive integer, got {got!r}; restore the file or search again")
    if set(record["kept"]) != set(record["units"]):
        raise PlanError(f"{name}: expected 'kept' and 'units' to name the same groups, got others; restore the file or search again")
    for group, kept in record["kept"].items():
        _check_kept(name, group, kept, record["units"][group])
    _check_optional(name, record)
    _check_sizes(name, record)
    plan = PruningPlan(
        **{key: record[key] for key in fields}, **{key: record.get(key, deepcopy(unused)) for key, unused in _OPTIONAL.items()}
    )
    if record.get("hash") != plan.hash:
        raise PlanError(f"{name}: expected hash {plan.hash}, got {record.get('hash')!r}: the plan was changed; restore it or search again")
    _check_parameters(name, plan)
    try:
        opened({key: value for key, value in record.items() if value != _OPTIONAL.get(key, ...)}, may_lack=True)
    except DamagedError as error:
        raise PlanError(f"{name}: expected the plan that was written, got another ({error}); restore it or search again") from None
    return plan


def _check_parameters(name: str, plan: PruningPlan) -> None:
    """Numbers of parameters by the units that stay. Layers and hidden channels take others along: there these are the least that goes."""
    if not plan.unit_parameters:  # of an earlier release
        return
    counts = plan.parameters
    block, whole = (counts[dense] - counts[pruned] for dense, pruned in (("block_dense", "block_pruned"), ("dense", "pruned")))
    least = -counts.get("added_biases", 0)
    for group, size in plan.unit_parameters.items():
        least += (plan.units[group] - (0 if _layer_of(group) in plan.removed_layers else len(plan.kept[group]))) * size
    exact = plan.kept_hidden is None and plan.output_bias == ("added_biases" in counts)
    if (whole < block if plan.cuts_depth_or_width else whole != block) or (block != least if exact else block < least):
        raise PlanError(
            f"{name}: expected parameters that the kept units have ({least} fewer in blocks), got {block} fewer there and {whole} in all; "
            "restore the file or search again"
        )


def _check_kept(name: str, group: str, kept: Any, units: Any) -> None:
    layer, _, kind = group.partition(".")
    if not (layer.isascii() and layer.isdecimal()) or kind not in KINDS:
        raise PlanError(f"{name}: expected group names like '3.attention', got {group!r}; restore the file or search again")
    if type(units) is not int or units < 1:
        raise PlanError(f"{name}: expected units.{group} to be a positive integer, got {units!r}; restore the file or search again")
    sound = isinstance(kept, list) and all(type(u) is int and 0 <= u < units for u in kept)
    if not sound or kept != sorted(set(kept)):
        raise PlanError(
            f"{name}: expected kept.{group} to be sorted unit indices below {units}, got others; restore the file or search again"
        )


def _check_sizes(name: str, record: Mapping[str, Any]) -> None:
    """Parameters of a unit, for every group or none; added biases; what the budget counts."""
    sizes, added, of = record.get("unit_parameters", {}), record["parameters"].get("added_biases", 0), record["budget"].get("of", "block")
    sound = isinstance(sizes, dict) and set(sizes) in (set(), set(record["units"]))
    if not sound or any(type(n) is not int or n < 0 for n in (*sizes.values(), added)) or not isinstance(of, str):
        raise PlanError(
            f"{name}: expected unit_parameters and added_biases to be whole numbers, and budget.of a name, got others; "
            "restore the file or search again"
        )


def _check_optional(name: str, record: Mapping[str, Any]) -> None:
    """Added biases, removed layers and kept hidden channels, where a record has them; its groups are known to be sound."""
    if type(record.get("output_bias", False)) is not bool:
        raise PlanError(
            f"{name}: expected output_bias to be true or false, got {record['output_bias']!r}; restore the file or search again"
        )
    layers, hidden = record.get("removed_layers", []), record.get("kept_hidden")
    known = {_layer_of(group) for group in record["units"]}
    if not _are_indices(layers) or (layers and not set(layers) < known):
        raise PlanError(
            f"{name}: expected removed_layers to be some, sorted, of the {len(known)} layers and not all, got others; "
            "restore the file or search again"
        )
    for group in record["units"]:
        if _layer_of(group) in layers and len(record["kept"][group]) != record["units"][group]:
            raise PlanError(
                f"{name}: expected kept.{group} of a removed layer to have all units, got fewer; restore the file or search again"
            )
    if hidden is not None and not (hidden and _are_indices(hidden)):
        raise PlanError(f"{name}: expected kept_hidden to be sorted channel indices, or null, got others; restore the file or search again")


def _are_indices(values: Any) -> bool:
    """Whether this is a list of different integers from 0 on, sorted."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values) and values == sorted(set(values))


def _layer_of(group: str) -> int:
    return int(group.split(".")[0])
