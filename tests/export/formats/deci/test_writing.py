"""The folder in DeciLM's form, computed by an oracle that reads nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.folder import export_model
from adapruner.export.formats import FORMATS
from adapruner.export.formats.deci import write_deci
from adapruner.export.loading import check_whole, load
from adapruner.export.options import ExportOptions
from adapruner.pruning.plan import read_plan
from tests.export.cases import UNEVEN

from .oracle import deci_logits

EVEN: tuple[list[int], list[int]] = ([1, 1, 1], [10, 10, 10])
ROWS: list[tuple[str, tuple[list[int], list[int]], bool, dict[str, Any], list[int], tuple[int, int]]] = [
    ("llama", ([2, 2, 2], [9, 24, 11]), False, {}, [2, 2, 2], (0, 0)),
    ("llama", UNEVEN, False, {"tie_word_embeddings": True}, [1, 2, 1], (4, 0)),
    ("llama", UNEVEN, True, {"head_dim": 16}, [1, 2, 1], (4, 0)),
    ("llama", UNEVEN, False, {"attention_bias": True, "mlp_bias": True}, [1, 2, 1], (4, 0)),
    ("llama", ([3, 1, 2], [24, 24, 24]), False, {"kv_heads": 4}, [3, 1, 3], (3, 1)),  # 2 KV heads do not divide 3 query heads
    ("llama", EVEN, False, {}, [1, 1, 1], (0, 0)),
    ("mistral", UNEVEN, False, {"sliding_window": 4}, [1, 2, 1], (4, 0)),
    ("mistral", UNEVEN, True, {"sliding_window": None}, [1, 2, 1], (4, 0)),
    ("qwen2", UNEVEN, False, {}, [1, 2, 1], (4, 0)),
    ("qwen2", UNEVEN, True, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, [1, 2, 1], (4, 0)),
    ("qwen2", EVEN, False, {}, [1, 1, 1], (0, 0)),
    ("llama", ([2, 2, 2], [256, 300, 512]), False, {"intermediate_size": 512}, [2, 2, 2], (0, 0)),
]
"""Family, KV groups and FFN channels kept, biases on output projections, changes; KV heads in the folder, query and KV heads of zeros."""


@pytest.mark.parametrize(("family", "kept", "output_bias", "changes", "kv_heads", "zeros"), ROWS)
def test_it_computes_the_same(pruned, tokenizer, tmp_path, family, kept, output_bias, changes, kv_heads, zeros):
    case = pruned(family, *kept, output_bias=output_bias, **changes)
    export_model(case.model, tokenizer, case.structure, case.plan, tmp_path / "out")
    record = write_deci(tmp_path / "out", tmp_path / "deci")
    expected = case.logits(case.model.double())
    torch.testing.assert_close(deci_logits(tmp_path / "deci", case.input_ids), expected, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "deci" / "config.json").read_text())
    assert [config["num_attention_heads"] // block["attention"]["n_heads_in_group"] for block in config["block_configs"]] == kv_heads
    every = 3 * config["num_attention_heads"], sum(kv_heads)
    counts = [f"{zeros[i]} of the {every[i]} {kind} heads of all layers together" for i, kind in enumerate(("query", "KV")) if zeros[i]]
    why = "DeciLM has one number of query heads for all layers"
    said = f"filled up with heads of zeros, which change no result: {' and '.join(counts)}; {why}"
    assert list(record.notes[1:]) == ([said] if any(zeros) else [])


def test_what_lies_in_the_folder(pruned, tokenizer, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    case = pruned("llama", *UNEVEN)
    export_model(case.model, tokenizer, case.structure, case.plan, tmp_path / "out")
    write_deci(tmp_path / "out", tmp_path / "deci", max_shard_size="20KB")
    config = AutoConfig.from_pretrained(tmp_path / "deci", trust_remote_code=True)
    assert (config.model_type, config.architectures) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert [block.ffn.intermediate_size for block in config.block_configs] == UNEVEN[1]
    assert not any(block.attention.no_op or block.ffn.no_op or hasattr(block.ffn, "ffn_mult") for block in config.block_configs)
    assert AutoConfig.from_pretrained(tmp_path / "deci", trust_remote_code=True).to_dict() == config.to_dict()
    assert AutoTokenizer.from_pretrained(tmp_path / "deci")("the lazy dog")["input_ids"] == [3, 4, 5]
    assert read_plan(tmp_path / "deci" / "plan.json") == case.plan
    assert len(list((tmp_path / "deci").glob("*.safetensors"))) > 1
    assert check_whole(tmp_path / "deci") == []
    card = (tmp_path / "deci" / "README.md").read_text()
    assert "vllm serve DIR --trust-remote-code" in card
    assert "from_pretrained" not in card
    assert "adapruner.load" not in card


def test_transformers_is_told_to_take_the_other_folder(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    write_deci(tmp_path / "out", tmp_path / "deci")
    with pytest.raises(
        ModelError, match=r"^folder: expected an export that transformers loads, got one in DeciLM's form, .*deci; give the"
    ):
        load(tmp_path / "deci")
    write_deci(tmp_path / "out", tmp_path / "deci")  # an earlier one is replaced
    with pytest.raises(ModelError, match=r"model_type: expected a family whose layers DeciLM computes, got 'nemotron-nas'"):
        write_deci(tmp_path / "deci", tmp_path / "again")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {}, r"^model_type: expected a family whose layers DeciLM computes, got 'qwen3'; .*--model-impl transformers$"),
        ("llama", {"hidden_act": "gelu"}, r"^hidden_act: expected silu, which DeciLM computes, got 'gelu'; serve it with"),
    ],
)
def test_what_decilm_would_compute_otherwise_is_refused(pruned, tmp_path, family, changes, message):
    case = pruned(family, *UNEVEN, **changes)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    with pytest.raises(ModelError, match=message):
        write_deci(tmp_path / "out", tmp_path / "deci")
    assert not (tmp_path / "deci").exists()


def test_as_a_format(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    deci, options = FORMATS.find("deci"), ExportOptions()
    (tmp_path / "mine").mkdir()
    assert deci.is_own(tmp_path / "mine")
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert not deci.is_own(tmp_path / "mine")
    with pytest.raises(ConfigurationError, match="expected an empty folder or an earlier export"):
        deci.check(tmp_path / "mine", options)
    assert deci.write(tmp_path / "out", tmp_path / "new", options).summary == "for vLLM, DeciLMForCausalLM"
    assert deci.is_own(tmp_path / "new")
