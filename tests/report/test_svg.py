import pytest

from adapruner.report.svg import Axis, padded


@pytest.mark.parametrize(
    ("axis", "count", "ticks"),
    [
        (Axis(0, 10), 5, [0, 2, 4, 6, 8, 10]),
        (Axis(-0.5, 47.5), 8, [0, 10, 20, 30, 40]),
        (Axis(3.31, 4.32), 6, [3.4, 3.6, 3.8, 4.0, 4.2]),
        (Axis(26, 480, log=True), 5, [30, 50, 100, 200]),
        (Axis(20, 3e5, log=True), 5, [100, 1000, 10000, 100000]),
    ],
)
def test_ticks_are_round_and_inside(axis: Axis, count: int, ticks: list[float]) -> None:
    assert axis.ticks(count) == pytest.approx(ticks)


def test_axis_ends_and_log_middle() -> None:
    assert (Axis(2, 4).at(2), Axis(2, 4).at(4), Axis(2, 4).percent(3)) == (0, 1, "50.00%")
    assert Axis(1, 100, log=True).at(10) == pytest.approx(0.5)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [1.0, 9.0]])
def test_padding_holds_every_value_inside(values: list[float], log: bool) -> None:
    axis = padded(values, log)
    assert all(0 < axis.at(value) < 1 for value in values)
