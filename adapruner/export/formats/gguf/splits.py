"""How a ``tokenizer.json`` splits text, recognised among the ways that llama.cpp has built in."""

from __future__ import annotations

from typing import Any

from adapruner.errors import ModelError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = {
    ("bytes", False): "gpt-2",
    ("digits bytes", False): "smollm",
    (_CONTRACTIONS + _WORDS % r"\p{N}{1,3}", True): "llama-bpe",
    (_CONTRACTIONS + _WORDS % r"\p{N}{1,3}", False): "smaug-bpe",
    (_CONTRACTIONS + _WORDS % r"\p{N}", False): "qwen2",
    (_TEKKEN, True): "tekken",
}
"""Splits, and whether a word that is a token is taken without merging -> ``tokenizer.ggml.pre``."""


def name_of_splits(data: dict[str, Any]) -> str:
    """``tokenizer.ggml.pre`` of a byte-level tokenizer: gpt-2, smollm, llama-bpe, smaug-bpe, qwen2 or tekken.

    Raises:
        ModelError: if it splits or normalizes in another way.
    """
    if (data.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        raise ModelError(f"tokenizer: expected no normalizer or NFC, got {data['normalizer']['type']}; use llama.cpp's own converter")
    splits = _describe(data.get("pre_tokenizer") or {})
    name = _NAMES.get((splits, bool(data["model"].get("ignore_merges"))))
    if name is None:
        known = ", ".join(_NAMES.values())
        raise ModelError(f"tokenizer: expected text split as in {known}, got {splits[:60]!r}; use llama.cpp's own converter")
    return name


def _describe(pre: dict[str, Any]) -> str:
    """The splits in one word or their expression; a text that is in no table for all others."""
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1:] == ["ByteLevel"] and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return "bytes"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
            return "digits bytes"
        if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True) and _keeps_words(steps[0]):
            return str(steps[0].get("pattern", {}).get("Regex"))
    return " ".join(map(str, kinds))


def _keeps_words(split: dict[str, Any]) -> bool:
    return (split.get("behavior"), bool(split.get("invert"))) in (("Isolated", False), ("Removed", True))


def space_prefix(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether a SentencePiece-like tokenizer puts a space before a text, and what a reader should know of it.

    Raises:
        ModelError: if it treats spaces in another way.
    """
    normalizer, pre = data.get("normalizer"), data.get("pre_tokenizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer] if normalizer else []
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if pre is None and steps == [{"type": "Prepend", "prepend": "▁"}, replaced]:
        return True, ""
    if pre is None and steps == [replaced]:
        return False, ""
    if not steps and pre and (pre["type"], pre.get("replacement"), pre.get("split")) == ("Metaspace", "▁", False):
        scheme = pre.get("prepend_scheme", "always")
        where = "before a text that begins with one" + (" and behind special tokens inside a text" if scheme == "first" else "")
        return scheme != "never", "" if scheme == "never" else f"llama.cpp puts a space {where}; this tokenizer does not"
    raise ModelError(
        "tokenizer: expected spaces written as in SentencePiece (one before the text, or none), got other rules; "
        "use llama.cpp's own converter"
    )


def merge_scores(model: dict[str, Any]) -> list[float]:
    """A score per id, so that merging the neighbours with the highest score is merging by rank.

    llama.cpp's SentencePiece merges any two neighbours whose text is a token, the highest score first. Byte pairs merge
    by rank of the pair. The two agree where all ways to make a token are merges and stand together in the list, as they do in
    every list that was made from a SentencePiece model.

    Raises:
        ModelError: if the list is another.
    """
    vocab = model["vocab"]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    order = list(dict.fromkeys(left + right for left, right in pairs))
    made = [left + right for left, right in pairs]
    together = [token for i, token in enumerate(made) if i == 0 or made[i - 1] != token]
    ways = {(t[:i], t[i:]) for t in vocab if not _is_marked(t) for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab}
    if together != order or not ways <= set(pairs) or any(f"<0x{byte:02X}>" not in vocab for byte in range(256)):
        raise ModelError("tokenizer: expected the merges of a SentencePiece model, got others; use llama.cpp's own converter")
    scores = [0.0] * (max(vocab.values()) + 1)
    for rank, token in enumerate(order):
        scores[vocab[token]] = -float(rank + 1)
    return scores


def _is_marked(token: str) -> bool:
    """Bytes and special tokens, which text does not spell."""
    return token.startswith("<") and token.endswith(">")
