"""The command line: ``python train.py`` and ``adapruner`` are this program.

LightningCLI with four named callbacks, ``--pruning``, ``--recovery``, ``--report`` and ``--export``, so that every option is
``--pruning.search.n_trials 8`` and not a place in a list. A bare configuration name is looked up in the working directory,
then among the shipped ``configs/``.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.data.data_module import PruningDataModule
from adapruner.errors import AdaPrunerError, ConfigurationError, nearest
from adapruner.module import PrunableCausalLM

CONFIGS = Path(__file__).parent / "configs"
_CONFIG_FLAGS = ("--config", "-c")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; an :class:`AdaPrunerError` becomes one line on stderr and exit code 2."""
    try:
        found = find_configs(sys.argv[1:] if arguments is None else arguments)
        _quiet_libraries()
        build_cli(found)
    except AdaPrunerError as error:
        print(f"adapruner: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def find_configs(arguments: list[str]) -> list[str]:
    """The arguments with every ``--config NAME`` that is not a file replaced by the shipped file of that name.

    ``sys.argv`` itself stays as it is: ddp starts its other processes from it.

    Raises:
        ConfigurationError: if there is neither a file nor a shipped configuration of that name.
    """
    result = list(arguments)
    for position, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            continue
        if separator:
            result[position] = f"{flag}={_find_config(value)}"
        elif position + 1 < len(arguments):
            result[position + 1] = _find_config(arguments[position + 1])
    return result


def shipped_configs() -> dict[str, Path]:
    """Name (``quickstart.yaml``, ``baselines/l2.yaml``) -> file."""
    folder = CONFIGS.resolve()
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def _find_config(name: str) -> str:
    if Path(name).exists() or "{" in name or "\n" in name:  # a file, or YAML itself
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ConfigurationError(f"--config: expected a file, or the name of a shipped configuration, got {name!r}; {nearest(name, shipped)}")


def _quiet_libraries() -> None:
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
        parser_kwargs={"prog": "adapruner", "allow_abbrev": False, **{name: {"allow_abbrev": False} for name in PruningCLI.subcommands()}},
    )
