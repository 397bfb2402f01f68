"""Zero-shot tasks through EleutherAI's lm-evaluation-harness; the only door of ``lm_eval``, which the extra ``eval`` installs.

The numbers are the harness's own: its task files, prompts, log-likelihoods and standard errors. Here a model that is already
in memory is handed to it, pruned or not, and documents are shared out over the ranks of a running process group.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError, DataError
from adapruner.models.forward import evaluation_mode, input_device

SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The tasks that LLM-Pruner (arXiv 2305.11627) and its successors report. BoolQ and WinoGrande have ``acc`` alone: their
choices do not differ in length, or are not what is scored."""
SEVEN_BY_NAME = "seven"
"""Stands for :data:`SEVEN` in a list of tasks."""
_FEWSHOT_SEED = 1234
"""The harness's own default: the examples shown before each question are the same as from its command line."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    """``acc``, ``acc_norm`` (log-likelihoods divided by the choices' lengths in characters), or what else the task defines."""
    value: float | None
    """In [0, 1] for accuracies; ``None`` where the harness has none."""
    stderr: float | None
    """Standard error of the mean over documents; ``None`` where there is none."""
    documents: int
    shots: int
    """Solved examples before each question."""


@dataclass(frozen=True)
class ZeroShotTasks:
    """Tasks with their documents, read once and scored with any number of models."""

    names: tuple[str, ...]
    loaded: Any
    """``lm_eval.tasks.TaskDict``."""
    num_fewshot: int | None


def check_harness() -> None:
    """Refuses to go on without the harness.

    Raises:
        ConfigurationError: if ``lm_eval`` is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ConfigurationError("zero_shot: expected the package lm_eval, got none installed; pip install adapruner[eval]")


def load_tasks(tasks: Sequence[str] = SEVEN, task_folder: str | Path | None = None, num_fewshot: int | None = None) -> ZeroShotTasks:
    """Finds tasks by name and reads their documents.

    Args:
        tasks: names of tasks or groups of the harness, or of files in ``task_folder``; ``seven`` stands for :data:`SEVEN`.
        task_folder: a folder with task files (YAML) of one's own, which come before the harness's of the same name. A path of
            data in such a file is relative to the working directory.
        num_fewshot: solved examples before each question; ``None`` for the task's own number, most often 0. A task that says 0
            keeps it.

    Raises:
        ConfigurationError: if the harness is missing, a name is unknown or stands twice, the folder has no task, or a number is
            out of range.
        DataError: if the documents cannot be read.
    """
    check_harness()
    names = tuple(name for task in tasks for name in (SEVEN if task == SEVEN_BY_NAME else (task,)))
    if not names or len(set(names)) != len(names):
        raise ConfigurationError(
            f"zero_shot.tasks: expected one or more names, each once, got {', '.join(names) or 'none'}; correct the list"
        )
    if num_fewshot is not None and num_fewshot < 0:
        raise ConfigurationError(f"zero_shot.num_fewshot: expected 0 or more, got {num_fewshot}; give null for the tasks' own")
    with _quiet():
        manager = _task_manager(names, None if task_folder is None else Path(task_folder).expanduser())
        try:
            return ZeroShotTasks(names, manager.load(list(names)), num_fewshot)
        except Exception as error:  # of datasets, its HTTP client, YAML, Jinja, functions in task files: all mean no documents
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"zero_shot.tasks: expected the documents of {', '.join(names)}, got: {reason}; check the network, or give task_folder"
            ) from error


def score_tasks(model: nn.Module, tokenizer: Any, tasks: ZeroShotTasks, limit: int | None = None, batch_size: int = 8) -> list[TaskScore]:
    """Scores a model that is in memory, in evaluation mode without gradients; its mode is restored.

    In a process group every rank must call this, each with the whole model: documents go round the ranks, and all ranks
    return all scores. Sharded models (FSDP) are not for this.

    Args:
        model: a causal language model of Hugging Face's kind, pruned or not; :func:`adapruner.load` reads an exported folder.
        tokenizer: its tokenizer; it is not changed.
        tasks: what :func:`load_tasks` read.
        limit: only the first so many documents of each task.
        batch_size: requests in one forward.

    Raises:
        ConfigurationError: if a number is not positive.
        DataError: if a task has fewer documents than there are ranks.
    """
    for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigurationError(f"zero_shot.{name}: expected a positive integer, got {value}; give 1 or more")
    from lm_eval import evaluate

    ranks = Ranks()
    for name, task in tasks.loaded["tasks"].items():
        documents = min(len(task.eval_docs), limit or len(task.eval_docs))
        if documents < ranks.size:
            raise DataError(
                f"zero_shot.{name}: expected a document for each of {ranks.size} ranks, got {documents}; raise the limit or use fewer ranks"
            )
        _set_shots(task, tasks.num_fewshot)
    with _quiet(), evaluation_mode(model):
        wrapped = _wrap(model, tokenizer, batch_size, ranks)
        found = evaluate(lm=wrapped, task_dict=tasks.loaded, limit=limit, log_samples=False)
    scores: list[TaskScore] = ranks.broadcast(None if found is None else _scores(found))  # the harness gives rank 0 alone its results
    return scores


def describe_zero_shot(scores: Sequence[TaskScore], limit: int | None, batch_size: int) -> str:
    """One sentence that says how tasks were scored, for reports and tables."""
    from importlib.metadata import version

    shots = sorted({score.shots for score in scores})
    said = f"{shots[0]} examples" if len(shots) == 1 else f"{shots[0]} to {shots[-1]} examples"
    which = "all documents of each task" if limit is None else f"the first {limit} documents of each task at most"
    return (
        f"lm-eval {version('lm-eval')}, {said} before a question, {which}, batches of {batch_size}; acc: the likeliest choice is right; "
        "acc_norm: the same with log-likelihoods divided by the choices' lengths in characters"
    )


def _task_manager(names: Sequence[str], folder: Path | None) -> Any:
    """Looks through the harness's own thousands of files only where the folder does not have all names."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        if not folder.is_dir() or not any(folder.glob("**/*.yaml")):
            raise ConfigurationError(
                f"zero_shot.task_folder: expected a folder with .yaml task files, got none in {folder}; correct the path"
            )
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "lm-eval ls tasks lists them"
            raise ConfigurationError(f"zero_shot.tasks: expected a task that lm-eval knows, got {name!r}; {hint}")
    return manager


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """As ``lm_eval.simple_evaluate`` does, with its default seed: again before each model, so that all see the same examples."""
    own = task.get_config("num_fewshot")
    if own != 0 and num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _wrap(model: nn.Module, tokenizer: Any, batch_size: int, ranks: Ranks) -> Any:
    """The harness's own wrapper, which would leave a model in memory to one process, with the ranks."""
    from lm_eval.models.huggingface import HFLM

    class RankedLM(HFLM):
        def all_gather(self, tensor: Tensor) -> Tensor:
            parts = [torch.empty_like(tensor.reshape(-1)) for _ in range(self.world_size)]
            torch.distributed.all_gather(parts, tensor.reshape(-1).contiguous())
            return torch.cat(parts)

        def barrier(self) -> None:
            torch.distributed.barrier()

    plain: type[HFLM] = RankedLM if ranks.size > 1 else HFLM
    # A copy of the tokenizer: the harness gives it a padding token where it has none.
    wrapped = plain(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, backend="causal")
    wrapped._device, wrapped._rank, wrapped._world_size = input_device(model), ranks.rank, ranks.size
    return wrapped


def _scores(found: Any) -> list[TaskScore]:
    """The harness's keys are ``metric,filter`` and ``metric_stderr,filter``; a filter is named where it is not the plain one."""
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            name, stderr = metric if kind == "none" else f"{metric} ({kind})", values.get(f"{metric}_stderr,{kind}")
            shots = found["n-shot"].get(task, 0)
            scores.append(TaskScore(task, name, _number(value), _number(stderr), _documents(found, task), shots))
    return scores


def _documents(found: Any, task: str) -> int:
    """How many documents a task has; for a group, those of all its tasks."""
    counts = found["n-samples"].get(task)
    return int(counts["effective"]) if counts else sum(_documents(found, part) for part in found["group_subtasks"].get(task, ()))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings about what is done here on purpose (a model in memory, task files of one's own) do not help a reader."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
