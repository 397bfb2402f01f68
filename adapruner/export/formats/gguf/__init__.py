"""GGUF: one file that llama.cpp runs."""

from adapruner.export.formats.gguf.feasibility import check_feasible
from adapruner.export.formats.gguf.writing import GgufRecord, check_free, check_gguf, write_gguf

__all__ = ["GgufRecord", "check_feasible", "check_free", "check_gguf", "write_gguf"]
