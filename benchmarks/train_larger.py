"""Trains the second model of the quality study: the demo model, stacked to twice its depth and trained on.

    python benchmarks/train_larger.py --out benchmarks/larger_model

Stacking a trained model's layers and training on reaches a given loss with a fraction of the steps that random weights
need (Gong et al. 2019; Du et al., "Stacking Your Transformers", arXiv 2405.15319). The text, the tokenizer and the splits
are the demo model's own. A killed run started again goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from train_demo import measure_perplexity, tokenize, train

from adapruner.demo import MODEL_FOLDER
from adapruner.demo.corpus import load_demo_corpus

TIMES = 2


def stack(model: Any, times: int) -> Any:
    """A model of ``times`` the layers: the whole stack again on top of itself, embeddings and final norm as they are."""
    import copy

    config = copy.deepcopy(model.config)
    config.num_hidden_layers = model.config.num_hidden_layers * times
    grown = type(model)(config)
    depth = model.config.num_hidden_layers
    source = model.state_dict()
    state = {}
    for name in grown.state_dict():
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            parts[place] = str(int(parts[place]) % depth)
        state[name] = source[".".join(parts)].clone()
    grown.load_state_dict(state)
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of 8 x 256 tokens")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    model = stack(AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32), TIMES).to(device)
    tokens = tokenize(tokenizer, load_demo_corpus("train"))
    state_file = folder / "training-state.pt"
    facts: dict[str, Any] = train(model, tokens, arguments.steps, arguments.seed, state_file, device)
    test_tokens = tokenize(tokenizer, load_demo_corpus("test"))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts |= {
        "seed": arguments.seed,
        "parameters": model.num_parameters(),
        "grown_from": f"the demo model, its {model.config.num_hidden_layers // TIMES} layers stacked {TIMES} times",
        "train_tokens": len(tokens),
        "test_tokens": len(test_tokens),
        "test_perplexity": measure_perplexity(model.float(), test_tokens, device),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    state_file.unlink()
    print(f"test perplexity {facts['test_perplexity']:.2f}")


if __name__ == "__main__":
    main()
