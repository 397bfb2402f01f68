"""What is in the file, read back with ``gguf`` and compared with the folder, tensor by tensor and key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.export.folder import export_model
from adapruner.export.formats.gguf import write_gguf
from tests.export.cases import HEAD_DIM, UNEVEN, Pruned

gguf = pytest.importorskip("gguf")

VOCABULARY = 280
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EVEN: tuple[list[int], list[int]] = ([1, 1, 1], [10, 10, 10])
FULL: tuple[list[int], list[int]] = ([2, 2, 2], [24, 24, 24])
ROWS: list[tuple[str, tuple[list[int], list[int]], bool, dict[str, Any], str]] = [
    ("llama", EVEN, False, {}, "llama"),
    ("llama", ([3, 3, 3], [10, 10, 10]), False, {"kv_heads": 4, "tie_word_embeddings": True}, "llama"),  # a Mistral folder
    ("llama", EVEN, True, {}, "llama"),
    ("llama", EVEN, False, {"rope_parameters": LLAMA3}, "llama"),
    ("llama", ([2, 2, 2], [9, 24, 11]), False, {}, "deci"),
    ("llama", ([3, 1, 4], [24, 24, 24]), False, {"kv_heads": 4, "head_dim": 16}, "deci"),
    ("llama", UNEVEN, True, {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}, "deci"),
    ("mistral", EVEN, False, {"sliding_window": None}, "llama"),
    ("mistral", UNEVEN, False, {"sliding_window": None}, "deci"),
    ("qwen2", ([2, 2, 2], [10, 10, 10]), False, {}, "qwen2"),
    ("qwen2", EVEN, False, {}, "llama"),
    ("qwen2", ([2, 2, 2], [10, 10, 10]), True, {}, "llama"),
    ("qwen2", UNEVEN, False, {"tie_word_embeddings": True}, "deci"),
    ("qwen3", EVEN, False, {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0}}, "qwen3"),
    ("qwen3", UNEVEN, False, {"tie_word_embeddings": True, "head_dim": 16}, "openelm"),
]
"""Family, KV groups and FFN channels kept, whether with biases on the output projections, changes, llama.cpp's architecture."""

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def byte_tokenizer() -> Any:
    """Bytes, a few merges, a begin of text: a tokenizer that llama.cpp has built in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("l", "a"), ("la", "z")]
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    inner = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def export(case: Pruned, folder: Path, tokenizer: Any = None) -> Path:
    export_model(case.model, byte_tokenizer() if tokenizer is None else tokenizer, case.structure, case.plan, folder)
    return folder


def pairs_together(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The slow way: channel i of a head goes to 2i, channel i + head_dim / 2 to 2i + 1."""
    moved = rows.clone()
    for head in range(0, len(rows), head_dim):
        for i in range(head_dim // 2):
            moved[head + 2 * i] = rows[head + i]
            moved[head + 2 * i + 1] = rows[head + i + head_dim // 2]
    return moved


def expected_tensors(model: Any, architecture: str) -> dict[str, torch.Tensor]:
    """By hand, from the pruned model itself."""
    state, head_dim = model.state_dict(), model.model.layers[0].self_attn.head_dim
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for name, tensor in state.items():
        if not name.startswith("model.layers."):
            continue
        _, _, layer, *role, kind = name.split(".")
        if architecture in ("llama", "deci") and role[-1] in ("q_proj", "k_proj"):
            tensor = pairs_together(tensor, head_dim)
        found[f"blk.{layer}.{NAMES['.'.join(role)]}.{kind}"] = tensor
    if architecture == "openelm":
        for layer in range(len(model.model.layers)):
            found[f"blk.{layer}.attn_qkv.weight"] = torch.cat([found.pop(f"blk.{layer}.attn_{part}.weight") for part in "qkv"])
    return found


def read_value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.mark.parametrize(("family", "kept", "output_bias", "changes", "architecture"), ROWS)
def test_the_file_holds_the_model_s_tensors(pruned, tmp_path, family, kept, output_bias, changes, architecture):
    case = pruned(family, *kept, output_bias=output_bias, vocab_size=VOCABULARY, **changes)
    record = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    assert (record.architecture, record.dtype, record.path) == (architecture, "float32", tmp_path / "model.gguf")
    tensors = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in gguf.GGUFReader(record.path).tensors}
    factors = tensors.pop("rope_freqs.weight", None)
    assert (factors is not None) is (changes.get("rope_parameters") == LLAMA3)
    expected = expected_tensors(case.model, architecture)
    for name in tensors.keys() - expected.keys():  # the stock class takes biases everywhere in a block or nowhere
        assert output_bias
        assert name.endswith(".bias")
        assert not tensors.pop(name).any()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(("family", "kept", "output_bias", "changes", "architecture"), ROWS)
def test_the_file_says_the_model_s_sizes(pruned, tmp_path, family, kept, output_bias, changes, architecture):
    case = pruned(family, *kept, output_bias=output_bias, vocab_size=VOCABULARY, **changes)
    write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    attention, ffn = kept
    head_dim, ratio = changes.get("head_dim", HEAD_DIM), 4 // changes.get("kv_heads", 2)
    sizes = {
        "attention.head_count": [ratio * groups for groups in attention],
        "attention.head_count_kv": attention,
        "feed_forward_length": ffn,
    }
    for key, value in sizes.items():
        alike = len(set(value)) == 1
        assert read_value(reader, f"{architecture}.{key}") == (value[0] if alike else value)
    for key, number in {"attention.key_length": head_dim, "attention.value_length": head_dim, "rope.dimension_count": head_dim}.items():
        assert read_value(reader, f"{architecture}.{key}") == number
    assert read_value(reader, "general.architecture") == architecture
    assert read_value(reader, f"{architecture}.embedding_length") == 32
    assert read_value(reader, f"{architecture}.block_count") == 3
    assert read_value(reader, f"{architecture}.context_length") == 64
    assert read_value(reader, f"{architecture}.vocab_size") == VOCABULARY
    assert read_value(reader, f"{architecture}.attention.layer_norm_rms_epsilon") == pytest.approx(1e-4)
    assert read_value(reader, f"{architecture}.rope.freq_base") == changes.get("rope_parameters", {"rope_theta": 500.0})["rope_theta"]
    scaled = changes.get("rope_parameters", {}).get("rope_type") == "linear"
    assert (f"{architecture}.rope.scaling.factor" in reader.fields) is scaled


def test_llama_3_frequencies_are_those_of_transformers(pruned, tmp_path):
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY, rope_parameters=LLAMA3, head_dim=16)
    write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    factors = next(t.data for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "rope_freqs.weight")
    plain = torch.tensor([300.0 ** (-2 * i / 16) for i in range(8)])
    assert set(factors.tolist()) >= {1.0, 4.0}  # and some between
    torch.testing.assert_close(plain / torch.tensor(factors.copy()), case.model.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "kind", "file_type"), [("float16", "F16", 1), ("bfloat16", "BF16", 32), (None, "BF16", 32)])
def test_matrices_are_cast_and_vectors_stay_float32(pruned, tmp_path, dtype, kind, file_type):
    case = pruned("qwen2", *EVEN, vocab_size=VOCABULARY)
    export_model(case.model, byte_tokenizer(), case.structure, case.plan, tmp_path / "out", dtype=None if dtype else "bfloat16")
    write_gguf(tmp_path / "out", tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert read_value(reader, "general.file_type") == file_type
    expected = expected_tensors(case.model, "llama")
    for tensor in reader.tensors:
        vector = len(tensor.shape) == 1
        assert tensor.tensor_type.name == ("F32" if vector else kind), tensor.name
        cast = expected[tensor.name]
        if dtype is None or not vector:
            cast = cast.to(torch.float16 if kind == "F16" else torch.bfloat16)
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(values, cast.float(), rtol=0, atol=0)


def test_shards_are_read_like_one_file(pruned, tmp_path):
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY)
    export_model(case.model, byte_tokenizer(), case.structure, case.plan, tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    write_gguf(tmp_path / "out", tmp_path / "model.gguf")
    tensors = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in expected_tensors(case.model, "llama").items()
    }


def test_a_window_shorter_than_the_context_bounds_it(pruned, tmp_path):
    case = pruned("mistral", *EVEN, vocab_size=VOCABULARY, sliding_window=16)
    record = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    assert read_value(gguf.GGUFReader(record.path), "llama.context_length") == 16
    assert record.notes == ("context length set to the sliding window, 16 of 64 tokens: llama.cpp attends to all of it",)


def test_another_architecture_is_said(pruned, tmp_path):
    case = pruned("qwen2", *EVEN, vocab_size=VOCABULARY)
    record = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    assert record.notes == ("written as llama, which computes the same with these widths and biases; qwen2 in llama.cpp does not",)
