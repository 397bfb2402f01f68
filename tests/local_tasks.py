"""Two tiny multiple-choice tasks for lm-eval, as files: random words that the tokenizer of :mod:`tests.tiny` knows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

QUESTIONS, COLOURS = "tiny_questions", "tiny_colours"

_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, validation: {folder}/{name}.jsonl}}
output_type: multiple_choice
training_split: train
validation_split: validation
doc_to_text: "{prompt}"
doc_to_target: label
doc_to_choice: choices
metric_list:
{metrics}
metadata: {{version: 1.0}}
"""
_METRIC = "  - {{metric: {0}, aggregation: mean, higher_is_better: true}}"


def write_tasks(folder: Path, documents: int = 23) -> Path:
    """``tiny_questions`` has ``acc`` and ``acc_norm`` over choices of different lengths, ``tiny_colours`` ``acc`` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    rows(folder / "train.jsonl", 9, seed=3, longest=2)
    for name, metrics, prompt, longest, seed in (
        (QUESTIONS, ("acc", "acc_norm"), "{{question}}", 5, 1),
        (COLOURS, ("acc",), "w1 {{question}} w2", 1, 2),
    ):
        rows(folder / f"{name}.jsonl", documents, seed, longest)
        said = "\n".join(_METRIC.format(metric) for metric in metrics)
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, folder=folder, prompt=prompt, metrics=said))
    return folder


def rows(file: Path, count: int, seed: int, longest: int) -> None:
    """Questions of eight words, four choices of up to ``longest`` words each."""
    draw = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(92)}" for _ in range(number))

    made: list[dict[str, Any]] = [
        {"question": words(8), "choices": [words(draw.randint(1, longest)) for _ in range(4)], "label": draw.randrange(4)}
        for _ in range(count)
    ]
    file.write_text("\n".join(json.dumps(row) for row in made))
