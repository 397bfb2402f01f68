"""The whole protocol, from text to a number, against other people's implementations; and over two ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapruner.data.documents import Document
from adapruner.data.windows import joined_windows
from adapruner.demo import MODEL_FOLDER
from adapruner.demo.corpus import load_demo_corpus
from adapruner.evaluation.perplexity import evaluate_nll
from tests.tiny import random_windows, tiny_llama


@pytest.fixture(scope="module")
def demo() -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # In float32: torchmetrics sums in the logits' type, and in float16 is off by some hundredths of a percent.
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32), AutoTokenizer.from_pretrained(MODEL_FOLDER)


def published_protocol(model: Any, tokenizer: Any, texts: list[str], seq_len: int) -> float:
    """As LLM-Pruner (arXiv 2305.11627) and those before it do it: one text, rows of ``seq_len``, losses of all rows, exp of their mean."""
    ids = tokenizer("\n\n".join(texts), return_tensors="pt").input_ids[0]
    losses = []
    for row in range(ids.numel() // seq_len):
        batch = ids[row * seq_len : (row + 1) * seq_len][None]
        logits = model(batch).logits
        loss = torch.nn.CrossEntropyLoss(reduction="none")
        losses.append(loss(logits[:, :-1].reshape(-1, logits.size(-1)), batch[:, 1:].reshape(-1)))
    return torch.cat(losses).double().mean().exp().item()


@pytest.mark.parametrize("window", [128, 1024])
def test_perplexity_agrees_with_three_other_implementations(demo: Any, window: int) -> None:
    """The published one, torchmetrics', and the model's own loss; on real text, at LLM-Pruner's length and the model's own."""
    from torchmetrics.text import Perplexity

    model, tokenizer = demo
    texts = [piece.text for piece in load_demo_corpus("test", "stdlib")[:4]]
    windows = joined_windows([Document("s", str(i), text) for i, text in enumerate(texts)], tokenizer, window)
    ours = evaluate_nll(model, windows, batch_size=3).perplexity
    theirs = Perplexity(ignore_index=-100)
    with torch.no_grad():
        assert ours == pytest.approx(published_protocol(model, tokenizer, texts, window), rel=1e-4)
        own = [model(input_ids=row[None], labels=row[None]).loss.item() for row in windows.input_ids]
        for row in windows.input_ids:
            theirs.update(model(input_ids=row[None]).logits[:, :-1], row[None, 1:])
    assert ours == pytest.approx(math.exp(sum(own) / len(own)), rel=1e-4)
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert len(windows) >= 3


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut_into_tokens(demo: Any) -> None:
    """A model that gives every token of a vocabulary of ``v`` the same chance needs log2(v) bits a token."""
    model, tokenizer = demo
    texts = [Document("s", str(i), piece.text) for i, piece in enumerate(load_demo_corpus("test", "topics")[:4])]
    windows = joined_windows(texts, tokenizer, 64)
    uniform = tiny_llama(vocab_size=model.config.vocab_size)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    result = evaluate_nll(uniform, windows, batch_size=5)
    assert result.perplexity == pytest.approx(model.config.vocab_size, rel=1e-5)
    text = "\n\n".join(d.text for d in texts)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    covered = [len(text[spans[i][1] : spans[i + 63][1]].encode()) for i in range(0, len(spans) // 64 * 64, 64)]
    assert result.text_bytes == sum(covered)
    expected = math.log2(model.config.vocab_size) * result.tokens / sum(covered)
    assert result.bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert evaluate_nll(uniform, random_windows(2, 8, seed=1)).bits_per_byte is None
