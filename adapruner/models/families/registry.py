"""The families by ``model_type``. Loaded on first use; a family of one's own is added with :func:`register`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from adapruner.models.families.family import Family

#: Model types that the tests take through the whole conformance suite; others are tried on the spot before they are pruned.
TRIED = frozenset(
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "opt",
        "gpt_neox",
        "bloom",
        "gpt2",
        "falcon",
        "olmo",
        "olmo2",
        "olmo3",
        "smollm3",
        "granite",
        "cohere",
        "cohere2",
        "starcoder2",
        "stablelm",
        "glm4",
        "helium",
        "exaone4",
        "nemotron",
        "mixtral",
        "qwen2_moe",
        "olmoe",
        "qwen3_moe",
    ]
)

_OWN: dict[str, Family] = {}
_NOT_FAMILIES = {"family", "registry", "index_maps", "modeling_adapruner", "wide_experts"}


def register(family: Family) -> Family:
    """Adds a family, or replaces what is known of its ``model_type``."""
    _OWN[family.model_type] = family
    return family


def family_of(model_type: str) -> Family:
    """What is known of a family; the plain record for one that needs nothing."""
    return _OWN.get(model_type) or _shipped().get(model_type) or Family(model_type)


def known_families() -> tuple[str, ...]:
    """Sorted model types that something is written for."""
    return tuple(sorted({*_OWN, *_shipped()}))


@cache
def _shipped() -> dict[str, Family]:
    import adapruner.models.families as package

    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in _NOT_FAMILIES:
            listed = importlib.import_module(f"{package.__name__}.{module.name}").FAMILIES
            found.update({family.model_type: family for family in listed})
    return found
