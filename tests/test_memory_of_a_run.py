"""What a run lets go of on its way: the tables of the search are larger than a small model, and recovery does not read them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

import adapruner
from adapruner import run
from adapruner.callbacks import pruning_search
from adapruner.pruning.problem import PruningProblem
from adapruner.search.prepare_problem import ProblemBuilder
from tests.callbacks.conftest import Run, all_callbacks
from tests.tiny import random_windows, tiny_llama


class Tables:
    """Weak references to the Gram matrices and the statistics of the run that is going on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.grams: list[Any] = []
        self.statistics: list[Any] = []
        build = ProblemBuilder.build

        def watched(builder: ProblemBuilder, *arguments: Any, **options: Any) -> PruningProblem:
            problem = build(builder, *arguments, **options)
            assert problem.grams is not None
            self.grams += [weakref.ref(t) for table in (problem.grams.grams, problem.grams.sums) for t in table.values()]
            self.statistics += [weakref.ref(t) for t in problem.statistics.member.values()]
            return problem

        monkeypatch.setattr(ProblemBuilder, "build", watched)

    @property
    def alive(self) -> tuple[bool, bool]:
        """Whether a Gram matrix, and whether statistics are still held."""
        gc.collect()
        assert self.grams
        assert self.statistics
        return any(ref() is not None for ref in self.grams), any(ref() is not None for ref in self.statistics)


def noted(found: dict[str, tuple[bool, bool]], tables: Tables, name: str, function: Any) -> Any:
    """The function; what is alive when it is called is noted."""

    def call(*arguments: Any, **options: Any) -> Any:
        found[name] = tables.alive
        return function(*arguments, **options)

    return call


def test_a_run_from_python_holds_no_table_longer_than_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, found = Tables(monkeypatch), dict[str, tuple[bool, bool]]()
    for name in ("find_plan", "reconstruct", "train_recovery"):
        monkeypatch.setattr(run, name, noted(found, tables, name, getattr(run, name)))
    search = adapruner.SearchConfig(n_trials=4, chunks=2, space=adapruner.SearchSpace(metrics=["l2", "gate_fisher"]))
    report = adapruner.ReportConfig(compare=["l2"], latency_seq_len=16, latency_repeats=1)
    windows = random_windows(12, 32, seed=1, sources=("books", "code"))
    data: Any = {"calibration": windows.input_ids, "evaluation": random_windows(4, 16, seed=3).input_ids}
    model = tiny_llama(intermediate_size=480)
    result = adapruner.prune(model, **data, budget=0.3, search=search, report=report, recovery=2, progress=False)
    assert found == {"find_plan": (True, True), "reconstruct": (False, True), "train_recovery": (False, False)}
    assert result.report["calibration"]
    assert {row["method"] for row in result.perplexity} == {"dense", "adapruner", "best fixed", "l2"}


def test_a_fit_holds_no_table_longer_than_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, found = Tables(monkeypatch), dict[str, tuple[bool, bool]]()
    for name in ("find_plan", "reconstruct"):
        monkeypatch.setattr(pruning_search, name, noted(found, tables, name, getattr(pruning_search, name)))

    class Step(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            found["step"] = tables.alive

    done = Run(tmp_path, [*all_callbacks(), Step()], max_steps=1)
    assert found == {"find_plan": (True, True), "reconstruct": (False, True), "step": (False, False)}
    assert done.search.scored is not None
    assert done.search.scored.problem.calibration.samples == 8
    assert (tmp_path / "report.json").is_file()


def test_the_refit_makes_no_logits() -> None:
    """Of 24 tokens in 6 windows over 96 words they would be the largest tensor of a tiny model's refit, and they are never read."""
    from adapruner.recovery.streams import start

    model = tiny_llama()
    called: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, __, output: called.append(output.shape))
    windows = start(model, random_windows(6, 24, seed=5).input_ids, 4)
    assert [len(batch) for batch in windows.starts] == [4, 2]
    assert not called
