"""Learned gates: the units that the search's winner keeps are exchanged for others as long as that lowers a loss on held-out text.

Where much is removed, a unit's worth depends on which others went, which no ranking sees. One gate per unit
(:mod:`adapruner.pruning.gates`) is trained with the model's weights frozen, from the winner's own ranking on, by the divergence from the
dense model, the text's cross entropy, or both. What comes out is a plan of the same budget, refitted and recovered like any other.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.errors import DataError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import DamagedError
from adapruner.files.tensor_file import read_tensors, write_tensors
from adapruner.models.forward import evaluation_mode, frozen, input_device
from adapruner.models.next_token_loss import IGNORED
from adapruner.models.smaller_batches import with_smaller_batches
from adapruner.progress import announce, progress_bar
from adapruner.pruning.allocation.gamma import priorities_in
from adapruner.pruning.gates import UnitGates, first_logits
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, budget_of, plan_of_units, score_units
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.distillation import Distillation, training_loss
from adapruner.recovery.teacher import write_down
from adapruner.search.gates_config import GatesConfig
from adapruner.search.split import select_rows

FOLDER = "gates"
HISTORY = "gates.csv"
_STATE = "state.safetensors"


@dataclass(frozen=True)
class Look:
    """The gates at one look."""

    step: int
    loss: float | None
    """Mean of the training loss since the look before, nats per counted token; ``None`` at the start."""
    held_out: float
    """The loss on the held-out windows, nats per token."""
    exchanged: int
    """Units that stay and would not by the search's plan."""


@dataclass(frozen=True)
class LearnedGates:
    """What the gates came to."""

    plan: PruningPlan
    looks: list[Look]
    best: Look


def learn_gates(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    recipe: Recipe,
    windows: Any,
    held_out: Any,
    config: GatesConfig,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
) -> LearnedGates:
    """Trains the gates of a dense model; it stays as it is. All ranks must call it: each reads a share of every step's windows.

    Args:
        model: the dense causal LM, on its device.
        problem: with the statistics that the recipe asks for.
        plan: what the recipe chose: the gates start from it.
        recipe: what the plan was made by.
        windows: training text with ``input_ids``, ``labels`` and ``attention_mask``, each ``[n, seq_len]``.
        held_out: text of the same form that decides between looks.
        config: steps, learning rate and loss.
        folder: the run folder, in which the state of the last look is kept and looked for; ``None`` keeps nothing.
        identity: what the loss depends on beside plan and configuration, as JSON types.

    Raises:
        BudgetError: if the gates cannot meet the budget with the widths that the recipe's allocation asks for.
    """
    where = None if folder is None else folder / FOLDER
    if where is not None:
        where.mkdir(parents=True, exist_ok=True)
    rows = _rows(len(windows.input_ids), config)
    windows = select_rows(windows, rows)
    key = f"1:{plan.hash}:{json.dumps([config.to_dict(), identity], sort_keys=True, default=str)}:{_digest(windows, held_out)}"
    training = _Training(model, problem, plan, recipe, windows, held_out, config, where, hashlib.sha256(key.encode()).hexdigest()[:16])
    with frozen(model), evaluation_mode(model):
        return training.run(_order(rows, config))


def _rows(count: int, config: GatesConfig) -> Tensor:
    """The windows that the steps read, sorted: a teacher need not read the others."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: config.steps * config.batch_size].sort().values


def _order(rows: Tensor, config: GatesConfig) -> list[list[int]]:
    """Per step the places of its windows among ``rows``: each read as often as the others."""
    generator, order = torch.Generator().manual_seed(config.seed + 1), list[int]()
    while len(order) < config.steps * config.batch_size:
        order += torch.randperm(len(rows), generator=generator).tolist()
    return [order[step * config.batch_size : (step + 1) * config.batch_size] for step in range(config.steps)]


class _Training:
    """One run of the gates: what it goes by, and where it stands."""

    def __init__(
        self,
        model: Any,
        problem: PruningProblem,
        plan: PruningPlan,
        recipe: Recipe,
        windows: Any,
        held_out: Any,
        config: GatesConfig,
        folder: Path | None,
        key: str,
    ) -> None:
        self.model, self.problem, self.plan, self.recipe, self.config = model, problem, plan, recipe, config
        self.windows, self.held_out, self.folder, self.key = windows, held_out, folder, key
        self.device, self.ranks = input_device(model), Ranks()
        structure, (budget, costs) = problem.structure, budget_of(problem, recipe)
        logits = first_logits(plan, structure, _priorities(problem, recipe), self.device, recipe.allocation.method == "gamma")
        self.gates = UnitGates(structure, budget, costs, recipe.allocation, logits)
        self.optimizer = torch.optim.Adam(self.gates.logits.values(), lr=config.learning_rate)
        self.teachers = {name: self._teacher(name, text) for name, text in (("training", windows), ("held out", held_out))}
        self.looks: list[Look] = []
        self.kept: list[dict[str, list[int]]] = []

    def _teacher(self, name: str, text: Any) -> Distillation | None:
        if not self.config.loss:
            return None
        folder = None if self.folder is None else self.folder / name.replace(" ", "-")
        return Distillation(write_down(self.model, text, self.config.loss, folder), self.config.loss)

    def run(self, order: list[list[int]]) -> LearnedGates:
        """All steps that are left."""
        done, losses = self._resumed(), list[Tensor]()
        if not self.looks:
            self._look(0, losses, self.plan.kept)
        with progress_bar("gates", self.config.steps) as advance:
            for step, rows in enumerate(order[done:], start=done + 1):
                losses.append(self._step(rows))
                if step % self.config.look_every == 0 or step == self.config.steps:
                    self._look(step, losses, self.gates.kept())
                    losses.clear()
                advance(step, f"held out {self.looks[-1].held_out:.4f} nats/token, best {self._best().held_out:.4f}")
        best = self._best()
        announce(
            f"gates: {self.looks[0].held_out:.4f} nats/token held out by the search's units, {best.held_out:.4f} after {best.step} steps "
            f"and {best.exchanged:,} exchanged"
        )
        looks = {"first": asdict(self.looks[0]), "best": asdict(best)}
        facts = {**self.plan.provenance, "gates": {**self.config.to_dict(), **looks, "started from": self.plan.hash}}
        plan = plan_of_units(self.problem, self.recipe, self.kept[self.looks.index(best)], facts) if best.step else self.plan
        return LearnedGates(replace(plan, provenance=facts), list(self.looks), best)

    def _best(self) -> Look:
        return min(self.looks, key=lambda look: look.held_out)

    def _step(self, rows: list[int]) -> Tensor:
        """One step on the windows of all ranks, and their mean loss per token."""
        own, kept = torch.tensor(rows[self.ranks.rank :: self.ranks.size], dtype=torch.long), self.gates.kept()

        def gradients(size: int) -> Tensor:
            self.optimizer.zero_grad()
            with torch.enable_grad():
                return self._summed(self.windows, own, "training", kept, size, backward=True)

        sums = with_smaller_batches(gradients, max(1, len(own)), "gates")
        for values in self.gates.logits.values():  # a rank without a window waits for no other
            values.grad = torch.zeros_like(values) if values.grad is None else values.grad
        found = [values.grad for values in self.gates.logits.values() if values.grad is not None]
        self.ranks.add_up(sums, *found)
        if float(sums[1]) > 0:
            for gradient in found:
                gradient.div_(sums[1].float())
            self.optimizer.step()
        return sums

    def _summed(self, text: Any, rows: Tensor, name: str, kept: dict[str, list[int]], size: int, backward: bool = False) -> Tensor:
        """``[2]`` float64: the loss in nats over these windows, and how many tokens it counts."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for part in rows.split(size):
            batch = {role: getattr(text, role)[part].to(self.device) for role in ("input_ids", "attention_mask", "labels")}
            counted = int((batch["labels"][:, 1:] != IGNORED).sum())
            if counted:
                with self.gates.applied(self.model, kept):
                    loss = training_loss(self.model, self.teachers[name], batch) * counted
                    if backward:
                        loss.backward()  # type: ignore[no-untyped-call]
                sums += torch.tensor([float(loss.detach()), counted], dtype=torch.float64, device=self.device)
        return sums

    def _look(self, step: int, losses: list[Tensor], kept: dict[str, list[int]]) -> None:
        """Measures the open gates on the held-out windows, each rank on its share, and keeps where the training stands."""
        own = torch.arange(len(self.held_out.input_ids))[self.ranks.rank :: self.ranks.size]
        with torch.no_grad():
            sums = with_smaller_batches(
                lambda size: self._summed(self.held_out, own, "held out", kept, size), self.config.batch_size, "gates"
            )
        self.ranks.add_up(sums)
        held_out, trained = float(sums[0] / sums[1]), sum(losses, start=torch.zeros_like(sums))
        if not math.isfinite(held_out):
            raise DataError(
                f"gates: expected a finite loss on the {int(sums[1]):,} held-out tokens after {step} steps, got {held_out}; give search "
                "text with tokens to predict, or a lower gates.learning_rate"
            )
        exchanged = sum(len(set(kept[name]) - set(units)) for name, units in self.plan.kept.items())
        self.looks.append(Look(step, float(trained[0] / trained[1]) if losses else None, held_out, exchanged))
        self.kept.append(kept)
        self.ranks.on_rank_zero(self._keep)

    def _keep(self) -> None:
        if self.folder is not None:
            write_tensors(self.folder / _STATE, self.key, self._state())
            write_atomically(self.folder.parent / HISTORY, _table(self.looks))

    def _state(self) -> dict[str, Tensor]:
        """Everything that a killed run needs: logits, Adam's moments, and every look with its units."""
        rows = [[look.step, torch.nan if look.loss is None else look.loss, look.held_out, look.exchanged] for look in self.looks]
        state = {"looks": torch.tensor(rows, dtype=torch.float64)}
        for name, values in self.gates.logits.items():
            state[f"logits/{name}"] = values.detach().cpu().clone()
            for moment, value in self.optimizer.state.get(values, {}).items():
                state[f"{moment}/{name}"] = torch.as_tensor(value).detach().cpu().clone()
            state[f"kept/{name}"] = torch.stack([_as_mask(kept[name], len(values)) for kept in self.kept])
        return state

    def _resumed(self) -> int:
        """Steps that a killed run had done at its last look; their state is this run's."""
        state = self.ranks.on_rank_zero(self._read)
        if state is None:
            return 0
        for step, loss, held_out, exchanged in state["looks"].tolist():
            self.looks.append(Look(int(step), None if loss != loss else loss, held_out, int(exchanged)))
        masks = {name: state[f"kept/{name}"] for name in self.gates.logits}
        self.kept = [{name: mask[look].nonzero()[:, 0].tolist() for name, mask in masks.items()} for look in range(len(self.looks))]
        with torch.no_grad():
            for name, values in self.gates.logits.items():
                values.copy_(state[f"logits/{name}"])
                moments = {m: state[f"{m}/{name}"] for m in ("step", "exp_avg", "exp_avg_sq") if f"{m}/{name}" in state}
                if moments:
                    self.optimizer.state[values] = {m: v if m == "step" else v.to(self.device) for m, v in moments.items()}
        announce(f"gates: goes on after step {self.looks[-1].step} of {self.config.steps}")
        return self.looks[-1].step

    def _read(self) -> dict[str, Tensor] | None:
        if self.folder is None:
            return None
        try:
            return read_tensors(self.folder / _STATE, self.key)
        except DamagedError as error:
            announce(f"{self.folder / _STATE} is damaged ({error}): the gates begin anew")
            return None


def _priorities(problem: PruningProblem, recipe: Recipe) -> dict[str, Tensor]:
    """Group name -> ``[units]`` float64: what the recipe's allocation ranked by; its scores, where it compares units of one group only."""
    scores, allocation = score_units(problem, recipe), recipe.allocation
    if allocation.method != "gamma":
        return {name: values.double() for name, values in scores.items()}
    structure, (_, costs) = problem.structure, budget_of(problem, recipe)
    return {g.name: priorities_in(g, scores[g.name], allocation, costs, structure.layers) for g in structure.groups}


def _as_mask(units: list[int], count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[units] = True
    return mask


def _digest(*texts: Any) -> str:
    digest = hashlib.sha256()
    for part in _parts(*texts):
        digest.update(part.long().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(*texts: Any) -> Iterator[Tensor]:
    for text in texts:
        yield from (text.input_ids, text.labels, text.attention_mask)


def _table(looks: list[Look]) -> str:
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["step", "loss", "held_out", "exchanged"])
    rows.writerows([look.step, "" if look.loss is None else f"{look.loss:.6f}", f"{look.held_out:.6f}", look.exchanged] for look in looks)
    return file.getvalue()
