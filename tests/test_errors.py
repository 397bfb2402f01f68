from __future__ import annotations

import pytest

from adapruner import errors
from adapruner.errors import AdaPrunerError, nearest

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
