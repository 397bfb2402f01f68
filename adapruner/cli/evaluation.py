"""``validate``, ``test`` and ``predict`` on the command line: of a dense, a pruned, a recovered or an exported model.

Lightning's own subcommands know nothing of plans, would print a dictionary, and a CSV logger would delete what ``fit`` logged.
"""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adapruner.callbacks.evaluation_table import EvaluationTableCallback
from adapruner.callbacks.loggers import logger_of_command
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import encode_prompt
from adapruner.export.rebuilding import read_checkpoint
from adapruner.files.atomic import replacing
from adapruner.importance.finiteness import check_weights
from adapruner.models.fingerprint import digest_weights, fingerprint_model
from adapruner.progress import announce, terminal
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.recovery.checkpoint_contents import PLAN_KEY, check_checkpoint

COMMANDS = ("validate", "test", "predict")
PREDICTIONS = "predictions.jsonl"
_NOISE = (".*The dirpath has changed from.*", ".*Experiment logs directory .* exists and is not empty.*", ".*when using .ckpt_path.*")


class EvaluationCommands:
    """What the command line's class does for the three, to stand before ``LightningCLI`` among its bases."""

    command: str
    config: Any
    config_init: Any
    trainer: Any
    model: Any
    datamodule: Any

    def subcommands(self) -> dict[str, set[str]]:
        """The one that is run, and those of its arguments that are no options: we give them, or they would do nothing here."""
        if self.command == "fit":
            return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}
        return {self.command: {"model", "dataloaders", "datamodule", "verbose", "return_predictions"}}

    def instantiate_trainer(self, **options: Any) -> Any:
        """Logs of an evaluation never replace those of ``fit``; a prediction is not logged, and has no bar to draw over its text."""
        if self.command not in COMMANDS:
            return super().instantiate_trainer(**options)  # type: ignore[misc]
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        settings = self.config_init[self.command]["trainer"]
        if self.command == "predict":
            options |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        elif self.command == "validate" and settings.get("limit_val_batches") == 0:  # a configuration's, so that fit does not validate
            options["limit_val_batches"] = 1.0
        trainer = super().instantiate_trainer(**options)  # type: ignore[misc]
        trainer.loggers = [logger_of_command(logger, self.command) for logger in trainer.loggers]
        return trainer

    def validate(self, model: Any, datamodule: Any, **options: Any) -> None:
        """Perplexity on the search split."""
        self._measure("validate", datamodule, options)

    def test(self, model: Any, datamodule: Any, **options: Any) -> None:
        """Perplexity on every held-out set.

        Raises:
            ConfigurationError: if there is none.
        """
        if not datamodule.evaluation:
            raise ConfigurationError("data.evaluation: expected one held-out set or more to test on, got none; give some")
        self._measure("test", datamodule, options)

    def predict(self, model: Any, datamodule: Any, **options: Any) -> None:
        """Continues the prompts on the terminal, token by token, and writes ``predictions.jsonl`` into the run folder.

        Raises:
            ConfigurationError: if there are no prompts, one leaves no room, or there are several processes.
        """
        if not datamodule.prompts:
            raise ConfigurationError("data.prompts: expected a file of prompts, got none; give one with a prompt a line")
        if self.trainer.world_size > 1:
            raise ConfigurationError(f"trainer.devices: expected one for predict, got {self.trainer.world_size}; give --trainer.devices 1")
        words = self._open()
        model.configure_model()
        for prompt in datamodule.prompts:
            encode_prompt(model.model, model.tokenizer, prompt, model.generation.max_new_tokens)
        announce(f"predict: {words}")
        with Continuations(Path(self.trainer.default_root_dir) / PREDICTIONS) as model.listener:
            self.trainer.predict(model, dataloaders=datamodule.predict_dataloader(), return_predictions=False, **self._safe(options))
        announce(f"predictions: {Path(self.trainer.default_root_dir) / PREDICTIONS}")

    def _measure(self, command: str, datamodule: Any, options: dict[str, Any]) -> None:
        words = self._open()
        announce(f"{command}: {words}")
        self.trainer.callbacks.append(EvaluationTableCallback(words))
        getattr(self.trainer, command)(self.model, datamodule=datamodule, verbose=False, **self._safe(options))

    @staticmethod
    def _safe(options: dict[str, Any]) -> dict[str, Any]:
        """No code in a checkpoint is run, Lightning's own of a scheduler's included."""
        return {**options, "weights_only": True}

    def _open(self) -> str:
        """Prunes the model where a plan is given without a checkpoint, which would bring its own; says what is measured.

        Raises:
            ConfigurationError: if plan and checkpoint are of different plans.
            PlanError: if the plan is for another model.
            ModelError: if the checkpoint cannot be read, or a weight is not finite.
        """
        given = next((c.options.plan for c in self.trainer.callbacks if isinstance(c, PruningSearchCallback)), None)
        checkpoint = self.config[self.command].get("ckpt_path")
        if checkpoint is not None and not Path(checkpoint).is_dir():
            return self._describe_checkpoint(Path(checkpoint), given)
        check_checkpoint(checkpoint)
        name = self.model.name_or_path
        self.model.configure_model()
        check_weights(self.model.model)  # before a file is begun; a checkpoint's are looked at when they are there
        if given is not None and self._prune(given):
            zero = ", its output biases zero" if given.output_bias else ""
            return f"{name} pruned by the plan {given.hash}, neither reconstructed nor recovered{zero}"
        exported = self.model.exported
        if exported is None:
            return f"the dense model {name}"
        return f"the export {name} (plan {exported.plan.hash})" if exported.plan is not None else f"{name}, an export trained elsewhere"

    def _describe_checkpoint(self, file: Path, given: PruningPlan | None) -> str:
        record = read_checkpoint(file, "ckpt_path")
        found = read_plan(record[PLAN_KEY])
        if given is not None and given.hash != found.hash:
            raise ConfigurationError(
                f"ckpt_path: expected a checkpoint of the plan {given.hash}, got one of {found.hash}; give one of the two"
            )
        return f"{self.model.name_or_path} as of step {record.get('global_step', 'unknown')} in {file} (plan {found.hash})"

    def _prune(self, plan: PruningPlan) -> bool:
        """Whether there was anything to do: the export of this plan is pruned already."""
        own = None if self.model.exported is None else self.model.exported.plan
        if own is not None and own.hash == plan.hash:
            return False
        self.model.structure = trace_for_plan(self.model.model, plan)
        plan.check(self.model.structure, fingerprint_model(self.model.model), digest_weights(self.model.model))
        self.model.apply_plan(plan)
        return True


class Continuations:
    """Prompts and what the model writes behind them: on the terminal at once, and in a file that is moved into place at the end.

    Args:
        file: one row for each prompt: ``prompt`` and ``continuation``. Where the work is broken off, an earlier one stays.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.console = file, terminal(soft_wrap=True, highlight=False)
        self.prompt, self.pieces = "", [""]
        self._beside = ExitStack()

    def __enter__(self) -> Continuations:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.out = self._beside.enter_context(replacing(self.file)).open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"trainer.default_root_dir: expected a folder to write into, got {self.file.parent} ({error.strerror}); choose another"
            ) from None
        return self

    def __exit__(self, *error: Any) -> None:
        self.out.close()
        self._beside.__exit__(*error)

    def begin(self, prompt: str) -> None:
        """The prompt, to be read on from."""
        self.prompt, self.pieces = prompt, []
        self._show(prompt, "bold")

    def write(self, piece: str) -> None:
        """The next characters."""
        self.pieces.append(piece)
        self._show(piece, "")

    def end(self) -> None:
        """One row of the file."""
        self._show("\n\n", "")
        self.out.write(json.dumps({"prompt": self.prompt, "continuation": "".join(self.pieces)}, ensure_ascii=False) + "\n")
        self.out.flush()

    def _show(self, text: str, style: str) -> None:
        from rich.text import Text

        self.console.print(Text(text, style=style), end="")
        self.console.file.flush()
