"""What the stages cost on a GPU: time and peak memory of scoring, search, refit and recovery, and the speed of what comes out.

    python benchmarks/gpu.py --json gpu.json --shapes llama-7b --model SmolLM2-135M-Instruct.Q4_1.gguf --texts texts.jsonl.gz

Two kinds of cases, each one after the other in one process, on one device:

- ``--shapes``: random weights of a known shape in bfloat16 (what weights are does not change what a stage costs), on random tokens;
- ``--model``: real weights, on ``--texts`` (gzipped lines of ``{"source", "text"}``; the sources of ``--unseen`` are never calibrated or
  trained on), with perplexity at every stage, and the dense model under the same recovery beside it.

``peak_gib`` is the most that the allocator of the device held during a stage, weights included; on a CPU, the most that the process held
so far. ``yardstick`` is the same model's plain forward with a backward pass to the activations at the batch size of the stages, and its
bare forward. Every row is written as soon as it is there: a run that is ended early leaves what it measured.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import itertools
import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import adapruner
from adapruner import stages
from adapruner.evaluation.speed import measure_speed, speed_rows
from adapruner.models.forward import frozen
from adapruner.progress import shown
from adapruner.recovery.training import RecoveryConfig
from adapruner.search.config import RerankConfig

SHAPES = {
    "llama-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000),
    "llama-3-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256
    ),
    "tiny": dict(hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4, vocab_size=256),
}
GIB = 2**30


@dataclass
class Sheet:
    """The rows measured so far, on disk at every moment."""

    file: Path
    device: torch.device
    record: dict[str, Any] = field(default_factory=lambda: {"rows": []})

    def add(self, **row: Any) -> None:
        self.record["rows"].append(row)
        print(json.dumps(row), flush=True)
        self.file.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def stage(self, case: str, stage: str) -> Iterator[dict[str, Any]]:
        """Times the block and takes its peak; what the block puts into the mapping stands in the row too. An error is a row."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        more: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            yield more
        except Exception as error:
            more["error"] = f"{type(error).__name__}: {error}"[:300]
            raise
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.add(case=case, stage=stage, seconds=time.perf_counter() - started, peak_gib=self._peak(), **more)

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / GIB
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def random_model(shape: str, options: argparse.Namespace) -> Any:
    """Random weights, made on the device itself."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=False)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()


def real_model(options: argparse.Namespace) -> tuple[Any, Any]:
    model, tokenizer = stages.load_model(options.model)
    return model.to(device=options.device, dtype=getattr(torch, options.dtype)).eval(), tokenizer


def yardstick(model: Any, ids: Tensor, sheet: Sheet, case: str) -> None:
    """The plain passes over the same windows that scoring takes, at the same batch size."""
    for name, backward in (("bare forward", False), ("forward and activation backward", True)):
        for attempt in ("warm-up", "timed"):
            windows = ids[:8] if attempt == "warm-up" else ids
            with sheet.stage(case, name if attempt == "timed" else f"{name}, warm-up"), frozen(model), torch.set_grad_enabled(backward):
                for batch in windows.to(model.device).split(8):
                    embedded = model.get_input_embeddings()(batch).detach().requires_grad_(backward)
                    loss = model(inputs_embeds=embedded, labels=batch, use_cache=False).loss
                    if backward:
                        loss.backward()


def run_stages(model: Any, windows: Any, budget: float, options: argparse.Namespace, sheet: Sheet, case: str) -> Any:
    """Score, search and refit, with the default metrics; the model is pruned in place."""
    search = adapruner.SearchConfig(n_trials=options.trials, rerank=RerankConfig(candidates=2), random_sets=0)
    with sheet.stage(case, "score"):
        scored = stages.score(model, calibration=windows, budget=budget, search=search)
    ends = [time.perf_counter()]
    with sheet.stage(case, "search") as row:
        found = stages.search(scored, on_trial=lambda *_: ends.append(time.perf_counter()))
        took = sorted(end - start for start, end in itertools.pairwise(ends))
        row.update(
            trials=len(took),
            seconds_per_trial=took[len(took) // 2] if took else None,
            refit_in_trials=None if scored.refit is None else asdict(scored.refit),
        )
    with sheet.stage(case, "reconstruct") as row:
        pruned = stages.reconstruct(scored, found)
        row.update(plan=found.plan.hash, pruned_fraction=found.plan.pruned_fraction)
    return pruned


def run_shape(shape: str, options: argparse.Namespace, sheet: Sheet) -> None:
    torch.manual_seed(0)
    with sheet.stage(shape, "build"):
        model = random_model(shape, options)
    ids = torch.randint(model.config.vocab_size, (options.windows, options.seq_len))
    yardstick(model, ids, sheet, shape)
    run_stages(model, ids, options.fractions[0], options, sheet, shape)
    with sheet.stage(shape, "recover") as row:
        tokens = options.shape_recovery_steps * 8 * options.seq_len
        stages.recover(model, texts=ids, recovery=RecoveryConfig(steps=options.shape_recovery_steps))
        row.update(tokens=tokens)
    speed(shape, random_model(shape, options), model, options, sheet)


def speed(case: str, dense: Any, pruned: Any, options: argparse.Namespace, sheet: Sheet) -> None:
    """Tokens per second, dense and pruned in turns, and the ideal: the ratio of multiply-accumulates."""
    with sheet.stage(case, "speed") as row:
        points = measure_speed({"dense": dense, "pruned": pruned}, batches=(1, 8), seq_lens=(128, options.seq_len), repeats=5)
        row.update(points=speed_rows(points))


def read_windows(options: argparse.Namespace, tokenizer: Any) -> dict[str, Tensor]:
    """``[n, seq_len]`` token windows of every source, documents joined by the end of text."""
    texts: dict[str, list[str]] = defaultdict(list)
    with gzip.open(options.texts, "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            texts[item["source"]].append(item["text"])
    found = {}
    for source, documents in texts.items():
        ids = [token for row in tokenizer(documents, verbose=False)["input_ids"] for token in (*row, tokenizer.eos_token_id)]
        count = len(ids) // options.seq_len
        found[source] = torch.tensor(ids[: count * options.seq_len]).view(count, options.seq_len)
    return found


def run_real(options: argparse.Namespace, sheet: Sheet) -> None:
    case = Path(options.model).stem
    with sheet.stage(case, "load"):
        model, tokenizer = real_model(options)
    windows = read_windows(options, tokenizer)
    held_out = {name: rows[-options.held_out :] for name, rows in windows.items()}
    seen = {name: rows[: -options.held_out] for name, rows in windows.items() if name not in options.unseen}
    calibration = {name: spread(rows, options.windows) for name, rows in seen.items()}
    training = torch.cat(list(seen.values()))
    training = training[torch.randperm(len(training), generator=torch.Generator().manual_seed(0))]
    measure = PerplexityRows(sheet, case, held_out, options.unseen)
    yardstick(model, torch.cat(list(calibration.values())), sheet, case)
    measure(model, "dense", 0.0)
    recover(model, training, options, sheet, f"{case} dense")
    measure(model, "dense recovered", 0.0)
    for fraction in options.fractions:
        model, _ = real_model(options)
        run_stages(model, calibration, fraction, options, sheet, f"{case} {fraction}")
        measure(model, "reconstructed", fraction)
        speed(f"{case} {fraction}", real_model(options)[0], model, options, sheet)
        recover(model, training, options, sheet, f"{case} {fraction}")
        measure(model, "recovered", fraction)


def spread(rows: Tensor, count: int) -> Tensor:
    """That many rows, evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]


def recover(model: Any, training: Tensor, options: argparse.Namespace, sheet: Sheet, case: str) -> None:
    batch = 16
    steps = max(1, min(options.recovery_tokens // (batch * options.seq_len), len(training) // batch))
    with sheet.stage(case, "recover") as row:
        config = RecoveryConfig(steps=steps, batch_size=batch, learning_rate=options.learning_rate, warmup_steps=min(20, steps - 1))
        stages.recover(model, texts=training[: steps * batch], recovery=config)
        row.update(tokens=steps * batch * options.seq_len, learning_rate=options.learning_rate, rank=config.lora.r)


@dataclass
class PerplexityRows:
    """Perplexity of a stage on the held-out windows of every source."""

    sheet: Sheet
    case: str
    held_out: dict[str, Tensor]
    unseen: list[str]

    def __call__(self, model: Any, stage: str, fraction: float) -> None:
        with self.sheet.stage(f"{self.case} {fraction}", f"evaluate {stage}") as row:
            found = stages.evaluate(model, texts=self.held_out, batch_size=8).perplexity
            row.update(perplexity={f"{name}{'*' if name in self.unseen else ''}": value for (name, _), value in found.items()})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--shapes", nargs="*", default=[], choices=list(SHAPES), help="random weights of these shapes")
    parser.add_argument("--model", help="real weights: a folder, a hub name or a GGUF file")
    parser.add_argument("--texts", type=Path, help="gzipped lines of {source, text}, with --model")
    parser.add_argument("--unseen", nargs="*", default=[], help="sources that nothing is calibrated or trained on")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.2], help="of the block parameters, to remove")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--windows", type=int, default=64, help="calibration windows, of each source")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens in a window")
    parser.add_argument("--held-out", type=int, default=64, help="held-out windows of each source")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--recovery-tokens", type=int, default=3_000_000)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--shape-recovery-steps", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    sheet = Sheet(options.json, device)
    sheet.record.update(
        device=torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        torch=torch.__version__,
        options={key: str(value) for key, value in vars(options).items()},
    )
    with shown(False):
        if options.model:
            run_real(options, sheet)
        for shape in options.shapes:
            run_shape(shape, options, sheet)


if __name__ == "__main__":
    main()
