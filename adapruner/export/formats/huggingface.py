"""The Hugging Face folder itself: safetensors, configuration and tokenizer, as ``transformers`` and vLLM load them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adapruner.export.formats import FormatRecord, register_export_format
from adapruner.export.options import ExportOptions
from adapruner.export.staging import check_folder
from adapruner.files.atomic import replace_folder


@register_export_format
class HuggingFaceFolder:
    """The folder moves to its place as it is."""

    name = "huggingface"

    def check(self, target: Path, options: ExportOptions) -> None:
        """Refuses a place that cannot be written, or holds something other than an earlier export."""
        check_folder(target)

    def write(self, folder: Path, target: Path, options: ExportOptions) -> FormatRecord:
        """Moves the folder."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        check_folder(target)
        replace_folder(folder, Path(os.path.realpath(target)))  # a link to a folder stays one
        return FormatRecord(target, f"for transformers, {config['architectures'][0]}")
