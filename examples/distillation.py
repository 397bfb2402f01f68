"""The dense model teaches the pruned one: recovery that learns its next-token distributions, beside plain cross entropy, at equal steps.

    python examples/distillation.py

takes about a minute and a half of one core with the demo model: no GPU, no download. What the dense model says of the text is written down
before it is pruned, so that teacher and student are never held at once. ``adapruner.prune(..., recovery=...)`` does all of it by the same
``RecoveryConfig``, the command line by ``--recovery.distillation.weight 0.5``. Writes runs/distillation/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import adapruner
from adapruner import stages
from adapruner.demo import texts

#: What the loss is made of -> the share of the divergence from the dense model in it.
LOSSES = {"cross entropy": 0.0, "half and half": 0.5, "divergence alone": 1.0}

WINDOW = 128


def main() -> None:
    """Prunes once, recovers by each loss, and prints what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder or a hub name (default: the demo model)")
    parser.add_argument("--fraction", type=float, default=0.4, help="of the attention and FFN parameters, to remove (default: 0.4)")
    parser.add_argument("--steps", type=int, default=20, help="of recovery (default: 20)")
    parser.add_argument("--folder", default="runs/distillation", help="of the exports (default: runs/distillation)")
    given = parser.parse_args()
    folder = Path(given.folder)

    recovery_texts = {"stdlib": texts("recovery")["stdlib"][:100]}
    held_out = {name: texts("test")[name][:60] for name in ("stdlib", "numpy")}  # numpy: nobody is calibrated or trained on it
    forms = {
        name: adapruner.RecoveryConfig(steps=given.steps, learning_rate=1e-3, distillation=adapruner.DistillationConfig(weight=weight))
        for name, weight in LOSSES.items()
    }

    model, tokenizer = stages.load_model(given.model)
    measured = {"dense": stages.evaluate(model, tokenizer, held_out).perplexity}
    taught = {
        name: stages.teach(model, tokenizer, recovery_texts, form, seq_len=WINDOW) for name, form in forms.items() if form.distillation
    }

    recipe = adapruner.Recipe({"taylor_second": 1.0})  # without it the units would be searched
    pruned = adapruner.prune(model, tokenizer, {"stdlib": texts()["stdlib"]}, given.fraction, recipe=recipe)
    measured["pruned and refitted"] = stages.evaluate(pruned.model, tokenizer, held_out).perplexity
    pruned.save(folder / "before")

    for name, form in forms.items():
        student = adapruner.load(folder / "before")  # each begins with the same weights, and sees the same windows in the same order
        stages.recover(student, tokenizer, recovery_texts, form, seq_len=WINDOW, distillation=taught.get(name))
        measured[name] = stages.evaluate(student, tokenizer, held_out).perplexity
        stages.export(student, folder / name.replace(" ", "-"), tokenizer)

    columns = list(measured["dense"])
    print(f"perplexity{'':14}" + "".join(f"{source:>12}" for source, _ in columns))
    for name, perplexity in measured.items():
        print(f"{name:24}" + "".join(f"{perplexity[column]:12.2f}" for column in columns))


if __name__ == "__main__":
    main()
