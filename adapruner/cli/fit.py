"""``fit``, and the options that it shares with ``validate``, ``test`` and ``predict``: LightningCLI with named callbacks.

``--pruning``, ``--recovery``, ``--checkpoint``, ``--zero_shot``, ``--report`` and ``--export`` are options of their own, so that every
one is ``--pruning.search.n_trials 8`` and not a place in a list.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback, _InstantiatorFn
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.listener import PruningListener, check_callbacks, first_of
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_bar import RecoveryBar
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback, writes_shards
from adapruner.callbacks.validation import check_launcher, check_processes
from adapruner.callbacks.zero_shot_evaluation import ZeroShotEvaluationCallback
from adapruner.cli.evaluation import EvaluationCommands
from adapruner.cli.help_page import COMMANDS
from adapruner.cli.imports import take_imports
from adapruner.cli.instantiation import Instantiation, make_plainly, one_line
from adapruner.cli.parsing import parse
from adapruner.cli.shipped_configs import find_configs
from adapruner.data_module import PruningDataModule
from adapruner.errors import ConfigurationError
from adapruner.export.base_model import place_of_model
from adapruner.export.run_folder import CONFIG_FILE, CONFIG_NOTE
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import seal_lines
from adapruner.files.folder_lock import FolderLock, held
from adapruner.module import PrunableCausalLM
from adapruner.progress import announce
from adapruner.recovery.checkpoint_file import check_is_local
from adapruner.recovery.last_checkpoint import find_checkpoint, settings_of
from adapruner.search.before_loading import check_budget_before_loading
from adapruner.stage_times import process_began
from adapruner.threads import choose_threads

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the help has them

#: Group of options -> the callback that they make, in the order in which they must run.
STAGES = {
    "pruning": PruningSearchCallback,
    "recovery": LoRARecoveryCallback,
    "checkpoint": RecoveryCheckpointCallback,
    "zero_shot": ZeroShotEvaluationCallback,
    "report": CompressionReportCallback,
    "export": PrunedExportCallback,
}
#: Those that ``null`` leaves out.
OPTIONAL_STAGES = tuple(name for name in STAGES if name != "pruning")
#: Options of callbacks that only Python can give.
_NOT_OPTIONS = {"pruning": {"calibration", "tokenizer", "evaluation"}, "recovery": {"held_out"}}


class SaveRunConfig(SaveConfigCallback, PruningListener):
    """Writes ``config.yaml`` into the run folder, where it belongs, and not into a logger's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the start of ``fit``."""
        if stage == "fit":
            self.on_search_accepted(trainer)

    def on_search_accepted(self, trainer: Trainer) -> None:
        """Before the search's work, so that a killed run has its configuration; the first rank writes."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        place = place_of_model(str(getattr(trainer.lightning_module, "name_or_path", "")), folder)
        text = place + self.parser.dump(self.config, skip_unset=False)
        write_atomically(folder / CONFIG_FILE, seal_lines(text, CONFIG_NOTE))


class PruningCLI(EvaluationCommands, LightningCLI):
    """LightningCLI over :class:`PrunableCausalLM` and :class:`PruningDataModule`, with the callbacks of :data:`STAGES` as options.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``; only its options are looked up, which takes a while.
        words: what stands behind it on the command line.
    """

    def __init__(self, command: str, words: Sequence[str]) -> None:
        self.command, self.words = command, _nulls_as_configurations(find_configs(list(words)))
        self.left_out: set[str] = set()
        self.making = Instantiation()
        what = f"{command}: {COMMANDS[command]}. --import FILE, which may be repeated, imports metrics, samplers and the like of your own."
        super().__init__(
            PrunableCausalLM,
            PruningDataModule,
            save_config_callback=SaveRunConfig,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            load_from_checkpoint_support=False,  # by instantiate_classes below
            # No abbreviations: --model.name would quietly be taken for --model.name_or_path.
            parser_kwargs={
                "prog": "adapruner",
                "allow_abbrev": False,
                "exit_on_error": False,
                command: {"allow_abbrev": False, "description": what},
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One group of options for each of the callbacks."""
        for name, kind in STAGES.items():
            parser.callback_keys.append(name)
            parser.add_class_arguments(kind, name, fail_untyped=False, sub_configs=True, skip=_NOT_OPTIONS.get(name, set()))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """What is wrong with the options is one line, with the nearest option."""
        own = self._subcommand_parsers[self.command]
        self.config, given = parse(lambda words: parser.parse_args([self.command, *words]), own, self.command, self.words, OPTIONAL_STAGES)
        self._leave_out(given)
        check_is_local(self.config[self.command].get("ckpt_path"))

    def _leave_out(self, given: Mapping[str, Any]) -> None:
        """Notes the stages that are ``null``; without recovery, or without a step of it, nothing is trained."""
        config = self.config[self.command]
        self.left_out = {name for name in OPTIONAL_STAGES if _is_null(name, given)}
        for name in self.left_out:
            config[name] = None
        if self.command == "fit" and config["trainer"]["max_steps"] == 0:
            self.left_out.add("recovery")
        if self.command == "fit" and "recovery" in self.left_out:
            self.left_out.add("checkpoint")
            self._check_without_recovery(config)
        keys = self._parser(self.command).callback_keys
        keys[:] = [name for name in keys if name not in self.left_out]

    @staticmethod
    def _check_without_recovery(config: Any) -> None:
        """Options that a run without recovery could not do anything with."""
        rerank = config["pruning"]["search"]["rerank"]
        asked = {"ckpt_path": config.get("ckpt_path"), "pruning.search.rerank.recovery_steps": rerank and rerank["recovery_steps"]}
        for name, value in asked.items():
            if value:
                raise ConfigurationError(f"{name}: expected none in a run without recovery, got {value}; leave it out, or give recovery")

    def instantiate_classes(self) -> None:
        """Lightning's, but errors of several sections come together, and a stage that is ``null`` is not made of its ``null``."""
        config, make = self.config.clone(), self.making.collecting
        for name in self.left_out:
            config[self.command].pop(name)
        own = {"model": LightningModule, "data": LightningDataModule}
        makers = [(make(_InstantiatorFn(cli=self, key=key)), kind, True) for key, kind in own.items()]  # they note hyperparameters
        self.config_init = self.parser.instantiate(config, instantiators=[*makers, (make(make_plainly), object, True)])
        self.datamodule, self.model = (self._get(self.config_init, key) for key in ("data", "model"))
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Behind the other sections, whose errors are raised here; the Trainer's own become one line."""
        self.making.check()
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        named = [self._get(self.config_init, name) for name in self._parser(self.command).callback_keys]
        callbacks = [*(given if isinstance(given, list) else [given]), *named]
        check_callbacks(callbacks)
        if self.command == "fit" and "recovery" in self.left_out:  # no batches: then the data need not have any
            options |= {"max_steps": 0, "limit_train_batches": 0}
        if "checkpoint" in self.left_out and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            options["enable_checkpointing"] = False  # else Lightning adds a callback of its own
        options |= self._own_logger()
        with one_line("trainer", (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, LookupError)):
            trainer = super().instantiate_trainer(**options)
        check_processes(trainer)
        return trainer

    def _own_logger(self) -> dict[str, Any]:
        """Where none is given, numbers go into the run folder, ``logs/metrics.csv``, wherever that folder is."""
        trainer = self._get(self.config_init, "trainer")
        return (
            {} if trainer.get("logger") is not None else {"logger": CSVLogger(trainer.get("default_root_dir") or ".", "logs", version="")}
        )

    def fit(self, model: LightningModule, **options: Any) -> None:
        """``Trainer.fit`` in a folder that is this process's alone; an error before the work changes nothing in it and leaves none."""
        with ExitStack() as stack:
            search = first_of(self.trainer, PruningSearchCallback)
            if search is not None:
                search.lock, search.began = self._hold(stack, search), process_began()
                stack.enter_context(search.loggers.put_off(self.trainer))
            stack.enter_context(one_line("trainer", (MisconfigurationException,)))
            if self.trainer.strategy.root_device.type == "cpu" and self.trainer.world_size == 1:  # Lightning shares out cores to several
                announce(choose_threads())
            self.trainer.fit(model, **self._safe({**options, **self._go_on(options)}))

    def _hold(self, stack: ExitStack, search: PruningSearchCallback) -> FolderLock | None:
        """The run folder, on the first rank alone: before Lightning, checkpoints of an earlier attempt included."""
        folders = {Path(name).resolve(): Path(name) for name in (self.trainer.default_root_dir, search.folder_name) if name}
        locks = [stack.enter_context(held(folder)) for folder in folders.values()] if self.trainer.is_global_zero else []
        return locks[-1] if locks else None

    def before_fit(self) -> None:
        """A run takes its plan from the checkpoint that it is told to resume from, or goes on from its folder's last one."""
        check_launcher(self.trainer)  # one that copies the process would fail before any callback is asked
        checkpoint, search = self.config.fit.get("ckpt_path"), first_of(self.trainer, PruningSearchCallback)
        if search is not None and not checkpoint:  # which has a plan
            check_budget_before_loading(self.model.name_or_path, search.options, self.model.revision)
        if search is not None and checkpoint:
            search.checkpoint = str(checkpoint)
        keeper = first_of(self.trainer, RecoveryCheckpointCallback)
        if keeper is not None:
            keeper.settings = settings_of(self.config.fit.as_dict())

    def _go_on(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The run's own last checkpoint, if it has one: the plan comes from the study, as before the run was ended; the weights from it."""
        keeper, search = (first_of(self.trainer, kind) for kind in (RecoveryCheckpointCallback, PruningSearchCallback))
        if not isinstance(keeper, RecoveryCheckpointCallback) or not keeper.resume or options.get("ckpt_path"):
            return {}
        checkpoint = find_checkpoint(Path(self.trainer.default_root_dir), keeper.settings, writes_shards(self.trainer))
        if checkpoint is None:
            return {}
        announce(f"recovery goes on from {checkpoint}")
        if isinstance(search, PruningSearchCallback):
            search.weights_follow = True
        return {"ckpt_path": str(checkpoint)}

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """Lightning takes no callback that keeps checkpoints where the Trainer is told to keep none; a progress bar of ours otherwise."""
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, RecoveryCheckpointCallback)]
        given = [*callbacks, *(config["callbacks"] if isinstance(config.get("callbacks"), list) else [config.get("callbacks")])]
        wanted = self.command == "fit" and "recovery" not in self.left_out and config.get("enable_progress_bar") is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in given):
            callbacks = [*callbacks, RecoveryBar()]
        return super()._instantiate_trainer(config, callbacks)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters overrule the command line; here the command line counts."""


def run_trainer(command: str, words: Sequence[str]) -> None:
    """Parses and runs. A run that a scheduler ends says so, with the exit code of a process that SIGTERM ended."""
    try:
        PruningCLI(command, words)
    except SIGTERMException:  # a SystemExit without a code: it would pass for success
        announce("ended by SIGTERM, its last step kept; the same command goes on from there")
        raise SystemExit(128 + signal.SIGTERM) from None


def make_parser(command: str) -> LightningArgumentParser:
    """The parser of ``fit`` or one like it; nothing is instantiated or run. Wrong options are an ``ArgumentError``."""

    class Made(Exception):
        """Carries the parser out of a constructor that would go on and run."""

    class ParserOnly(PruningCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            raise Made(self._subcommand_parsers[command])

    try:
        ParserOnly(command, [])
    except Made as made:
        return made.args[0]  # type: ignore[no-any-return]
    raise AssertionError("LightningCLI no longer calls parse_arguments")


def check_fit(methods: Mapping[str, Sequence[str]]) -> None:
    """Parses the arguments of each method's ``fit``.

    Raises:
        ConfigurationError: naming the method whose arguments are wrong.
    """
    parser = make_parser("fit")
    for method, (_, *words) in methods.items():
        try:
            config, _ = parse(parser.parse_args, parser, "fit", _nulls_as_configurations(take_imports(words)[1]), OPTIONAL_STAGES)
            check_is_local(config.get("ckpt_path"))
        except ConfigurationError as error:
            raise ConfigurationError(f"methods: expected arguments that fit understands, got for {method}: {error}") from None


def _nulls_as_configurations(words: Sequence[str]) -> list[str]:
    """``--recovery null`` as ``--config={recovery: null}``: only a configuration can say it to the parser of a group."""
    result, left = [], list(words)
    while left:
        word = left.pop(0)
        option, separator, value = word.partition("=")
        if option.removeprefix("--") in OPTIONAL_STAGES and (value == "null" if separator else left[:1] == ["null"]):
            left = left if separator else left[1:]
            word = f"--config={{{option.removeprefix('--')}: null}}"
        result.append(word)
    return result


def _is_null(stage: str, given: Mapping[str, Any]) -> bool:
    """Whether ``null`` stands for the whole stage, and none of its options behind it; its seed does not count, since a comparison gives
    one to each of its runs."""
    if given.get(stage, ...) is not None:
        return False
    names = list(given)
    return not any(name.startswith(f"{stage}.") and name != f"{stage}.seed" for name in names[names.index(stage) :])
