"""Writes an exported folder as one GGUF file, which llama.cpp runs.

The file holds the same weights and the same tokenizer; llama.cpp then generates the same greedy tokens, up to rounding. Pruned
widths that the architecture of the family cannot express are written for another one that computes the same
(:mod:`adapruner.export.formats.gguf.layout`). Weights are read and written one tensor at a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapruner.errors import ConfigurationError, nearest
from adapruner.export.formats import FormatRecord, register_export_format
from adapruner.export.formats.gguf.folder import ExportedFolder, read_folder
from adapruner.export.formats.gguf.layout import Layout, read_layout
from adapruner.export.formats.gguf.tensors import DTYPES, Entry, list_entries
from adapruner.export.formats.gguf.tokenizer import add_vocabulary, read_vocabulary
from adapruner.export.loading import check_whole
from adapruner.export.options import ExportOptions
from adapruner.files.atomic import replacing, writing
from adapruner.pruning.plan import MARK

_MARK = "adapruner.plan_hash"
_SAFETENSORS_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class GgufRecord(FormatRecord):
    """What was written."""

    architecture: str
    """By its name in llama.cpp."""
    dtype: str
    """The matrices'; vectors are in float32."""


@register_export_format
class Gguf:
    """The format of ``--format gguf`` and ``--gguf``."""

    name = "gguf"

    def check(self, target: Path, options: ExportOptions) -> None:
        """Refuses what :func:`check_gguf` refuses, and a file that is there without our mark."""
        check_gguf(target, options.dtype)
        check_free(target)

    def write(self, folder: Path, target: Path, options: ExportOptions) -> GgufRecord:
        """Writes what :func:`write_gguf` writes."""
        self.check(target, options)
        return write_gguf(folder, target, options.dtype)


def write_gguf(folder: str | Path, file: str | Path, dtype: str | None = None) -> GgufRecord:
    """Converts an exported Hugging Face folder; an earlier file is replaced once the new one is whole.

    Args:
        folder: what :func:`adapruner.export.folder.export_model` wrote, with its tokenizer.
        file: where to.
        dtype: ``float32``, ``float16`` or ``bfloat16`` for matrices, vectors stay float32; None keeps the folder's.

    Raises:
        ConfigurationError: if the dtype is unknown, the package ``gguf`` is not installed, or there is no writing to ``file``.
        ModelError: if the folder is damaged, or neither an architecture nor a tokenizer of llama.cpp does the same as its own.
    """
    file = Path(file)
    check_gguf(file, dtype)
    exported = read_folder(folder)
    if dtype is None:
        dtype = _SAFETENSORS_NAMES.get(exported.dtype, exported.dtype)
        check_gguf(file, dtype)
    layout = read_layout(exported)
    vocabulary = read_vocabulary(exported.path, exported.config, exported.shapes["model.embed_tokens.weight"][0])
    writer = _new_writer(exported, layout, dtype)
    add_vocabulary(writer, vocabulary)
    entries = list_entries(exported, layout, DTYPES[dtype], _tensor_names(layout))
    check_whole(exported.path)
    _write(writer, entries, file)
    name, notes = layout.architecture.name, (*layout.notes, *vocabulary.notes)
    return GgufRecord(file, f"for llama.cpp, {name} in {dtype}", notes, architecture=name, dtype=dtype)


def check_gguf(file: str | Path, dtype: str | None = None, argument: str = "gguf") -> None:
    """Refuses what :func:`write_gguf` could not do for any folder; writes nothing, so that it can come before heavy work.

    Args:
        argument: that names ``file`` in messages.

    Raises:
        ConfigurationError: if the dtype is unknown, ``file`` is a folder, or the package ``gguf`` is not installed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigurationError(f"dtype: expected a type that GGUF export writes, got {dtype!r}; {nearest(dtype, DTYPES)}")
    if Path(file).is_dir():
        raise ConfigurationError(f"{argument}: expected a file, got the folder {file}; add a file name such as model.gguf")
    _library(argument)


def check_free(file: Path, argument: str = "gguf") -> None:
    """Refuses a file that is there and that this package did not write.

    Raises:
        ConfigurationError: naming ``argument``.
    """
    if os.path.lexists(file) and not is_own(file):
        raise ConfigurationError(
            f"{argument}: expected a new name or an earlier export, got {file}, which is another's; choose another name"
        )


def is_own(file: Path) -> bool:
    """Whether a file is a GGUF with our mark, which stands among the first entries."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    return head.startswith(b"GGUF") and _MARK.encode() in head


def _library(argument: str = "gguf") -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigurationError(
            f"{argument}: expected the package gguf to be installed, got none; pip install 'adapruner[gguf]'"
        ) from None
    return gguf


def _tensor_names(layout: Layout) -> Any:
    gguf = _library()
    known = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[layout.architecture.name], len(layout.heads))


def _new_writer(exported: ExportedFolder, layout: Layout, dtype: str) -> Any:
    """A writer that knows everything but tensors and tokenizer."""
    gguf = _library()
    writer, config = gguf.GGUFWriter(None, layout.architecture.name), exported.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_string(_MARK, str(exported.config.get(MARK, {}).get("plan_hash", "")))
    writer.add_name(exported.path.resolve().name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kinds = gguf.LlamaFileType
    writer.add_file_type({"float32": kinds.ALL_F32, "float16": kinds.MOSTLY_F16, "bfloat16": kinds.MOSTLY_BF16}[dtype])
    writer.add_vocab_size(exported.shapes["model.embed_tokens.weight"][0])
    writer.add_context_length(layout.context)
    writer.add_embedding_length(layout.hidden)
    writer.add_block_count(len(layout.heads))
    writer.add_feed_forward_length(_one_or_all(layout.ffn))
    writer.add_head_count(_one_or_all(layout.heads))
    writer.add_head_count_kv(_one_or_all(layout.kv_heads))
    # Said in so many words: left out, llama.cpp divides the hidden size by the heads that are left.
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_rope_dimension_count(layout.head_dim)
    writer.add_rope_freq_base(float(layout.rope["rope_theta"]))
    if layout.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(layout.rope["factor"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    return writer


def _one_or_all(widths: tuple[int, ...]) -> int | list[int]:
    return widths[0] if len(set(widths)) == 1 else list(widths)


def _write(writer: Any, entries: list[Entry], file: Path) -> None:
    """Header first, then one tensor after the other, under a temporary name."""
    types = _library().GGMLQuantizationType
    codes = {torch.float32: types.F32, torch.float16: types.F16, torch.bfloat16: types.BF16}
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=codes[entry.dtype])
    said: dict[str, Any] = {"argument": "gguf", "remedy": "make room or choose another"}
    try:
        with writing(file, **said):
            file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, sum(entry.bytes for entry in entries), **said) as temporary:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry in entries:
                writer.write_tensor_data(entry.values().view(torch.uint8).numpy())
            writer.close()
    finally:
        writer.close()
