"""Rows of a sweep against what they are made of; memory and energy with devices that are only played."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.evaluation import cost, energy, speed
from adapruner.evaluation.cost import count_macs, peak_memory_gib, prefill_energy_j
from adapruner.evaluation.energy import EnergyMeter
from adapruner.evaluation.speed import measure_speed, speed_protocol, speed_rows
from adapruner.evaluation.timing import WARM_UP_ROUNDS
from tests.tiny import tiny_llama


@pytest.fixture
def models() -> Any:
    return {"dense": tiny_llama(), "pruned": tiny_llama(intermediate_size=64)}


def test_every_point_has_both_models_in_turns_and_the_ratio_of_macs(models: Any) -> None:
    order: list[tuple[str, tuple[int, ...]]] = []
    for name, model in models.items():
        model.register_forward_pre_hook(
            lambda _m, _a, kwargs, name=name: order.append((name, tuple(kwargs["input_ids"].shape))), with_kwargs=True
        )
    points = measure_speed(models, batches=(1, 3), seq_lens=(8, 20), repeats=2)
    assert [(p.batch, p.seq_len) for p in points] == [(1, 8), (1, 20), (3, 8), (3, 20)]
    for point in points:
        assert list(point.speeds) == ["dense", "pruned"]
        assert point.macs == {name: count_macs(model, point.seq_len, point.batch) for name, model in models.items()}
        for found in point.speeds.values():
            assert found is not None
            assert found.prefill_tokens_per_s == pytest.approx(1000 * point.batch * point.seq_len / found.prefill_ms)
            assert found.decode_tokens_per_s == pytest.approx(1000 * point.batch / found.decode_ms)
            assert found.prefill_iqr_ms >= 0
            assert found.decode_iqr_ms >= 0
            assert found.peak_memory_gib is None
            assert found.prefill_energy_j is None
    prefills = [name for name, shape in order if shape == (3, 20)]  # those that count MACs have one sequence, or come after
    assert prefills[: 2 * (WARM_UP_ROUNDS + 2)] == ["dense", "pruned"] * (WARM_UP_ROUNDS + 2)
    assert ("dense", (3, 1)) in order  # decoding has the batch, too


def test_medians_leave_the_warm_up_out(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.cycle([100.0, 100.0, 3.0, 1.0, 2.0, 5.0, 4.0])
    monkeypatch.setattr(speed, "time_prefill", lambda *_: next(times))
    monkeypatch.setattr(speed, "time_decode", lambda *_: 2.0)
    (point,) = measure_speed({"dense": models["dense"]}, batches=(2,), seq_lens=(10,), repeats=5)
    found = point.speeds["dense"]
    assert found is not None
    assert (found.prefill_ms, found.prefill_iqr_ms) == (pytest.approx(3.0), pytest.approx(2.0))
    assert (found.decode_ms, found.decode_iqr_ms, found.decode_tokens_per_s) == (pytest.approx(2.0), 0.0, pytest.approx(1000.0))


def test_a_model_that_does_not_fit_is_left_out_at_that_point_alone(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(model: Any, seq_len: int, batch: int) -> float:
        if model is models["dense"] and batch == 64:
            raise torch.OutOfMemoryError("played")
        return 1.0

    monkeypatch.setattr(speed, "time_prefill", prefill)
    monkeypatch.setattr(speed, "time_decode", lambda *_: 1.0)
    rows = speed_rows(measure_speed(models, batches=(1, 64), seq_lens=(8,), repeats=1))
    assert [(row["batch"], row["dense"] is None, row["pruned"] is None) for row in rows] == [(1, False, False), (64, True, False)]
    assert rows[0]["ideal"] == rows[1]["ideal"] == count_macs(models["pruned"], 8) / count_macs(models["dense"], 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches: expected at least one, got none"),
        ({"seq_lens": ()}, "seq_lens: expected at least one, got none"),
        ({"batches": (0,)}, "batch: expected a positive integer, got 0"),
        ({"seq_lens": (8, 257)}, "seq_len: expected at least 2 and at most 256, the model's positions, got 257"),
        ({"repeats": 0}, "repeats: expected a positive integer, got 0"),
    ],
)
def test_bad_arguments_are_refused(models: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure_speed(models, **options)


def test_no_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="models: expected at least one, got none"):
        measure_speed({})


def test_protocol_says_what_the_columns_are() -> None:
    text = speed_protocol((8, 2048), 10)
    assert "decoding the last 4 to 16 of them" in text
    assert "median of 10 rounds after 2 of warm-up; ideal: ratio of MACs" in text


def test_on_a_cpu_memory_and_energy_are_not_known() -> None:
    assert peak_memory_gib(tiny_llama(), 8) is None
    assert prefill_energy_j(tiny_llama(), 8) is None
    assert EnergyMeter(torch.device("cpu")).joules_of(lambda: pytest.fail("nothing is run for it")) is None


def test_peak_memory_leaves_out_what_else_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB were there before; the forward takes 3 GiB more: those count, with the model's own weights."""
    model = tiny_llama()
    monkeypatch.setattr(cost, "input_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(cost, "random_ids", lambda m, b, n: torch.zeros(b, n, dtype=torch.long))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 10 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 13 * 2**30)
    assert peak_memory_gib(model, 8) == pytest.approx(3 + cost.weight_memory_gib(model))


class PlayedCounter(types.ModuleType):
    """NVML with one card that takes 2 J more each time it is asked, and its handle by UUID."""

    class NVMLError(Exception):
        pass

    def __init__(self, known: bool = True) -> None:
        super().__init__("pynvml")
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        self.known, self.millijoules, self.asked = known, 0, ""

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        if not self.known:
            raise self.NVMLError("played")
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.millijoules += 2000
        return self.millijoules


def play_card(monkeypatch: pytest.MonkeyPatch, counter: PlayedCounter) -> EnergyMeter:
    monkeypatch.setitem(sys.modules, "pynvml", counter)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="ab-12"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    return EnergyMeter(torch.device("cuda", 0))


def test_energy_is_the_counters_difference_over_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = PlayedCounter()
    meter = play_card(monkeypatch, counter)
    assert meter.works
    assert counter.asked == "GPU-ab-12"
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    calls: list[int] = []
    assert meter.joules_of(lambda: calls.append(1)) == pytest.approx(2.0 / len(calls))
    assert len(calls) == 4  # a second of quarters


def test_a_card_that_does_not_tell_its_energy_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = play_card(monkeypatch, PlayedCounter(known=False))
    assert not meter.works
    assert meter.joules_of(lambda: pytest.fail("nothing is run for it")) is None
