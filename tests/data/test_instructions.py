from __future__ import annotations

from adapruner.data.instructions import render


def test_template_with_input() -> None:
    prompt, text = render({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
    )
    assert text == prompt + "3"


def test_template_without_input_for_missing_and_empty_input() -> None:
    prompt, text = render({"instruction": "Say {output}.", "output": "hi"})
    assert prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay {output}.\n\n### Response:\n"
    )
    assert (prompt, text) == render({"instruction": "Say {output}.", "input": "", "output": "hi"})
