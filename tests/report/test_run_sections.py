"""The report's section on cost, on a device whose memory does not hold the dense model beside the pruned one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapruner.evaluation import cost, limited_memory
from adapruner.evaluation.limited_memory import ONE_BY_ONE
from adapruner.report.run_sections import cost_section
from tests.tiny import tiny_llama

SEQ_LEN = 12
UNKNOWN = ("latency_ms", "latency_iqr_ms", "decode_ms", "peak_memory_gib", "prefill_energy_j")
"""What a model must run for on the device."""


def section(monkeypatch: pytest.MonkeyPatch, most: int, batches: tuple[int, ...] = ()) -> dict[str, Any]:
    """Where at most so many models can be timed at once."""

    def runs_out(measure: Any) -> Any:
        def measured(models: dict[str, nn.Module], *arguments: Any, **options: Any) -> Any:
            if len(models) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return measure(models, *arguments, **options)

        return measured

    monkeypatch.setattr(cost, "measure_latency", runs_out(cost.measure_latency))
    monkeypatch.setattr(limited_memory, "measure_speed", runs_out(limited_memory.measure_speed))
    return cost_section(tiny_llama().config, tiny_llama(intermediate_size=24), SEQ_LEN, 1, batches, (SEQ_LEN,))


def test_both_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = section(monkeypatch, most=2, batches=(1,))
    assert "at batch 1, models in turns, median" in found["protocol"]
    assert "models in turns" in found["sweep"]["protocol"]
    assert "memory did not suffice" not in found["protocol"]


def test_one_at_a_time_is_said_in_both_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    found = section(monkeypatch, most=1, batches=(1, 2))
    assert found["dense"]["latency_ms"] > 0
    assert found["pruned"]["latency_ms"] > 0
    assert len(found["sweep"]["rows"]) == 2
    for words in (found["protocol"], found["sweep"]["protocol"]):
        assert ONE_BY_ONE in words
        assert "in turns" not in words


def test_none_at_a_time_leaves_the_sizes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = section(monkeypatch, most=0, batches=(1,))
    for name in ("dense", "pruned"):
        assert [found[name][key] for key in UNKNOWN] == [None] * len(UNKNOWN)
        assert min(found[name][key] for key in ("parameters", "macs", "weight_memory_gib")) > 0
    assert found["pruned"]["macs"] < found["dense"]["macs"]
    assert "did not suffice for latency, peak memory and energy of the dense model and the pruned model" in found["protocol"]
    assert "did not suffice for the sweep over batch and length" in found["protocol"]
    assert "sweep" not in found
