from __future__ import annotations

import pytest

from adapruner import errors
from adapruner.errors import AdaPrunerError, as_written, is_shortened, nearest, written_as

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdaPrunerError)]


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_one_line(kind: type[AdaPrunerError]) -> None:
    assert str(kind("metric: expected\n  a name,\tgot none")) == "metric: expected a name, got none"
    with pytest.raises(AdaPrunerError, match=r"^a b$"):
        raise kind("a\nb")


def test_each_kind_is_caught_as_the_builtin_it_resembles() -> None:
    assert len(KINDS) == 7
    for kind in KINDS:
        builtin = {"AdaPrunerError": Exception, "StudyError": RuntimeError}.get(kind.__name__, ValueError)
        assert issubclass(kind, builtin)


def test_nearest_lists_all_even_without_a_likely_one() -> None:
    assert nearest("wanda", ["wanda_sp", "l1"]) == "did you mean 'wanda_sp'? Known: l1, wanda_sp"
    assert nearest("zzz", ["wanda_sp", "l1"]) == "Known: l1, wanda_sp"
    assert nearest("x", []) == "Known: "


NAMES = {"search.n_trials": "trials", "data": "texts", "trainer.max_steps": "recovery"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search.n_trials: expected 1, got 0; give 64", "trials: expected 1, got 0; give 64"),
        ("pruning.search.n_trials: expected 1; give --pruning.search.n_trials 4.", "trials: expected 1; give --trials 4."),
        (
            "search.n_trials_more, search.n_trials.x, my.search.n_trials: stay",
            "search.n_trials_more, search.n_trials.x, my.search.n_trials: stay",
        ),
        ("data, calibration: expected data", "texts, calibration: expected data"),
        ("data.search.samples: expected data", "data.search.samples: expected data"),
    ],
)
def test_options_are_called_as_they_were_written(text: str, said: str) -> None:
    with written_as(NAMES):
        assert as_written(text) == said
        assert str(AdaPrunerError(text)) == said
    assert as_written(text) == text


def test_names_of_a_block_within_another_are_added_and_gone_again() -> None:
    with written_as({"search.n_trials": "trials"}):
        with written_as({"data": "texts"}):
            assert is_shortened("search.n_trials")
            assert is_shortened("data")
        assert not is_shortened("data")
    assert not is_shortened("search.n_trials")
