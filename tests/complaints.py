"""What a check complains of."""

from __future__ import annotations

from collections.abc import Callable

from adapruner.errors import AdaPrunerError


def complaint(check: Callable[..., object], *arguments: object) -> str | None:
    """The message of the error that a check raises; ``None`` where it accepts.

    >>> from adapruner.files.paths import check_path
    >>> complaint(check_path, "folder", "runs/llama")
    """
    try:
        check(*arguments)
    except AdaPrunerError as error:
        return str(error)
    return None
