"""llama.cpp and transformers side by side, for the tests that have both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

try:
    import llama_cpp
except ImportError:  # the modules that import this one skip themselves
    llama_cpp = None  # type: ignore[assignment]

F32, F16 = 0, 1


@contextmanager
def llama(file: Path, kind: int = F32, flash: bool = False) -> Iterator[Any]:
    """The file in llama.cpp, keys and values kept in float32: its default, float16, would round where ours does not.

    Without its repacked weights: with them 0.3.36 ended in a segmentation fault on a virtual machine that has AMX, in any file of 8 bits.
    """
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:
        settings = defaults()
        settings.use_extra_bufts = False
        return settings

    with patch.object(llama_cpp.llama_cpp, "llama_model_default_params", plain):
        model = llama_cpp.Llama(
            str(file),
            n_ctx=256,
            n_batch=128,
            type_k=kind,
            type_v=kind,
            flash_attn=flash,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            verbose=False,
        )
    try:
        yield model
    finally:
        model.close()


def their_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """``[t, vocabulary]``."""
    model.reset()
    model.eval(ids)
    return torch.tensor(model.scores[: len(ids)])


def their_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """One token at a time through the cache."""
    model.reset()
    model.eval(ids)
    found: list[int] = []
    for _ in range(count):
        found.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(found[-1:])
    return found


def our_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    given = torch.tensor([ids])
    settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(given, attention_mask=torch.ones_like(given), **settings)[0, len(ids) :].tolist()


def tokens_equal(model: Any, other: Any, prompts: list[list[int]], count: int = 24) -> int:
    """How many of ``count`` greedy tokens of each prompt are the same in transformers and llama.cpp, up to the first that differs."""
    equal = 0
    for ids in prompts:
        pairs = list(zip(our_greedy(model, ids, count), their_greedy(other, ids, count), strict=True))
        equal += next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), count)
    return equal


def perplexity(logits: list[torch.Tensor], windows: torch.Tensor) -> float:
    """Of windows ``[n, t]`` by their logits ``[t, vocabulary]``, every token but a window's first."""
    losses = [torch.nn.functional.cross_entropy(found[:-1].double(), ids[1:]) for found, ids in zip(logits, windows, strict=True)]
    return float(torch.stack(losses).mean().exp())


def quantised(file: Path, kind: str) -> Path:
    """A file of another type beside it, by llama.cpp's own quantiser; ``kind`` is ``Q8_0``, ``Q4_0``, ``Q4_K_M``."""
    settings, target = llama_cpp.llama_model_quantize_default_params(), file.with_name(f"{file.stem}-{kind}.gguf")
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    assert llama_cpp.llama_model_quantize(str(file).encode(), str(target).encode(), settings) == 0
    return target


def types_of(file: Path) -> dict[str, str]:
    """Tensor -> its type in the file."""
    import gguf

    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
