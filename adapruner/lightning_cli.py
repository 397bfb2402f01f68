"""Everything but ``compare``: LightningCLI with four named callbacks.

``--pruning``, ``--recovery``, ``--report`` and ``--export`` are options of their own, so that every one is
``--pruning.search.n_trials 8`` and not a place in a list.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.data.data_module import PruningDataModule
from adapruner.errors import ConfigurationError
from adapruner.module import PrunableCausalLM

_EPILOG = (
    "and beside them: adapruner compare runs several methods over budgets and seeds; adapruner export writes a run's model again; "
    "see adapruner compare --help, adapruner export --help"
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


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder, where it belongs, and not into a logger's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the start of ``fit``."""
        if stage == "fit":
            self.check_before_search(trainer)

    def check_before_search(self, trainer: Trainer) -> None:
        """Called by the search before any work, so that a killed run has its configuration; the first rank writes."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".config.yaml.{os.getpid()}.tmp"
            temporary.write_text(self.parser.dump(self.config, skip_none=False))
            temporary.replace(folder / "config.yaml")
        except OSError as error:
            raise ConfigurationError(
                f"trainer.default_root_dir: expected a folder that can be written, got {str(folder)!r} ({error.strerror}); choose another"
            ) from None


class PruningCLI(LightningCLI):
    """LightningCLI over :class:`PrunableCausalLM` and :class:`PruningDataModule`, with the four callbacks as options."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--pruning``, ``--recovery``, ``--report``, ``--export``; in the order in which they must run."""
        parser.add_lightning_class_args(PruningSearchCallback, "pruning")
        parser.add_lightning_class_args(LoRARecoveryCallback, "recovery")
        parser.add_lightning_class_args(CompressionReportCallback, "report")
        parser.add_lightning_class_args(PrunedExportCallback, "export")

    def before_fit(self) -> None:
        """A resumed run takes its plan from the checkpoint it resumes from."""
        checkpoint = self.config.fit.get("ckpt_path")
        for callback in getattr(self.trainer, "callbacks"):  # noqa: B009
            if isinstance(callback, PruningSearchCallback) and checkpoint:
                callback.checkpoint = str(checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters overrule the command line; here the command line counts."""


def build_cli(arguments: list[str]) -> PruningCLI:
    """Parses and runs."""
    return PruningCLI(
        PrunableCausalLM,
        PruningDataModule,
        save_config_callback=SaveRunConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=None if arguments == sys.argv[1:] else arguments,
        # No abbreviations: --model.name would quietly be taken for --model.name_or_path.
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
    options = _parser_options()
    options["exit_on_error"] = False  # subcommands take it from here
    try:
        command_line.__init__(  # type: ignore[misc]
            PrunableCausalLM, PruningDataModule, auto_configure_optimizers=False, args=["fit"], parser_kwargs=options
        )
    except Made:
        return command_line._subcommand_parsers["fit"]
    raise AssertionError("LightningCLI no longer calls parse_arguments")


def check_fit(methods: Mapping[str, Sequence[str]]) -> None:
    """Parses the arguments of each method's ``fit``.

    Raises:
        ConfigurationError: naming the method whose arguments are refused.
    """
    from argparse import ArgumentError

    parser = make_fit_parser()
    for method, arguments in methods.items():
        try:
            parser.parse_args(list(arguments)[1:])
        except ArgumentError as error:
            raise ConfigurationError(f"methods: expected arguments that fit understands, got for {method}: {error}; correct them") from None


def _parser_options() -> dict[str, Any]:
    """No abbreviations: ``--model.name`` would quietly be taken for ``--model.name_or_path``."""
    subcommands = {name: {"allow_abbrev": False} for name in PruningCLI.subcommands()}
    return {"prog": "adapruner", "allow_abbrev": False, "epilog": _EPILOG, **subcommands}
