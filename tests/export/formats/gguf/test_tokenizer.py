"""The tokenizer in the file: what it says, what it refuses, and that llama.cpp makes the same tokens of a text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adapruner.errors import ModelError
from adapruner.export.formats.gguf import write_gguf
from adapruner.export.formats.gguf.splits import merge_scores
from adapruner.export.formats.gguf.tokenizer import read_vocabulary

from .test_writing import EVEN, byte_tokenizer, export, read_value

gguf = pytest.importorskip("gguf")

VOCABULARY = 640
CORPUS = [
    "The lazy dog, naïve as ever, slept 42 hours.\n\tDéjà vu in 東京! 東京 again: it's 12345 o'clock, WE'LL see.",
    "def keep(units):\n    return [u for u in units if u.score > 0.5]\n\n\n# they've kept 100 % of 2048 heads",
]
TEXTS = [*CORPUS, "a", " two  spaces   three", "It'S", "x\r\n\r\n  y\t\tz", "1234567 ½ ٣٤", "<s>the</s>dog", "🙂 emoji—dash…", ""]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # 128,256 tokens
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Mistral Nemo
)


def splits(name: str) -> Any:
    """The pre-tokenizers of released models, by llama.cpp's name for them."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return plain
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    pattern = {"llama-bpe": LLAMA_3, "smaug-bpe": LLAMA_3, "qwen2": PRETOKENIZE_REGEX, "tekken": TEKKEN}[name]
    split = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def trained_tokenizer(name: str) -> Any:
    """Byte-level, trained on a few lines, begins a text with ``<s>``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    inner.pre_tokenizer, inner.decoder = splits(name), decoders.ByteLevel()
    if name == "qwen2":
        inner.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def sentencepiece_tokenizer(legacy: bool) -> Any:
    """Llama 2's kind: bytes, characters, pieces, and for merges all ways to make a piece of two others."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    text = "▁" + CORPUS[0].replace("\n", "").replace("\t", "").replace(" ", "▁")
    pieces = dict.fromkeys(text[i : i + size] for size in (2, 3, 4, 6) for i in range(0, len(text) - size, 2 if size < 4 else 1))
    pieces = {piece: None for piece in pieces if "▁" not in piece[1:]}
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *dict.fromkeys(text)]
    vocab = {word: index for index, word in enumerate(words)}
    merges = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make(kind: str) -> Any:
    return sentencepiece_tokenizer(kind == "legacy") if kind in ("legacy", "metaspace") else trained_tokenizer(kind)


KINDS = ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "legacy", "metaspace"]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_makes_the_same_tokens(pruned, tmp_path, kind):
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = make(kind)
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY)
    record = write_gguf(export(case, tmp_path / "out", tokenizer), tmp_path / "model.gguf")
    other = llama_cpp.Llama(str(record.path), vocab_only=True, verbose=False)
    try:
        for text in TEXTS:
            if kind == "metaspace" and text.startswith((" ", "<s>")):
                continue  # the note says so
            assert other.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"], text
    finally:
        other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_vocabulary(pruned, tmp_path, kind):
    tokenizer = make(kind)
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY, eos_token_id=[2, 7, 9])
    write_gguf(export(case, tmp_path / "out", tokenizer), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    pieces = kind in ("legacy", "metaspace")
    assert read_value(reader, "tokenizer.ggml.model") == ("llama" if pieces else "gpt2")
    assert read_value(reader, "tokenizer.ggml.pre") == ("default" if pieces else kind)
    tokens, kinds = read_value(reader, "tokenizer.ggml.tokens"), read_value(reader, "tokenizer.ggml.token_type")
    assert tokens == [tokenizer.convert_ids_to_tokens(i) or f"[PAD{i}]" for i in range(VOCABULARY)]
    named = {i: gguf.TokenType(kind).name for i, kind in enumerate(kinds)}
    assert (named[1], named[2], named[300], named[VOCABULARY - 1]) == ("CONTROL", "CONTROL", "NORMAL", "UNUSED")
    assert (named[0], named[3]) == (("UNKNOWN", "BYTE") if pieces else ("CONTROL", "NORMAL"))
    assert ("tokenizer.ggml.scores" in reader.fields) is pieces
    ends = {name: read_value(reader, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    assert ends == {"bos": 1, "eos": 2, "eot": 7, "eom": 9}
    assert read_value(reader, "tokenizer.ggml.add_bos_token") is True
    assert read_value(reader, "tokenizer.ggml.add_eos_token") is False


def test_the_chat_template_goes_along(pruned, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    write_gguf(export(pruned("llama", *EVEN, vocab_size=VOCABULARY), tmp_path / "out", tokenizer), tmp_path / "model.gguf")
    assert read_value(gguf.GGUFReader(tmp_path / "model.gguf"), "tokenizer.chat_template") == tokenizer.chat_template


def test_what_llama_cpp_does_otherwise_is_said(pruned, tmp_path):
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY)
    for kind, words in (
        ("qwen2", "llama.cpp does not normalize text"),
        ("metaspace", "llama.cpp puts a space before a text that begins with one and behind special tokens"),
    ):
        (note,) = write_gguf(export(case, tmp_path / kind, make(kind)), tmp_path / "model.gguf").notes
        assert note.startswith(words)


def changed(folder: Path, **changes: Any) -> Path:
    """The tokenizer's file with other values; those of ``model`` one level down."""
    byte_tokenizer().save_pretrained(folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(data | changes), encoding="utf-8")
    return folder


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram"}}, r"tokenizer: expected a tokenizer.json with byte pairs \(BPE\), got a Unigram tokenizer in "),
        ({"model": {"end_of_word_suffix": "</w>"}}, "tokenizer: expected merges without prefix or suffix, got one"),
        ({"model": {"merges": []}}, "tokenizer: expected at least one merge"),
        ({"model": {"ignore_merges": True}}, "tokenizer: expected text split as in gpt-2, smollm, .*, got 'bytes'"),
        ({"normalizer": {"type": "Lowercase"}}, "tokenizer: expected no normalizer or NFC, got Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "tokenizer: expected text split as in .*, got 'Whitespace'"),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, "tokenizer: expected text split as in .*, got 'ByteLevel'"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}},
            "text split as in .*, got 'ByteLevel ByteLevel'",
        ),
        ({"post_processor": None, "model": {"byte_fallback": True}}, "tokenizer: expected the merges of a SentencePiece model, got others"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read_vocabulary(changed(tmp_path, **changes), {}, VOCABULARY)


def test_a_folder_without_tokenizer_or_with_another_model_s_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer: expected a tokenizer.json with byte pairs \(BPE\), got none in "):
        read_vocabulary(tmp_path, {}, VOCABULARY)
    with pytest.raises(ModelError, match="tokenizer: expected ids below the 100 rows of the embedding, got 263"):
        read_vocabulary(changed(tmp_path), {}, 100)


def test_a_text_that_begins_with_something_else_is_refused(tmp_path):
    folder = changed(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "</s>"}))
    with pytest.raises(ModelError, match=r"tokenizer: expected at most one bos before and one eos behind a text, got \[1\] and \[\]"):
        read_vocabulary(folder, {}, VOCABULARY)


def test_spaces_written_in_another_way_are_refused(tmp_path):
    tokenizer = sentencepiece_tokenizer(legacy=False)
    tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["pre_tokenizer"]["split"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ModelError, match="tokenizer: expected spaces written as in SentencePiece"):
        read_vocabulary(tmp_path, {}, VOCABULARY)


def test_scores_follow_the_merges():
    bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab = bytes_ | {"a": 256, "b": 257, "c": 258, "ab": 259, "bc": 260, "abc": 261}
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]
    scores = merge_scores({"vocab": vocab, "merges": merges})
    assert scores[256:] == [0.0, 0.0, 0.0, -2.0, -1.0, -3.0]
    assert math.fsum(scores[:256]) == 0
    for wrong in (merges[:3], [merges[2], *merges[:2], merges[3]]):  # a way to make abc that is no merge; one apart from the other
        with pytest.raises(ModelError, match="tokenizer: expected the merges of a SentencePiece model, got others"):
            merge_scores({"vocab": vocab, "merges": wrong})
    with pytest.raises(ModelError, match="tokenizer: expected the merges of a SentencePiece model, got others"):
        merge_scores({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [("a", "b")]})  # no bytes
