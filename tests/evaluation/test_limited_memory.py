"""Costs on a device with too little memory: the device is played by errors raised where a real one would run out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapruner.evaluation import cost, limited_memory
from adapruner.evaluation.cost import count_macs, random_dense_model, weight_memory_gib
from adapruner.evaluation.cost_table import measure_costs
from adapruner.evaluation.limited_memory import PairOfModels
from tests.tiny import tiny_llama

SEQ_LEN = 12
SIZES = ("parameters", "macs", "weight_memory_gib")
UNKNOWN = ("latency_ms", "latency_iqr_ms", "decode_ms", "peak_memory_gib", "prefill_energy_j")
"""What a model must run for on the device."""


class Latencies:
    """In place of :func:`adapruner.evaluation.cost.measure_latency`: notes what is timed together, runs out of memory when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runs_out: Any) -> None:
        self.runs_out, self.timed, self.inner = runs_out, [], cost.measure_latency  # type: ignore[var-annotated]
        monkeypatch.setattr(cost, "measure_latency", self)

    def __call__(self, models: dict[str, nn.Module], *arguments: Any, **options: Any) -> Any:
        self.timed.append(len(models))
        if self.runs_out(list(models.values())):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(models, *arguments, **options)


@pytest.fixture
def pruned() -> Any:
    return tiny_llama(intermediate_size=24)


def check_sizes(found: dict[str, dict[str, Any]], pruned: nn.Module) -> None:
    expected = measure_costs({"dense": random_dense_model(tiny_llama().config), "pruned": pruned}, SEQ_LEN, repeats=1)
    for name in ("dense", "pruned"):
        assert {key: found[name][key] for key in SIZES} == {key: expected[name][key] for key in SIZES}


def test_with_enough_memory_both_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    timing = Latencies(monkeypatch, lambda models: False)
    pair = PairOfModels(tiny_llama().config, pruned)
    found = pair.costs(SEQ_LEN, 1)
    assert timing.timed == [2]
    assert pair.together
    assert all(found[name]["latency_ms"] > 0 for name in found)
    check_sizes(found, pruned)


def test_where_both_do_not_fit_each_is_timed_alone(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    timing = Latencies(monkeypatch, lambda models: len(models) > 1)
    pair = PairOfModels(tiny_llama().config, pruned)
    found = pair.costs(SEQ_LEN, 1)
    assert timing.timed == [2, 1, 1]
    assert not pair.together
    assert all(found[name]["latency_ms"] > 0 and found[name]["decode_ms"] > 0 for name in found)
    timing.runs_out = lambda models: False
    check_sizes(found, pruned)


def test_what_cannot_run_even_alone_has_no_latency_and_the_other_has(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    timing = Latencies(monkeypatch, lambda models: any(model is not pruned for model in models))
    found = PairOfModels(tiny_llama().config, pruned).costs(SEQ_LEN, 1)
    assert [found["dense"][key] for key in UNKNOWN] == [None] * len(UNKNOWN)
    assert found["pruned"]["latency_ms"] > 0
    timing.runs_out = lambda models: False
    check_sizes(found, pruned)


def test_macs_are_counted_on_the_cpu_where_the_device_cannot_run_a_forward(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    Latencies(monkeypatch, lambda models: True)
    tried: list[nn.Module] = []

    def first_on_the_device(model: nn.Module, seq_len: int, batch: int = 1) -> int:
        tried.append(model)
        if tried.count(model) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return count_macs(model, seq_len)

    monkeypatch.setattr(cost, "count_macs", first_on_the_device)
    found = PairOfModels(tiny_llama().config, pruned).costs(SEQ_LEN, 1)
    assert found["pruned"]["macs"] == count_macs(pruned, SEQ_LEN) < found["dense"]["macs"]
    assert found["pruned"]["weight_memory_gib"] == weight_memory_gib(pruned)
    assert len(tried) == 4


def test_a_twin_that_does_not_fit_is_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    timing, made = Latencies(monkeypatch, lambda models: False), []

    def twin(*arguments: Any) -> nn.Module:
        made.append(arguments[2:])
        if len(made) == 1:  # on the pruned model's device
            raise torch.OutOfMemoryError("CUDA out of memory")
        return random_dense_model(*arguments)

    monkeypatch.setattr(limited_memory, "random_dense_model", twin)
    pair = PairOfModels(tiny_llama().config, pruned)
    assert made == [(torch.device("cpu"), None), ("cpu", None)]
    assert pair.costs(SEQ_LEN, 1)["dense"]["latency_ms"] > 0
    assert timing.timed == [1, 1]


def test_the_sweep_of_each_alone_has_the_points_of_both(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    inner, swept = limited_memory.measure_speed, []

    def speed(models: dict[str, nn.Module], *arguments: Any) -> Any:
        swept.append(list(models))
        if len(models) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(models, *arguments)

    together = PairOfModels(tiny_llama().config, pruned).speeds([1, 2], [8], 1)
    monkeypatch.setattr(limited_memory, "measure_speed", speed)
    alone = PairOfModels(tiny_llama().config, pruned).speeds([1, 2], [8], 1)
    assert swept == [["dense", "pruned"], ["dense"], ["pruned"]]
    assert together is not None
    assert alone is not None
    assert [(p.batch, p.seq_len, p.macs, set(p.speeds)) for p in alone] == [(p.batch, p.seq_len, p.macs, set(p.speeds)) for p in together]


def test_any_other_error_is_raised(monkeypatch: pytest.MonkeyPatch, pruned: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(cost, "measure_latency", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        PairOfModels(tiny_llama().config, pruned).costs(SEQ_LEN, 1)
