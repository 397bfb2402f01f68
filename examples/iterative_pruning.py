"""Prune a little, refit, score what is left, prune on: in one go, by ``rounds``, and by a loop of one's own that also trains in between.

    python examples/iterative_pruning.py

takes about two minutes of one core with the demo model: no GPU, no download. Units are scored in a model that is already smaller,
so that what two units have in common is not removed twice. ``rounds=3`` does that in one call and leaves one plan for the dense model; a
loop over exports can do what it likes between two rounds, here some steps of LoRA. Writes runs/iterative_pruning/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import adapruner
from adapruner import stages
from adapruner.demo import texts


def share_of_what_is_left(fraction: float, rounds: int, number: int) -> float:
    """What a round takes of the model before it, where all take as much of the dense one: of 0.45 in three 0.15, 0.176, 0.214."""
    share = fraction / rounds
    return share / (1 - share * (number - 1))


def main() -> None:
    """Prunes three times by the same recipe, and prints what each came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder or a hub name (default: the demo model)")
    parser.add_argument("--fraction", type=float, default=0.45, help="of the attention and FFN parameters, to remove (default: 0.45)")
    parser.add_argument("--rounds", type=int, default=3, help="in how many rounds (default: 3)")
    parser.add_argument("--steps", type=int, default=8, help="of LoRA recovery for each round (default: 8)")
    parser.add_argument("--folder", default="runs/iterative_pruning", help="of the exports (default: runs/iterative_pruning)")
    given = parser.parse_args()

    options = {
        "calibration": texts()["stdlib"],
        "recovery_texts": texts("recovery")["stdlib"],
        "recipe": adapruner.Recipe({"taylor_second": 1.0}),  # the same for all; without one each round would search its own
    }
    in_all, a_round = (
        adapruner.RecoveryConfig(steps=steps, batch_size=4, learning_rate=5e-4) for steps in (given.steps * given.rounds, given.steps)
    )

    at_once = adapruner.prune(given.model, budget=given.fraction, recovery=in_all, **options)
    in_rounds = adapruner.prune(given.model, budget=given.fraction, recovery=in_all, rounds=given.rounds, **options)

    last = given.model
    for number in range(1, given.rounds + 1):  # an export is a model again: it is pruned as if it had never been larger
        share = share_of_what_is_left(given.fraction, given.rounds, number)
        result = adapruner.prune(last, budget=share, recovery=a_round, **options)
        last = str(Path(given.folder) / f"round-{number}")
        result.save(last)

    held_out = {"stdlib": texts("test")["stdlib"][:60]}
    dense, tokenizer = stages.load_model(given.model)
    print(f"{'':32}{'parameters':>12}{'perplexity':>12}")
    for name, model in {
        "dense": dense,
        "at once": at_once.model,
        f"rounds={given.rounds}": in_rounds.model,
        "a loop, trained in each round": adapruner.load(last),
    }.items():
        perplexity = stages.evaluate(model, tokenizer, held_out).perplexity["stdlib", 128]
        print(f"{name:32}{model.num_parameters():12,}{perplexity:12.2f}")


if __name__ == "__main__":
    main()
