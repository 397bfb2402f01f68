"""llama.cpp itself runs the file: its logits and greedy tokens are those of transformers in float32."""

from __future__ import annotations

import pytest
import torch

from adapruner.demo import MODEL_FOLDER
from adapruner.export.folder import export_model
from adapruner.export.formats.gguf import write_gguf
from adapruner.export.loading import load
from tests.export.cases import UNEVEN, plan_for

from .llama_runs import F16, llama, our_greedy, quantised, their_greedy, their_logits, types_of
from .test_writing import ROWS, VOCABULARY, byte_tokenizer, export

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(("family", "kept", "output_bias", "changes", "architecture"), ROWS)
def test_every_family_and_width(pruned, tmp_path, family, kept, output_bias, changes, architecture):
    case = pruned(family, *kept, output_bias=output_bias, vocab_size=VOCABULARY, **changes)
    file = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf").path
    ids = case.input_ids[0].tolist()
    with llama(file) as other:
        torch.testing.assert_close(their_logits(other, ids), case.logits()[0], rtol=0, atol=1e-4)
        assert their_greedy(other, ids, 24) == our_greedy(case.model, ids, 24)
    with llama(file, F16, flash=True) as other:  # its kernel rounds to half precision
        torch.testing.assert_close(their_logits(other, ids), case.logits()[0], rtol=0, atol=0.05)


@pytest.mark.slow  # a real model: its answers depend on what it reads, as a random one's hardly do
@pytest.mark.parametrize(
    ("attention", "ffn", "architecture"),
    [
        ([4] * 8, [320] * 8, "llama"),  # 8 of 12 heads: a Llama folder
        ([5] * 8, [320] * 8, "llama"),  # 10 of 12 heads, which Llama's configuration refuses: a Mistral folder
        ([5, 6, 2, 4, 3, 6, 1, 5], [320, 512, 96, 200, 311, 480, 64, 352], "deci"),
    ],
)
def test_the_demo_model_pruned(tmp_path, attention, ffn, architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adapruner.models.tracing import trace_structure
    from adapruner.pruning.surgery import prune_model

    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    structure = trace_structure(model)
    plan = plan_for(model, structure, attention, ffn)
    prune_model(model, structure, plan)
    export_model(model, tokenizer, structure, plan, tmp_path / "out")
    record = write_gguf(tmp_path / "out", tmp_path / "model.gguf")
    assert record.architecture == architecture
    again = load(tmp_path / "out")
    with llama(record.path) as other:
        for text in ("The list is", "Raises ValueError if x"):
            ids = tokenizer(text)["input_ids"]
            assert other.tokenize(text.encode(), add_bos=True, special=True) == ids
            with torch.no_grad():
                torch.testing.assert_close(their_logits(other, ids), again(torch.tensor([ids])).logits[0], rtol=0, atol=1e-3)
            assert their_greedy(other, ids, 32) == our_greedy(again, ids, 32)


def test_what_no_architecture_takes_can_be_padded(pruned, tmp_path):
    case = pruned("qwen3", *UNEVEN, vocab_size=VOCABULARY)  # with an output layer of its own
    export_model(case.model, byte_tokenizer(), case.structure, case.plan, tmp_path / "out", pad=True)
    record = write_gguf(tmp_path / "out", tmp_path / "model.gguf")
    assert record.architecture == "qwen3"
    with llama(record.path) as other:
        torch.testing.assert_close(their_logits(other, case.input_ids[0].tolist()), case.logits()[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_and_no_more(pruned, tmp_path, dtype):
    case = pruned("llama", [1, 2, 1], [9, 24, 11], vocab_size=VOCABULARY)
    file = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf", dtype).path
    ids = case.input_ids[0].tolist()
    with llama(file, F16) as other:
        error = (their_logits(other, ids) - case.logits()[0]).abs().max() / case.logits().std()
    assert error < {"float16": 0.02, "bfloat16": 0.1}[dtype]


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen3", {"tie_word_embeddings": True})])
def test_irregular_files_can_be_quantized(pruned, tmp_path, family, changes):
    """Widths that are multiples of 32 take 8 bits; llama.cpp keeps the others in 16."""
    case = pruned(family, [1, 2, 1], [64, 96, 50], vocab_size=VOCABULARY, head_dim=32, intermediate_size=96, **changes)
    file = write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf").path
    eight_bits = quantised(file, "Q8_0")
    types = types_of(eight_bits)
    assert [types[f"blk.{layer}.ffn_down.weight"] for layer in range(3)] == ["Q8_0", "Q8_0", "F16"]
    ids = case.input_ids[0].tolist()
    with llama(eight_bits) as other:
        similarity = torch.cosine_similarity(their_logits(other, ids), case.logits()[0], dim=-1)
    assert similarity.min() > 0.98
