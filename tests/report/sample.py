"""A report as a run would write it: 8 layers, 48 trials, 8 methods. Numbers are made up, the shape is real."""

from __future__ import annotations

import math
import random
from typing import Any

FIXED = {"taylor": 3.812, "wanda": 3.846, "fluctuation": 3.861, "l2": 3.978, "activation": 3.902, "cosine": 4.135, "random": 5.94}
FINAL = {  # method: pruned, reconstructed, recovered
    "adapruner": (35.21, 31.04, 30.12),
    "taylor": (41.87, 34.62, 32.18),
    "wanda": (43.15, 35.70, 32.95),
    "fluctuation": (44.02, 35.31, 32.67),
    "activation": (47.93, 37.88, 34.10),
    "l2": (58.66, 41.25, 36.44),
    "cosine": (71.30, 46.09, 38.21),
    "random": (412.34, 120.71, 62.38),
}


def sample_report() -> dict[str, Any]:
    """A full report; every call gives a new dictionary."""
    return {
        "name": "quickstart",
        "seed": 0,
        "command": "python train.py fit --config quickstart --seed_everything 0",
        "created": "2025-05-14T09:26:53+00:00",
        "versions": {"adapruner": "0.1.0", "torch": "2.7.0", "transformers": "5.0.0", "lightning": "2.5.1", "optuna": "5.0.0"},
        "hardware": "2 CPU cores, 8 GiB",
        "model": _model(),
        "perplexity": _perplexity(),
        "protocol": "Sliding windows without overlap, token-weighted mean NLL, test split, bf16 weights, fp32 log-softmax.",
        "data": {
            "sets": [
                _text("calibration", "", ["wikitext: org/wikitext, raw, split train", "c4: org/c4, en, split train"], 256, 512, 240),
                _text("search", "", ["wikitext: org/wikitext, raw, split validation"], 64, 512, 31),
                _text("evaluation", "wikitext", ["wikitext: org/wikitext, raw, split test"], 141, 2048, 62),
            ],
            "leaks": "checked: no document of 200 characters or more is in an evaluation set and in any other set",
            "seed": 7,
        },
        "seeds": {"search": 0, "data": 7, "recovery": 2},
        "zero_shot": _zero_shot(),
        "search": _search(),
        "calibration": {
            "samples": 256,
            "seq_len": 512,
            "sources": {
                "wikitext": {"samples": 96, "weight": 0.41},
                "c4": {"samples": 64, "weight": 0.27},
                "code": {"samples": 48, "weight": 0.21},
                "dialogue": {"samples": 48, "weight": 0.11},
            },
        },
        "recovery": {
            "reconstruction": {"ridge": 0.01, "seconds": 4.2},
            "lora": {"r": 8, "alpha": 16.0, "steps": 600, "seconds": 192.0, "history": _losses()},
        },
        "cost": {
            "dense": {"parameters": 4_031_488, "macs": 2.05e9, "latency_ms": 8.42, "weight_memory_gib": 0.01502},
            "pruned": {"parameters": 2_702_336, "macs": 1.37e9, "latency_ms": 5.98, "weight_memory_gib": 0.01007},
            "protocol": "Batch 1, 512 tokens, fp32, median of 20 runs after 5 warm-up runs.",
        },
        "export": {
            "path": "runs/quickstart/model",
            "class": "LlamaForCausalLM",
            "stock": False,
            "max_abs_logit_difference": 1.9e-6,
            "notes": ["Layers have different widths: the folder carries its own modelling file."],
        },
        "generations": [
            {
                "prompt": "The river was frozen, and the children",
                "dense": " ran out to the ice with their dog. They had never seen it so still, and they were not afraid.",
                "recovered": " went out to the ice with their dog. They had never been there before, and it was very cold.",
            },
            {
                "prompt": "def mean(values):",
                "dense": '\n    """The arithmetic mean."""\n    return sum(values) / len(values)',
                "recovered": "\n    total = sum(values)\n    return total / len(values)",
            },
        ],
    }


def _text(role: str, name: str, sources: list[str], windows: int, seq_len: int, documents: int) -> dict[str, Any]:
    digest = f"{abs(windows * seq_len):016x}"
    return {
        "role": role,
        "name": name,
        "sources": sources,
        "windows": windows,
        "seq_len": seq_len,
        "documents": documents,
        "hash": digest,
    }


def searched_calibration() -> dict[str, Any]:
    """The calibration section of a run that clustered its pool, wrote its set and compared it with random ones."""
    return {
        **sample_report()["calibration"],
        "clusters": {"cluster 0": {"samples": 150, "weight": 0.35}, "cluster 1": {"samples": 106, "weight": 0.65}},
        "effective_samples": 36.18,
        "set_file": "runs/quickstart/calibration_set.json",
        "heaviest": [
            {
                "id": 1_017,
                "source": "wikitext",
                "weight": 0.0812,
                "alike": 1,
                "text": "The river Inn rises in the Swiss canton of Graubünden ...",
            },
            {
                "id": 40,
                "source": "code",
                "weight": 0.0473,
                "alike": 32,
                "text": "def lerp(a: float, b: float) -> float: return a + t * (b - a) ...",
            },
        ],
        "spread": {"size": 36, "values": [4.41, 4.38, 4.445, 4.349], "mean": 4.396, "std": 0.041077, "chosen": 4.35},
    }


def _model() -> dict[str, Any]:
    return {
        "name": "demo-llama-4m",
        "model_type": "llama",
        "layers": 8,
        "parameters_dense": 4_031_488,
        "parameters_pruned": 2_702_336,
        "pruned_fraction_target": 0.4,
        "pruned_fraction": 0.4003,
        "budget_of": "block",
        "block_parameters_dense": 3_320_832,
        "block_parameters_pruned": 1_991_680,
        "plan_hash": "9f2c61d0a87be354",
        "uniform": False,
        "units": {
            "attention": {"dense": [6] * 8, "kept": [6, 4, 5, 4, 3, 3, 2, 4]},
            "ffn": {"dense": [512] * 8, "kept": [431, 388, 342, 310, 268, 241, 224, 297]},
        },
    }


def _perplexity() -> list[dict[str, Any]]:
    rows = []
    for dataset, window, dense, factor in (("wikitext", 512, 28.10, 1.0), ("c4", 512, 33.85, 1.19)):
        rows.append({"stage": "dense", "method": "dense", "dataset": dataset, "window": window, "value": dense})
        for method, values in FINAL.items():
            for stage, value in zip(("pruned", "reconstructed", "recovered"), values, strict=True):
                rows.append({"stage": stage, "method": method, "dataset": dataset, "window": window, "value": round(value * factor, 3)})
    return rows


def _zero_shot() -> dict[str, Any]:
    rows = []
    for stage, task, metric, value in (
        ("dense", "boolq", "acc", 0.7318),
        ("dense", "piqa", "acc", 0.7835),
        ("dense", "piqa", "acc_norm", 0.7912),
        ("recovered", "boolq", "acc", 0.6624),
        ("recovered", "piqa", "acc", 0.7742),
        ("recovered", "piqa", "acc_norm", 0.7802),
    ):
        rows.append({"stage": stage, "task": task, "metric": metric, "value": value, "stderr": 0.0083, "documents": 1838, "shots": 0})
    return {"rows": rows, "protocol": "lm-eval 0.4.13, 0 examples before a question"}


def measured_cost() -> dict[str, Any]:
    """The cost section of a run on a device that tells everything, swept over two sizes; the dense model does not fit the larger."""
    cost = sample_report()["cost"]
    dense, pruned = _speed(8.0, 2.0), _speed(6.0, 1.6)
    return {
        **cost,
        "dense": {**cost["dense"], "decode_ms": 2.0, "peak_memory_gib": 0.5, "prefill_energy_j": 1.25},
        "pruned": {**cost["pruned"], "decode_ms": 1.6, "peak_memory_gib": 0.4, "prefill_energy_j": 0.75},
        "sweep": {
            "rows": [
                {"batch": 1, "seq_len": 128, "dense": dense, "pruned": pruned, "ideal": 0.668},
                {"batch": 64, "seq_len": 2048, "dense": None, "pruned": dict(pruned), "ideal": 0.668},
            ],
            "protocol": "Tokens per second, median of 10 rounds",
        },
    }


def _speed(prefill_ms: float, decode_ms: float) -> dict[str, Any]:
    return {
        "prefill_ms": prefill_ms,
        "prefill_iqr_ms": 0.1,
        "prefill_tokens_per_s": 128_000 / prefill_ms,
        "decode_ms": decode_ms,
        "decode_iqr_ms": 0.1,
        "decode_tokens_per_s": 1000 / decode_ms,
        "peak_memory_gib": None,
        "prefill_energy_j": None,
    }


def _search() -> dict[str, Any]:
    draw = random.Random(0)
    history: list[dict[str, Any]] = []
    for name, value in FIXED.items():
        history.append({"trial": len(history), "name": name, "value": value, "state": "complete", "seconds": 2.1})
    best = math.inf
    for trial in range(len(history), 48):
        progress = (trial - 7) / 40
        value = round(3.64 + 0.42 * (1 - progress) * draw.random() + 0.06 * draw.random() + 0.4 * (draw.random() > 0.85), 4)
        stopped = value > best + 0.12 and draw.random() < 0.75
        state = "failed" if trial == 19 else "pruned" if stopped else "complete"
        best = min(best, value) if state == "complete" else best
        history.append(
            {
                "trial": trial,
                "name": "searched",
                "value": None if state == "failed" else value,
                "state": state,
                "seconds": 0.9 if stopped else 2.2,
            }
        )
    complete = [t for t in history if t["state"] == "complete"]
    winner = min(complete, key=lambda t: t["value"])
    return {
        "trials": 48,
        "completed": len(complete),
        "stopped_early": sum(t["state"] == "pruned" for t in history),
        "seconds_total": 118.4,
        "seconds_statistics": 21.7,
        "best_value": winner["value"],
        "best_trial": winner["trial"],
        "best_fixed_value": min(FIXED.values()),
        "dense_value": 3.336,
        "recipe": {
            "calibration": {"wikitext": 0.41, "c4": 0.27, "code": 0.21, "dialogue": 0.11},
            "mixture": {"taylor": 0.5312, "wanda": 0.2874, "fluctuation": 0.1419, "l2": 0.0395},
            "normalization": "rank",
            "allocation": {"scope": "global", "attention_share": 0.34, "smallest_width": 0.2, "round_to": 8},
            "bias_compensation": True,
        },
        "history": history,
        "importance": {
            "mixture.taylor": 0.342,
            "allocation.attention_share": 0.217,
            "normalization": 0.148,
            "calibration.wikitext": 0.103,
            "mixture.wanda": 0.081,
            "allocation.smallest_width": 0.059,
            "calibration.code": 0.031,
            "mixture.l2": 0.019,
        },
    }


def _losses() -> list[list[float]]:
    draw = random.Random(1)
    return [[step, round(3.40 + 0.16 * math.exp(-step / 110) + 0.012 * draw.gauss(0, 1), 4)] for step in range(0, 601, 5)]
