"""Prune a chat model on conversations: they are written by its own chat template, and only what the assistant says is counted.

    python examples/chat_model.py

The demo model is no chat model; here it gets a template, and conversations made of documentation, so that the program runs anywhere. With a
model of yours (--model folder) and a file of rows with ``messages`` (--conversations file.jsonl) it is the real thing. Writes
runs/chat_model/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import adapruner
from adapruner import stages
from adapruner.demo import texts

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
Conversation = list[dict[str, str]]


def conversations(file: Path | None, split: str) -> list[Conversation]:
    """One list of messages for each row of the file; without one, questions that documentation answers."""
    if file is not None:
        rows = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        held_out = [row for number, row in enumerate(rows) if number % 10 == 0]
        return held_out if split == "test" else [row for number, row in enumerate(rows) if number % 10]
    found = []
    for text in texts(split)["stdlib"]:
        question, _, answer = text.strip().partition("\n")
        if answer.strip():
            found.append([{"role": "user", "content": f"What is {question}?"}, {"role": "assistant", "content": answer.strip()}])
    return found


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """What the model says, greedily."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    told = model.generate(**asked, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(told[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Prunes, recovers, asks and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder or a hub name (default: the demo model)")
    parser.add_argument("--conversations", type=Path, help="a .jsonl file with messages in each row (default: made of documentation)")
    parser.add_argument("--fraction", type=float, default=0.2, help="of the attention and FFN parameters, to remove (default: 0.2)")
    parser.add_argument("--trials", type=int, default=32, help="of the search (default: 32)")
    parser.add_argument("--steps", type=int, default=40, help="of LoRA recovery (default: 40)")
    parser.add_argument("--folder", default="runs/chat_model", help="of the run (default: runs/chat_model)")
    given = parser.parse_args()

    model, tokenizer = stages.load_model(given.model)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    result = adapruner.prune(
        model,
        tokenizer,
        calibration=conversations(given.conversations, "calibration"),
        budget=given.fraction,
        search=adapruner.SearchConfig(n_trials=given.trials, random_sets=0),
        recovery=given.steps,
        recovery_texts=conversations(given.conversations, "recovery"),
        evaluation=conversations(given.conversations, "test"),
        folder=given.folder,
    )
    for row in result.perplexity:
        print(f"{row['stage']}: perplexity {row['value']:.2f} of the answers")
    print(answer(result.model, tokenizer, "What is a list?"))
    result.save(f"{given.folder}/model")


if __name__ == "__main__":
    main()
