"""DeciLM's form: one configuration that says each layer's widths, which serving engines have a class of their own for."""

from adapruner.export.formats.deci.writing import write_deci

__all__ = ["write_deci"]
