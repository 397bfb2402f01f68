"""The Alpaca template, by which instruction rows become one text.

Source: Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model" (2023),
https://github.com/tatsu-lab/stanford_alpaca. The final newline after ``### Response:`` is that of alpaca-lora, whose
template LLM-Pruner (arXiv 2305.11627) uses for its recovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
#: What a row must have; ``input`` may be missing or empty.
REQUIRED_COLUMNS = ("instruction", "output")


def render(row: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt of one row, and the prompt followed by the row's ``output``.

    >>> prompt, text = render({"instruction": "Add 1 and 2.", "output": "3"})
    >>> text.removeprefix(prompt)
    '3'
    """
    template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    prompt = template.format(instruction=row["instruction"], input=row.get("input"))
    return prompt, prompt + row["output"]
