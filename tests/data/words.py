"""A word-level tokenizer and files of numbered words, made on the spot: one token a word, ``<s>`` first, nothing to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapruner.data.text_source import TextSource


def numbered_word_tokenizer() -> Any:
    """``w0`` to ``w1999`` are 5 to 2004; a blank line is 4."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", "\n\n", *(f"w{i}" for i in range(2000))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split(Regex("\n\n"), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def numbered_source(folder: Path, name: str, start: int, rows: int = 12, per_row: int = 90) -> TextSource:
    """A .jsonl file whose rows are runs of numbered words."""
    path = folder / f"{name}.jsonl"
    texts = [" ".join(f"w{(start + i * per_row + j) % 2000}" for j in range(per_row)) for i in range(rows)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return TextSource(name, path=str(path))
