"""Token windows made elsewhere, which stand in for a source of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.errors import DataError

if TYPE_CHECKING:  # a source is judged before torch is loaded
    from adapruner.data.windows import TextWindows


@SOURCE_KINDS.register("windows")
class WindowsSource(SourceKind):
    """``options: {windows: ...}`` holds :class:`~adapruner.data.windows.TextWindows`, which are taken whole."""

    options = ("windows",)

    @property
    def where(self) -> str:
        """How many there are."""
        return f"{len(self.windows):,} token windows in memory"

    @property
    def windows(self) -> TextWindows:
        """The windows that were given."""
        return cast("TextWindows", self.source.options.get("windows"))

    def check(self) -> None:
        """Options that do not hold windows, or choose among them.

        Raises:
            DataError: naming what is wrong.
        """
        from adapruner.data.windows import TextWindows

        source = self.source
        if not isinstance(self.windows, TextWindows):
            raise DataError(f"source {source.name!r}: expected token windows, got {type(self.windows).__name__}; give TextWindows")
        if source.documents is not None or tuple(source.part) != (0.0, 1.0):
            raise DataError(f"source {source.name!r}: expected no documents or part with windows, got them; choose the windows yourself")
