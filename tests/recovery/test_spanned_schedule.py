"""Schedules over another length; the oracle is the schedule itself, at the same share of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from adapruner.recovery.spanned_schedule import SpannedSchedule, length_of, span

Make = Callable[[torch.optim.Optimizer], Any]


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (1.0, 0.1)]
    return torch.optim.AdamW(groups)


def warmed(made: torch.optim.Optimizer) -> Any:
    warm = schedules.LambdaLR(made, lambda step: min(1.0, (step + 1) / 4))
    return schedules.SequentialLR(made, [warm, schedules.CosineAnnealingLR(made, 20)], [4])


MAKERS: dict[str, tuple[Make, int]] = {
    "linear": (lambda made: schedules.LinearLR(made, 1.0, 0.1, total_iters=12), 12),
    "cosine": (lambda made: schedules.CosineAnnealingLR(made, 30), 30),
    "polynomial": (lambda made: schedules.PolynomialLR(made, 15, 2.0), 15),
    "one cycle": (lambda made: schedules.OneCycleLR(made, [1.0, 0.1], total_steps=20), 20),
    "warmed": (warmed, 24),
    "chained": (
        lambda made: schedules.ChainedScheduler([schedules.LinearLR(made, 1.0, 0.5, 6), schedules.CosineAnnealingLR(made, 18)]),
        18,
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_at_the_same_share_it_has_the_same_rates(name: str) -> None:
    make, length = MAKERS[name]
    one, other = optimizer(), optimizer()
    plain, spanned = make(one), span(make(other), most_steps=None)
    assert spanned is not None
    for step in range(length):
        spanned.place(step / length)
        assert spanned.get_last_lr() == pytest.approx([group["lr"] for group in one.param_groups], abs=1e-12), step
        one.step()
        plain.step()
        spanned.step()


@pytest.mark.parametrize("name", MAKERS)
def test_the_optimizer_and_the_scheduler_are_as_they_were(name: str) -> None:
    made = optimizer()
    scheduler = MAKERS[name][0](made)
    before, rates = scheduler.state_dict(), [group["lr"] for group in made.param_groups]
    span(scheduler, None)
    assert [group["lr"] for group in made.param_groups] == rates
    assert str(scheduler.state_dict()) == str(before)


def test_between_two_steps_it_is_in_between() -> None:
    made = optimizer()
    spanned = span(schedules.LinearLR(made, 1.0, 0.0, total_iters=2), None)
    assert spanned is not None
    spanned.place(0.75)
    assert spanned.get_last_lr() == pytest.approx([0.25, 0.025])
    for beyond, rate in ((1.0, 0.0), (7.0, 0.0), (-1.0, 1.0)):
        spanned.place(beyond)
        assert spanned.get_last_lr()[0] == pytest.approx(rate)


def test_a_warm_up_alone_and_what_has_no_end_stay() -> None:
    made = optimizer()
    assert span(schedules.LambdaLR(made, lambda step: min(1.0, (step + 1) / 4)), 100) is None
    assert span(schedules.LinearLR(made, 0.1, 1.0, total_iters=10), None) is None
    assert span(schedules.ExponentialLR(made, 0.9), None) is None
    assert span(schedules.ReduceLROnPlateau(made), 100) is None


def test_one_that_does_not_say_its_length_was_made_for_all_steps() -> None:
    made = optimizer()
    falling = schedules.LambdaLR(made, lambda step: max(0.0, 1.0 - step / 50))
    assert length_of(falling) is None
    spanned = span(falling, most_steps=50)
    assert spanned is not None
    spanned.place(0.5)
    assert spanned.get_last_lr() == pytest.approx([0.5, 0.05])


def test_it_goes_on_where_it_was() -> None:
    one, other = (SpannedSchedule(schedules.LinearLR(optimizer(), 1.0, 0.0, total_iters=10), 10) for _ in range(2))
    one.place(0.4)
    other.load_state_dict(one.state_dict())
    assert other.get_last_lr() == one.get_last_lr() == pytest.approx([0.6, 0.06])
