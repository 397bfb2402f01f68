"""The calibration samples that chose the units, written beside the plan."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

from adapruner.data.calibration_set import CalibrationSample, make_set, read_set
from adapruner.data.run_data import RunData
from adapruner.data.windows import TextWindows
from adapruner.distributed import is_rank_zero
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.recovery.post_pruning import recipe_of

CALIBRATION_SET = "calibration_set.json"

#: Samples that a report shows, and characters of each.
SHOWN, EXCERPT = 5, 160


def write_chosen_set(tokenizer: Any, data: RunData, problem: PruningProblem, plan: PruningPlan, folder: Path) -> None:
    """The samples with their text and weights, ready for another run or another model; on rank zero alone.

    Nothing is written where there is no tokenizer, or the windows do not know where their text is from.
    """
    if tokenizer is None or not is_rank_zero():
        return
    choice = recipe_of(plan).calibration
    windows = data.calibration_windows if choice.seq_len is None else data.calibration_windows_at[choice.seq_len]
    if not isinstance(windows, TextWindows):
        return
    weights = problem.at_length(choice.seq_len)[1].sample_weights(choice)
    chosen = make_set(windows, tokenizer, weights, model_name=problem.model_name, model_fingerprint=problem.fingerprint)
    chosen.write(folder / CALIBRATION_SET)


def heaviest_samples(file: Path) -> list[dict[str, Any]]:
    """Samples of a set by falling weight: ``id``, ``source``, ``weight`` (of 1) and how the ``text`` begins.

    Those of one source that weigh the same stand behind the first of them, which says how many they are (``alike``, itself counted).
    """
    chosen = read_set(file)
    groups: dict[tuple[str, float], list[CalibrationSample]] = {}
    for weight, sample in zip(chosen.weights.tolist(), chosen.samples, strict=True):
        groups.setdefault((sample.source, round(weight, 9)), []).append(sample)
    ranked = sorted(groups.items(), key=lambda item: (-item[0][1], item[1][0].id))[:SHOWN]
    return [
        {"id": s[0].id, "source": source, "weight": weight, "alike": len(s), "text": shorten(s[0].text, EXCERPT, placeholder=" ...")}
        for (source, weight), s in ranked
    ]
