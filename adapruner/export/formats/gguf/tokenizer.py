"""The tokenizer of an export in llama.cpp's terms: read from ``tokenizer.json``, refused where llama.cpp would split otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapruner.errors import ModelError
from adapruner.export.formats.gguf.folder import read_json
from adapruner.export.formats.gguf.splits import merge_scores, name_of_splits, space_prefix

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of token, by ``llama_token_type``."""


@dataclass
class Vocabulary:
    """What goes into the file under ``tokenizer.``."""

    model: str
    """``gpt2``: bytes and merges. ``llama``: SentencePiece, characters and scores."""
    pre: str
    """How text is split before merging."""
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    """``bos``, ``eos``, ``unk``, ``pad``, and ``eot``, ``eom`` for second and third tokens that end a text."""
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool | None = None
    chat_template: str | None = None
    notes: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, config: dict[str, Any], rows: int) -> Vocabulary:
    """The vocabulary, filled up to the rows of the embedding with tokens that text never gives.

    Args:
        folder: an exported folder with ``tokenizer.json``.
        config: its ``config.json``.
        rows: of the embedding.

    Raises:
        ModelError: if there is no ``tokenizer.json``, or llama.cpp has no tokenizer that does the same.
    """
    data, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        got = f"a {model.get('type')} tokenizer" if data else "none"
        raise ModelError(f"tokenizer: expected a tokenizer.json with byte pairs (BPE), got {got} in {folder}; export with such a tokenizer")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError("tokenizer: expected merges without prefix or suffix, got one, which llama.cpp lacks; use transformers")
    vocabulary = _sentencepiece(data) if model.get("byte_fallback") else _byte_level(data)
    _fill(vocabulary, data, rows)
    _find_special(vocabulary, folder, config, settings)
    _find_template(vocabulary, folder)
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else settings.get("chat_template")
    vocabulary.chat_template = template if isinstance(template, str) else None
    return vocabulary


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Puts it into a ``gguf.GGUFWriter``."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    for name, token in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _byte_level(data: dict[str, Any]) -> Vocabulary:
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in data["model"]["merges"]]
    if not pairs:
        raise ModelError("tokenizer: expected at least one merge, which llama.cpp asks for, got none; use transformers")
    found = Vocabulary("gpt2", name_of_splits(data), [], [], merges=[" ".join(pair) for pair in pairs])
    if data.get("normalizer") is not None:
        found.notes.append("llama.cpp does not normalize text (NFC) before it splits it; text that is not NFC gives other tokens there")
    return found


def _sentencepiece(data: dict[str, Any]) -> Vocabulary:
    scores = merge_scores(data["model"])
    found = Vocabulary("llama", "default", [], [], scores=scores)
    found.space_prefix, note = space_prefix(data)
    found.notes += [note] if note else []
    return found


def _fill(vocabulary: Vocabulary, data: dict[str, Any], rows: int) -> None:
    """Tokens and their kinds, in the order of their ids."""
    added = {int(token["id"]): token for token in data.get("added_tokens") or []}
    names = {index: token for token, index in data["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if max(names) >= rows:
        raise ModelError(f"tokenizer: expected ids below the {rows} rows of the embedding, got {max(names)}; export with its own tokenizer")
    unknown = data["model"].get("unk_token")
    for index in range(rows):
        name = names.get(index)
        vocabulary.tokens.append(f"[PAD{index}]" if name is None else name)
        vocabulary.types.append(_kind(name, added.get(index), unknown, vocabulary.model))
    if len(set(vocabulary.tokens)) < rows:
        raise ModelError("tokenizer: expected a name of its own for every id, got one twice; export with its own tokenizer")
    vocabulary.scores += [0.0] * (rows - len(vocabulary.scores)) if vocabulary.model == "llama" else []


def _kind(name: str | None, added: dict[str, Any] | None, unknown: str | None, model: str) -> int:
    if name is None:
        return UNUSED
    if model == "llama" and name == unknown:
        return UNKNOWN
    if model == "llama" and re.fullmatch(r"<0x[0-9A-F]{2}>", name):
        return BYTE
    if added is None:
        return NORMAL
    return CONTROL if added.get("special") else USER_DEFINED


def _find_special(vocabulary: Vocabulary, folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Ids by role. What ends a text is what ``generate`` stops at."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    named = {}
    for role in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = ids.get(token) if token else config.get(f"{role}_token_id")
        if isinstance(found, int):
            named[role] = found
    generation = read_json(folder / "generation_config.json")
    ends = generation.get("eos_token_id", config.get("eos_token_id", named.get("eos")))
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    named.pop("eos", None)
    vocabulary.special = named | dict(zip(("eos", "eot", "eom"), ends, strict=False))
    if len(ends) > 3:
        vocabulary.notes.append(f"the file names three tokens that end a text, of {len(ends)}")


def _find_template(vocabulary: Vocabulary, folder: Path) -> None:
    """Which special tokens the tokenizer puts around a text: asked of the tokenizer itself."""
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare, whole = (inner.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    vocabulary.add_bos, vocabulary.add_eos = bool(before), bool(after)
    expected = [[vocabulary.special.get("bos")] if before else [], [vocabulary.special.get("eos")] if after else []]
    if [before, after] != expected:
        raise ModelError(
            f"tokenizer: expected at most one bos before and one eos behind a text, got {before} and {after}, which llama.cpp "
            "cannot add; use transformers"
        )
