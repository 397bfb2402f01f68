"""GGUF: one file that llama.cpp runs."""

from adapruner.export.formats.gguf.writing import GgufRecord, check_gguf, write_gguf

__all__ = ["GgufRecord", "check_gguf", "write_gguf"]
