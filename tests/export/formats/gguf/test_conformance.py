"""Every family in every form: what llama.cpp makes of the file is what transformers makes of the folder.

``make test-llama-cpp`` writes what is recorded here into ``docs/serving.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ModelError
from adapruner.export.folder import export_model
from adapruner.export.formats.gguf import GgufRecord, write_gguf
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model
from tests.export.cases import UNEVEN, Pruned, plan_for, tiny_model

from .llama_runs import llama, their_logits, tokens_equal
from .test_writing import EVEN, VOCABULARY, byte_tokenizer

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROMPTS, TOKENS = 8, 24
#: Form -> KV groups and FFN channels kept, whether output projections get biases, and whether the folder is padded.
FORMS: dict[str, tuple[tuple[list[int], list[int]], bool, bool]] = {
    "uniform": (EVEN, False, False),
    "FFN widths per layer": (([2, 2, 2], [9, 24, 11]), False, False),
    "heads and FFN widths per layer": (UNEVEN, False, False),
    "padded": (UNEVEN, False, True),
    "biases added": (EVEN, True, False),
}
REFUSED = {
    ("qwen3", "biases added"): "no bias in down_proj, o_proj",
    ("qwen3, output layer of its own", "FFN widths per layer"): "no output layer of its own",
    ("qwen3, output layer of its own", "heads and FFN widths per layer"): "no output layer of its own",
}
CELLS = [(family, form) for family in FAMILIES for form in FORMS]
CELLS += [("qwen3, output layer of its own", form) for form in FORMS if form != "biases added"]


def changes(family: str) -> dict[str, Any]:
    """Of the tiny configuration. Tied embeddings are what irregular Qwen3 needs, and small Qwen3 have."""
    return {"vocab_size": VOCABULARY, **({"tie_word_embeddings": True} if family == "qwen3" else {})}


def compare(record: GgufRecord, model: Any, note: Callable[[str, Any], None]) -> None:
    """Logits and greedy tokens of eight prompts; what was found is noted whether or not it will do."""
    prompts = torch.randint(3, VOCABULARY, (PROMPTS, 10), generator=torch.Generator().manual_seed(3)).tolist()
    with llama(record.path) as other, torch.no_grad():
        far = max(float((their_logits(other, ids) - model(torch.tensor([ids])).logits[0]).abs().max()) for ids in prompts)
        equal = tokens_equal(model, other, prompts, TOKENS)
    for name, value in {"architecture": record.architecture, "tokens": f"{equal} of {PROMPTS * TOKENS}", "logits": far}.items():
        note(name, value)
    assert equal == PROMPTS * TOKENS
    assert far < 1e-4


@pytest.mark.parametrize(("family", "form"), CELLS)
def test_tokens_are_those_of_transformers(pruned, tmp_path: Path, record_property: Any, family: str, form: str) -> None:
    kept, output_bias, pad = FORMS[form]
    record_property("family", family)
    record_property("form", form)
    case: Pruned = pruned(family.split(",")[0], *kept, output_bias=output_bias, **changes(family))
    export_model(case.model, byte_tokenizer(), case.structure, case.plan, tmp_path / "out", pad=pad)
    if (family, form) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[family, form]):
            write_gguf(tmp_path / "out", tmp_path / "model.gguf")
        record_property("refused", REFUSED[family, form])
        return
    compare(write_gguf(tmp_path / "out", tmp_path / "model.gguf"), case.model, record_property)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_layer_is_not_in_the_file(tmp_path: Path, record_property: Any, family: str) -> None:
    record_property("family", family)
    record_property("form", "a layer removed")
    model = tiny_model(family, num_hidden_layers=4, **changes(family))
    structure = trace_structure(model)
    plan = plan_for(model, structure, [1, 2, 2, 1], [9, 24, 24, 11])
    plan = replace(plan, removed_layers=[1])
    prune_model(model, structure, plan)
    export_model(model, byte_tokenizer(), structure, plan, tmp_path / "out")
    record = write_gguf(tmp_path / "out", tmp_path / "model.gguf")
    assert len(model.model.layers) == 3
    compare(record, model, record_property)
