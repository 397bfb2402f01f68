"""Everything but ``compare``: LightningCLI with five named callbacks.

``--pruning``, ``--recovery``, ``--checkpoint``, ``--report`` and ``--export`` are options of their own, so that every one is
``--pruning.search.n_trials 8`` and not a place in a list.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback, _InstantiatorFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.listener import PruningListener
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_checkpoint import FILE, RecoveryCheckpointCallback, find_checkpoint, settings_of, writes_shards
from adapruner.callbacks.validation import check_callbacks, check_launcher, no_empty_folders
from adapruner.callbacks.zero_shot_evaluation import ZeroShotEvaluationCallback
from adapruner.cli.arguments import Refusals, collecting, make_plainly, one_line, refused
from adapruner.cli.evaluation import EvaluationCommands
from adapruner.data_module import PruningDataModule
from adapruner.errors import ConfigurationError, together
from adapruner.export.exported import check_can_be_pruned
from adapruner.files.atomic import clear_leftovers, write_atomically
from adapruner.files.folder_lock import check_folder
from adapruner.module import PrunableCausalLM
from adapruner.progress import announce

_EPILOG = (
    "and beside them: adapruner compare runs several methods over budgets and seeds; adapruner export writes a run's model again; "
    "adapruner inspect prints a run's plan and results; see adapruner compare --help, adapruner export --help, adapruner inspect --help"
)


def quiet_libraries() -> None:
    """Their start-up chatter would bury the few lines a user should read."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    for name in ("lightning.pytorch", "lightning.fabric"):  # device lists and advertisements; warnings stay
        logging.getLogger(name).setLevel(logging.WARNING)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class SaveRunConfig(SaveConfigCallback, PruningListener):
    """Writes ``config.yaml`` into the run folder, where it belongs, and not into a logger's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the start of ``fit``."""
        if stage == "fit":
            self.on_search_accepted(trainer)

    def on_search_accepted(self, trainer: Trainer) -> None:
        """Called by the search once nothing is left to refuse, so that a killed run has its configuration; the first rank writes."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", self.parser.dump(self.config, skip_none=False))
        except OSError as error:
            raise ConfigurationError(
                f"trainer.default_root_dir: expected a folder that can be written, got {str(folder)!r} ({error.strerror}); choose another"
            ) from None


class PruningCLI(EvaluationCommands, LightningCLI):
    """LightningCLI over :class:`PrunableCausalLM` and :class:`PruningDataModule`, with the five callbacks as options."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--pruning``, ``--recovery``, ``--checkpoint``, ``--report``, ``--export``; in the order in which they must run."""
        parser.add_lightning_class_args(PruningSearchCallback, "pruning")
        parser.add_lightning_class_args(LoRARecoveryCallback, "recovery")
        parser.add_lightning_class_args(RecoveryCheckpointCallback, "checkpoint")
        parser.add_lightning_class_args(ZeroShotEvaluationCallback, "zero_shot")
        parser.add_lightning_class_args(CompressionReportCallback, "report")
        parser.add_lightning_class_args(PrunedExportCallback, "export")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """What the parser refuses is one line, with the nearest option."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            words = sys.argv[1:] if args is None else args
            command = next((word for word in words if word in self._subcommand_parsers), "fit")
            known = {action.dest for action in self._subcommand_parsers[command]._actions}
            raise refused(str(error), known, command) from None

    def _add_instantiators(self) -> None:
        """As Lightning has them, but one that refuses its options does not keep the others from refusing theirs."""
        self._refusals = Refusals()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Lightning itself calls what the parser deprecates
            for key, kind in (("model", LightningModule), ("data", LightningDataModule)):
                self.parser.add_instantiator(collecting(_InstantiatorFn(cli=self, key=key), self._refusals), kind)
            self.parser.add_instantiator(collecting(make_plainly, self._refusals), object)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Behind the sections: what these refused is raised here; the Trainer's own refusals become one line."""
        if self._refusals:
            raise together(self._refusals)
        self._refusals.closed = True
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        named = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        check_callbacks([*(given if isinstance(given, list) else [given]), *named])
        with one_line("trainer", (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)):
            return super().instantiate_trainer(**kwargs)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """``Trainer.fit``; what is refused leaves no folder behind."""
        check_can_be_pruned(getattr(model, "source", ""))
        folder = Path(self.trainer.default_root_dir)
        with no_empty_folders(folder), one_line("trainer", (MisconfigurationException,)):
            check_folder(folder)  # loggers are about to make theirs in it
            self.trainer.fit(model, **options)

    def before_fit(self) -> None:
        """A run takes its plan from the checkpoint that it is told to resume from, or goes on from its folder's last one."""
        check_launcher(self.trainer)  # one that copies the process would fail before any callback is asked
        checkpoint = self.config.fit.get("ckpt_path")
        for callback in getattr(self.trainer, "callbacks"):  # noqa: B009
            if isinstance(callback, PruningSearchCallback) and checkpoint:
                callback.checkpoint = str(checkpoint)
            if isinstance(callback, RecoveryCheckpointCallback):
                callback.settings = settings_of(self.config.fit.as_dict())
                if callback.resume and not checkpoint:
                    self._go_on(self._last_checkpoint(callback.settings))

    def _last_checkpoint(self, settings: dict[str, str]) -> Path | None:
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and (folder / FILE).parent.is_dir():
            clear_leftovers((folder / FILE).parent)  # a kill may have left it beside its place
        return find_checkpoint(folder, settings, writes_shards(self.trainer))

    def _go_on(self, checkpoint: Path | None) -> None:
        """The plan comes from the study, as before the run was ended; the weights from here."""
        if checkpoint is not None:
            announce(f"recovery goes on from {checkpoint}")
            self.config_init.fit["ckpt_path"] = str(checkpoint)
            for callback in getattr(self.trainer, "callbacks"):  # noqa: B009
                if isinstance(callback, PruningSearchCallback):
                    callback.weights_follow = True

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """Lightning refuses a callback that keeps checkpoints where the Trainer is told to keep none."""
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, RecoveryCheckpointCallback)]
        return super()._instantiate_trainer(config, callbacks)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters overrule the command line; here the command line counts."""


def build_cli(arguments: list[str]) -> PruningCLI:
    """Parses and runs. A run that a scheduler ends says so, with the exit code of a process that SIGTERM ended."""
    try:
        return _build_cli(arguments)
    except SIGTERMException:  # a SystemExit without a code: it would pass for success
        announce("ended by SIGTERM, its last step kept; the same command goes on from there")
        raise SystemExit(128 + signal.SIGTERM) from None


def _build_cli(arguments: list[str]) -> PruningCLI:
    return PruningCLI(
        PrunableCausalLM,
        PruningDataModule,
        save_config_callback=SaveRunConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=None if arguments == sys.argv[1:] else arguments,
        parser_kwargs=_parser_options(),
    )


def make_fit_parser() -> Any:
    """The parser of ``fit``; nothing is instantiated or run. What it refuses, it raises as an ``ArgumentError``."""

    class Made(Exception):
        pass

    class ParserOnly(PruningCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            raise Made

    command_line = ParserOnly.__new__(ParserOnly)
    try:
        command_line.__init__(  # type: ignore[misc]
            PrunableCausalLM, PruningDataModule, auto_configure_optimizers=False, args=["fit"], parser_kwargs=_parser_options()
        )
    except Made:
        return command_line._subcommand_parsers["fit"]
    raise AssertionError("LightningCLI no longer calls parse_arguments")


def check_fit(methods: Mapping[str, Sequence[str]]) -> None:
    """Parses the arguments of each method's ``fit``.

    Raises:
        ConfigurationError: naming the method whose arguments are refused.
    """
    parser = make_fit_parser()
    for method, arguments in methods.items():
        try:
            parser.parse_args(list(arguments)[1:])
        except ArgumentError as error:
            reason = refused(str(error), {action.dest for action in parser._actions})
            raise ConfigurationError(f"methods: expected arguments that fit understands, got for {method}: {reason}") from None


def _parser_options() -> dict[str, Any]:
    """No abbreviations: ``--model.name`` would quietly be taken for ``--model.name_or_path``. Errors are raised, to be made one line."""
    subcommands = {name: {"allow_abbrev": False} for name in PruningCLI.subcommands()}
    return {"prog": "adapruner", "allow_abbrev": False, "exit_on_error": False, "epilog": _EPILOG, **subcommands}
