"""The language model inside a module of somebody's own, by the dotted name of the attribute that holds it."""

from __future__ import annotations

from typing import Any


def held_model(module: Any, attribute: str, *default: Any) -> Any:
    """What a module holds there.

    Args:
        module: any object, such as a LightningModule.
        attribute: ``model``, or a path such as ``net.lm``.
        default: what to return where it is not there.

    Raises:
        AttributeError: if it is not there, and no default is given.

    >>> from types import SimpleNamespace
    >>> held_model(SimpleNamespace(net=SimpleNamespace(lm="the model")), "net.lm")
    'the model'
    """
    found = module
    try:
        for name in attribute.split("."):
            found = getattr(found, name)
    except AttributeError:
        if default:
            return default[0]
        raise
    return found


def hold_model(module: Any, attribute: str, model: Any) -> None:
    """Puts a model there."""
    owner, _, name = attribute.rpartition(".")
    setattr(held_model(module, owner) if owner else module, name, model)
