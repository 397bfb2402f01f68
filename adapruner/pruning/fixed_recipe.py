"""The fixed recipes that a search begins with, in words: what *best fixed* is, and that a chosen plan is no more than such a recipe.

:mod:`adapruner.search.seed_trials` makes them; the report, ``inspect`` and the model card say the same of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "fixed recipe"
"""Of a plan's provenance: the name of the fixed recipe that the search took over as it was."""
SEARCHED = "searched"
"""Name of the trials that are not fixed recipes."""
BEST_FIXED = "best fixed"
"""The best of them as a method of its own in a report."""
IN_WORDS = "the best of the plain recipes that the search begins with: a single metric, in one global ranking"


def fixed_recipe_of(provenance: Mapping[str, Any]) -> str | None:
    """Name of the fixed recipe that a plan is; ``None`` where a search found its own, something exchanged units afterwards, or several
    rounds had a recipe each.

    Args:
        provenance: of a :class:`adapruner.PruningPlan`.

    >>> fixed_recipe_of({"fixed recipe": "wanda_sp on code"}), fixed_recipe_of({"trial": 3})
    ('wanda_sp on code', None)
    """
    name, gates = provenance.get(KEY), provenance.get("gates")
    exchanged = isinstance(gates, Mapping) and bool((gates.get("best") or {}).get("exchanged"))
    return name if isinstance(name, str) and not exchanged and not provenance.get("rounds") else None


def plain_recipe_sentence(name: str) -> str:
    """What is to be said of a plan that is a fixed recipe.

    >>> plain_recipe_sentence("wanda_sp")
    'The chosen plan is a plain recipe, wanda_sp, that the search began with: nothing that it found later was better.'
    """
    return f"The chosen plan is a plain recipe, {name}, that the search began with: nothing that it found later was better."
