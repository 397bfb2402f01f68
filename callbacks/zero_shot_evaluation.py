"""Scores the dense, the pruned and the recovered model on zero-shot tasks, and whatever model ``test`` is given."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.argument_checks import typed_as
from adapruner.callbacks.evaluation_table import EvaluationTableCallback
from adapruner.callbacks.listener import PruningListener, first_of
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import ConfigurationError
from adapruner.evaluation.zero_shot import TaskScore, ZeroShotTasks, describe_zero_shot, load_tasks, score_tasks
from adapruner.models.model_attribute import held_model
from adapruner.progress import announce
from adapruner.stage_times import stage


class ZeroShotEvaluationCallback(PruningListener):
    """Zero-shot tasks by lm-eval (``pip install adapruner[eval]``): what ``fit`` makes of them is in the report, ``test`` prints them.

    Put it after :class:`LoRARecoveryCallback` in the list, so that the recovered model is scored with its adapters merged. All
    ranks score, each its share of the documents. The module must have a ``tokenizer``.

    Args:
        tasks: names of tasks or groups of lm-eval or of ``task_folder``; ``seven`` stands for BoolQ, PIQA, HellaSwag, WinoGrande,
            ARC-easy, ARC-challenge and OpenBookQA. Empty: nothing is scored.
        limit: only the first so many documents of each task.
        num_fewshot: solved examples before each question; the tasks' own number, most often 0, when empty.
        batch_size: requests in one forward pass.
        task_folder: a folder with task files (YAML) of one's own.
        dense: score the dense model too.
        model_attribute: the module's attribute that holds the language model, such as ``model`` or ``net.lm``.

    >>> ZeroShotEvaluationCallback(["piqa"], limit=100).tasks
    ['piqa']
    """

    @typed_as("zero_shot.")
    def __init__(
        self,
        tasks: list[str] | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 8,
        task_folder: str | None = None,
        dense: bool = True,
        model_attribute: str = "model",
    ) -> None:
        super().__init__()
        for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigurationError(f"zero_shot.{name}: expected 1 or more, got {value}; give a positive number")
        self.tasks, self.limit, self.num_fewshot, self.batch_size = list(tasks or []), limit, num_fewshot, batch_size
        self.task_folder, self.dense, self.model_attribute = task_folder, dense, model_attribute
        self.scores: dict[str, list[TaskScore]] = {}
        """Scores of ``fit`` by stage, in the order in which the stages were scored."""
        self.tested: list[TaskScore] = []
        """Scores of the last ``test``."""
        self._loaded: ZeroShotTasks | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the tasks at the start of ``fit`` and ``test``."""
        if stage in ("fit", "test"):
            self.check_before_search(trainer)

    def check_before_search(self, trainer: Trainer) -> None:
        """Reads the tasks: a missing package, task or download is refused before the hours of work, not after."""
        if self.tasks and self._loaded is None:
            if getattr(trainer.lightning_module, "tokenizer", None) is None:
                got = type(trainer.lightning_module).__name__
                raise ConfigurationError(f"zero_shot.tasks: expected a module with a tokenizer, got {got} without one; give it one")
            self._loaded = load_tasks(self.tasks, self.task_folder, self.num_fewshot)

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
        """Scores the model at ``dense``, and after the surgery; on all ranks."""
        if stage != "dense" or self.dense:
            self._score(pl_module, pruning.model_attribute, stage)

    def knows_stage(self, trainer: Trainer, stage: str) -> bool:
        """Whether the model need not be brought to this stage for its scores."""
        return not self.tasks or stage in self.scores

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the recovered model, where there was a recovery."""
        search = first_of(trainer, PruningSearchCallback)
        if search is None or first_of(trainer, LoRARecoveryCallback) is not None:
            self._score(pl_module, self.model_attribute if search is None else search.model_attribute, "recovered")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores whatever model the module holds, says how, and gives ``test/zero_shot/TASK/METRIC`` to the Trainer's loggers."""
        if self._loaded is None:
            return
        table = first_of(trainer, EvaluationTableCallback)
        self.tested = self._scores_of(pl_module, self.model_attribute, "the model" if table is None else table.model)
        announce(describe_zero_shot(self.tested, self.limit, self.batch_size))
        values = {f"test/zero_shot/{score.task}/{score.metric}": score.value for score in self.tested if score.value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def report_sections(self, trainer: Trainer) -> dict[str, Any]:
        """The scores of all stages; nothing where nothing was scored."""
        if not self.scores:
            return {}
        rows = [{"stage": stage, **asdict(score)} for stage, scores in self.scores.items() for score in scores]
        everything = [score for scores in self.scores.values() for score in scores]
        return {"zero_shot": {"rows": rows, "protocol": describe_zero_shot(everything, self.limit, self.batch_size)}}

    def _score(self, pl_module: Any, attribute: str, stage: str) -> None:
        if self._loaded is not None:
            self.scores[stage] = self._scores_of(pl_module, attribute, f"the {stage} model")

    @stage("zero-shot tasks")
    def _scores_of(self, pl_module: Any, attribute: str, words: str) -> list[TaskScore]:
        """Scores the module's model, which ``words`` name, and says what came of it."""
        assert self._loaded is not None
        announce(f"scores {words} on {', '.join(self.tasks)}")
        model = held_model(pl_module, attribute, None)
        if model is None:
            got = type(pl_module).__name__
            raise ConfigurationError(f"zero_shot.model_attribute: expected the language model in {got}.{attribute}, got none; name it")
        with isolate_rng():
            scores = score_tasks(model, pl_module.tokenizer, self._loaded, self.limit, self.batch_size)
        announce(f"zero-shot, {words}: {', '.join(_in_words(score) for score in scores if score.value is not None)}")
        return scores


def _in_words(score: TaskScore) -> str:
    """``TASK METRIC VALUE``, and the standard error where there is one."""
    error = "" if score.stderr is None else f" (stderr {score.stderr:.4f})"
    return f"{score.task} {score.metric} {score.value:.4f}{error}"
