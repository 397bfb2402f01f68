"""Runs in vLLM's own environment: serves folders one after the other, and writes what each answered.

    python vllm_answers.py jobs.json answers.json

``jobs.json`` is a list of groups of jobs; the engines of a group are alive together, and their timed rounds take turns, so that what else
the machine does falls on all of them. Knows nothing of adapruner.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def start(job: dict[str, Any]) -> Any:
    """The engine: float32, no compiled graphs, greedy."""
    from vllm import LLM

    return LLM(
        model=job["folder"],
        model_impl=job["implementation"],
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=job["longest"],
        max_num_seqs=len(job["prompts"]),
        enable_prefix_caching=False,  # a second round would not compute the prompts again
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )


def generate(engine: Any, job: dict[str, Any]) -> tuple[list[list[int]], float]:
    """Tokens of every prompt, and seconds."""
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=job["new_tokens"], ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    found = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], settings, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found], time.perf_counter() - began


def answer(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each job its tokens, the class that computed them, and tokens a second in every round; or the error."""
    answers: list[dict[str, Any]] = [{"key": job["key"]} for job in group]
    engines = []
    for job, said in zip(group, answers, strict=True):
        try:
            engines.append(start(job))
        except Exception as error:  # whatever an engine says is its answer
            engines.append(None)
            said["error"] = f"{type(error).__name__}: {error}"[:200]
    for turn in range(1 + max(job["rounds"] for job in group)):
        for job, engine, said in zip(group, engines, answers, strict=True):
            if engine is None or turn > job["rounds"]:
                continue
            tokens, seconds = generate(engine, job)
            if turn == 0:  # the first warms up
                said |= {"tokens": tokens, "class": engine.apply_model(lambda model: type(model).__name__)[0], "tokens_per_second": []}
            else:
                said["tokens_per_second"].append(sum(map(len, tokens)) / seconds)
    return answers


def main() -> None:
    import torch
    import transformers
    import vllm

    jobs, target = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found: list[dict[str, Any]] = []
    for group in jobs:
        found += answer(group)
        gc.collect()
        versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        target.write_text(json.dumps({"versions": versions, "answers": found}))


if __name__ == "__main__":
    main()
