"""A decoder nobody told us about: its own class, its own names, only the shape of a transformer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from adapruner.errors import ModelError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.models.tracing import trace_structure
from adapruner.pruning.masking import masked
from adapruner.pruning.self_check import check_family
from adapruner.pruning.surgery import prune_model
from tests.models.families.conformance import logits, plan_for


class StrangerConfig(PreTrainedConfig):
    model_type = "stranger"

    def __init__(self, vocab_size: int = 50, hidden_size: int = 32, head_dim: int = 8, intermediate_size: int = 24, **rest: Any) -> None:
        self.vocab_size, self.hidden_size, self.head_dim, self.intermediate_size = vocab_size, hidden_size, head_dim, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = rest.pop("num_hidden_layers", 2), rest.pop("num_attention_heads", 4)
        super().__init__(**rest)


class StrangerLayer(nn.Module):
    def __init__(self, config: StrangerConfig) -> None:
        super().__init__()
        self.head_dim, width = config.head_dim, config.num_attention_heads * config.head_dim
        self.self_attn = nn.ModuleDict({n: nn.Linear(config.hidden_size, width) for n in ("wq", "wk", "wv")})
        self.self_attn["out_proj"] = nn.Linear(width, config.hidden_size)
        self.mlp = nn.ModuleDict({n: nn.Linear(config.hidden_size, config.intermediate_size) for n in ("wide", "gate")})
        self.mlp["fc2"] = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.norm1(hidden_states)
        q, k, v = (self.self_attn[n](x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for n in ("wq", "wk", "wv"))
        attended = self.attend(q, k, v).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + self.self_attn["out_proj"](attended)
        x = self.norm2(hidden_states)
        return hidden_states + self.mlp["fc2"](silu(self.mlp["gate"](x)) * self.mlp["wide"](x))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.is_meta:  # what eager attention is to a tracer
            return torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return scaled_dot_product_attention(q, k, v, is_causal=True)


class StrangerForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = StrangerConfig
    _supports_sdpa = True

    def __init__(self, config: StrangerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(StrangerLayer(config) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **_: Any) -> CausalLMOutput:
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        return CausalLMOutput(logits=self.lm_head(hidden))


@pytest.fixture
def stranger() -> Iterator[StrangerForCausalLM]:
    AutoConfig.register("stranger", StrangerConfig, exist_ok=True)
    AutoModelForCausalLM.register(StrangerConfig, StrangerForCausalLM, exist_ok=True)
    torch.manual_seed(0)
    model = StrangerForCausalLM(StrangerConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    yield model
    del AutoModelForCausalLM._model_mapping._extra_content[StrangerConfig]


def test_it_works_without_a_file_of_its_own(stranger: StrangerForCausalLM) -> None:
    model = stranger.double()
    structure = trace_structure(model)
    assert [(g.kind, g.units, len(g.members)) for g in structure.of_layer(1)] == [("attention", 4, 4), ("ffn", 24, 3)]
    plan = plan_for(structure, "irregular")
    with masked(model, structure, plan):
        expected = logits(model)
    prune_model(model, structure, plan)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)


def test_uniform_it_exports_as_its_own_class(stranger: StrangerForCausalLM, tmp_path: Path) -> None:
    structure = trace_structure(stranger)
    plan = plan_for(structure, "uniform")
    prune_model(stranger, structure, plan)
    assert export_model(stranger, None, structure, plan, tmp_path / "out").class_name == "StrangerForCausalLM"
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(stranger), rtol=0, atol=1e-6)


def test_irregular_it_is_refused_in_one_line_or_padded(stranger: StrangerForCausalLM, tmp_path: Path) -> None:
    structure = trace_structure(stranger)
    plan = plan_for(structure, "irregular", seed=2)
    prune_model(stranger, structure, plan)
    with pytest.raises(ModelError, match="expected a class of transformers for layers of different widths, got StrangerForCausalLM"):
        export_model(stranger, None, structure, plan, tmp_path / "out")
    assert export_model(stranger, None, structure, plan, tmp_path / "out", pad=True).stock
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(stranger), rtol=0, atol=1e-5)


def test_what_does_not_trace_is_refused_in_one_line(stranger: StrangerForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def data_dependent(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v if bool((q > 0).any()) else k

    monkeypatch.setattr(StrangerLayer, "attend", data_dependent)
    with pytest.raises(
        ModelError, match=r"expected StrangerForCausalLM to trace, got .*; write a file for its family \(docs/add-a-family.md\)$"
    ):
        trace_structure(stranger)


def test_heads_that_mix_are_refused(stranger: StrangerForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = StrangerLayer.attend
    monkeypatch.setattr(StrangerLayer, "attend", lambda self, q, k, v: own(self, q, k, v).flip(-3))
    structure = trace_structure(stranger)  # the tracer does not see it
    with pytest.raises(ModelError, match=r"expected pruned layers of StrangerForCausalLM to compute what masked ones do, got logits off"):
        check_family(stranger, structure)


def test_heads_that_are_counted_are_refused(stranger: StrangerForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = StrangerLayer.attend
    monkeypatch.setattr(StrangerLayer, "attend", lambda self, q, k, v: own(self, q, k, v).reshape(len(q), 4, -1, self.head_dim))
    with pytest.raises(ModelError, match=r"to compute what masked ones do, got a failure \(mat1 and mat2"):
        check_family(stranger, trace_structure(stranger))


def test_a_sound_one_passes_and_is_left_as_it_was(stranger: StrangerForCausalLM) -> None:
    before = logits(stranger)
    check_family(stranger.train(), trace_structure(stranger))
    assert stranger.training
    torch.testing.assert_close(logits(stranger.eval()), before)
