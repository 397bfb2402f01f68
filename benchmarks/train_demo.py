"""Trains the demo model from nothing, on text that every installation carries.

    python benchmarks/train_demo.py --out adapruner/demo/model

Two cores need about an hour; a killed run started again goes on from its last checkpoint. The folder gets the
model (float16 safetensors), its tokenizer, ``training.json`` with every figure, and a model card made from it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from adapruner.demo.corpus import SOURCES, Document, load_demo_corpus

WINDOW = 256
BATCH = 8
PEAK_LEARNING_RATE = 3e-3
BEGIN, END, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(documents: list[Document], vocabulary: int) -> Any:
    """Byte-level BPE with a begin-of-text token put before every text; trained on the train split only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[BEGIN, END, PAD], initial_alphabet=alphabet)
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def tokenize(tokenizer: Any, documents: list[Document]) -> torch.Tensor:
    """All documents in one row ``[n_tokens]``: begin-of-text, text, end-of-text."""
    rows = tokenizer([d.text for d in documents])["input_ids"]
    return torch.tensor([token for row in rows for token in [*row, tokenizer.eos_token_id]])


def build_model(tokenizer: Any, seed: int) -> Any:
    """8 layers, width 192, 12 query heads on 6 KV heads, 512 FFN channels, tied embeddings: 4 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=8,
            num_attention_heads=12,
            num_key_value_heads=6,
            head_dim=16,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: Any, tokens: torch.Tensor, steps: int, seed: int, state_file: Path, device: torch.device) -> dict[str, float]:
    """AdamW with a cosine schedule and a new random offset in each epoch; saves its state every 100 steps and resumes from it."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
        print(f"goes on from step {step}")
    started, loss_sum, loss_count, train_loss = time.monotonic(), 0.0, 0, math.nan
    model.train()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * learning_rate_factor(step, steps)
        batch = pick_batch(tokens, step, seed).to(device)
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, loss_sum, loss_count = step + 1, loss_sum + float(loss.detach()), loss_count + 1
        if step % 100 == 0 or step == steps:
            train_loss, elapsed = loss_sum / loss_count, spent + time.monotonic() - started
            print(f"step {step}/{steps}  loss {train_loss:.3f}  {elapsed / step * (steps - step) / 60:.1f} min left", flush=True)
            loss_sum, loss_count = 0.0, 0
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": elapsed}
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    return {"steps": steps, "train_loss": train_loss, "seconds": spent + time.monotonic() - started}


def pick_batch(tokens: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Batch number ``step``, ``[BATCH, WINDOW]``: every window once per epoch, at an offset drawn per epoch."""
    batches_per_epoch = (len(tokens) - WINDOW) // WINDOW // BATCH
    epoch, index = divmod(step, batches_per_epoch)
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    offset = int(torch.randint(WINDOW, (1,), generator=generator))
    order = torch.randperm(batches_per_epoch * BATCH, generator=generator)
    starts = offset + order[index * BATCH : (index + 1) * BATCH] * WINDOW
    return tokens[starts[:, None] + torch.arange(WINDOW)]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps, then a cosine down to 5 %."""
    if step < 100:
        return (step + 1) / 100
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))) / 2


@torch.no_grad()
def measure_perplexity(model: Any, tokens: torch.Tensor, device: torch.device) -> float:
    """exp of the mean NLL over non-overlapping windows of 256 tokens, 255 predictions a window."""
    model.eval()
    windows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    total = 0.0
    for batch in windows.split(32):
        logits = model(batch.to(device), use_cache=False).logits[:, :-1].float()
        total += float(cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten().to(device), reduction="sum"))
    return math.exp(total / (windows.shape[0] * (WINDOW - 1)))


def measure_unigram_perplexity(tokens: torch.Tensor) -> float:
    """The best that any model blind to context can do: the entropy of these very tokens' own frequencies."""
    windows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)[:, 1:].flatten()
    counts = Counter(windows.tolist()).values()
    return math.exp(-sum(c * math.log(c / len(windows)) for c in counts) / len(windows))


def write_model_card(folder: Path, facts: dict[str, Any]) -> None:
    """The card is written from the measured figures, never by hand."""
    rows = "\n".join(f"| {source} | {count:,} |" for source, count in facts["train_characters"].items())
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
pipeline_tag: text-generation
---
# adapruner demo model

A small Llama for trying structured pruning without a GPU or a download: {facts["parameters"]:,} parameters, 8 layers,
width 192, 12 query heads on 6 KV heads, 512 feed-forward channels, vocabulary {facts["vocabulary"]}, tied embeddings.

Trained from random weights by `python benchmarks/train_demo.py --out adapruner/demo/model --steps {facts["steps"]}`
(seed {facts["seed"]}, {facts["seconds"] / 60:.0f} minutes on {facts["hardware"]}) on documentation that comes with Python
{facts["versions"]["python"]} and with adapruner's dependencies; see `adapruner/demo/corpus.py` for how it is read and split.

| source of training text | characters |
|---|---|
{rows}

| held-out documents (split `test`, {facts["test_tokens"]:,} tokens, windows of 256) | perplexity |
|---|---|
| this model, float16 weights | {facts["test_perplexity"]:.2f} |
| unigram, the frequencies of the same tokens | {facts["unigram_perplexity"]:.1f} |

It writes text that looks like Python documentation and knows nothing else. It is a test piece, not an assistant.
The text it learned from is under the licences of the packages named above (PSF, BSD, Apache-2.0).
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=2600, help=f"optimizer steps of {BATCH} x {WINDOW} tokens")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents, held_out = load_demo_corpus("train"), load_demo_corpus("test")
    tokenizer = train_tokenizer(documents, arguments.vocabulary)
    tokens = tokenize(tokenizer, documents)
    model = build_model(tokenizer, arguments.seed).to(device)
    print(f"{model.num_parameters():,} parameters, {len(tokens):,} training tokens, {len(tokens) / BATCH / WINDOW:.0f} steps an epoch")
    state_file = folder / "training-state.pt"
    facts: dict[str, Any] = train(model, tokens, arguments.steps, arguments.seed, state_file, device)
    test_tokens = tokenize(tokenizer, held_out)
    model.half().save_pretrained(folder)  # measured as saved: rounded to float16
    tokenizer.save_pretrained(folder)
    characters = {s: sum(len(d.text) for d in documents if d.source == s) for s in SOURCES}
    facts |= {
        "seed": arguments.seed,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "train_tokens": len(tokens),
        "train_characters": characters,
        "test_tokens": len(test_tokens),
        "test_perplexity": measure_perplexity(model.float(), test_tokens, device),
        "unigram_perplexity": measure_unigram_perplexity(test_tokens),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    write_model_card(folder, facts)
    state_file.unlink()
    print(f"test perplexity {facts['test_perplexity']:.2f}, unigram {facts['unigram_perplexity']:.1f}")


if __name__ == "__main__":
    main()
