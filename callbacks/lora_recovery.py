"""LoRA recovery inside the same ``fit``: adapters on after the surgery, merged at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.argument_checks import check_seed, typed_as
from adapruner.callbacks.listener import PruningListener, check_callbacks, first_of, listeners_of
from adapruner.callbacks.recovery_bar import count_steps, leave_out_adverts
from adapruner.callbacks.recovery_ending import RecoveryEnding
from adapruner.callbacks.terminal import on_terminal
from adapruner.callbacks.training_text import training_batches, training_windows
from adapruner.data.from_texts import windows_from_texts
from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.model_attribute import held_model, hold_model
from adapruner.models.rotary import restore_rotary
from adapruner.progress import plain_lines
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.diagnosis import Suspect, check_gradients, check_loss
from adapruner.recovery.distillation import DistillationConfig, check_vocabulary, counted_tokens
from adapruner.recovery.early_stop import EarlyStopConfig, held_out_windows
from adapruner.recovery.form import RecoveryForm, check_form, check_trainable, make_plain, make_trainable
from adapruner.recovery.lora import LoRAConfig, activations_as_configured
from adapruner.recovery.merging import merge_lora
from adapruner.recovery.teacher import vocabulary_of
from adapruner.stage_times import stage
from adapruner.stages import prepare_distillation


class LoRARecoveryCallback(PruningListener):
    """Trains low-rank adapters on the (pruned) model instead of the model itself; or, with ``form="full"``, every weight of its layers.

    Put it after :class:`PruningSearchCallback` in the list of callbacks. At the end of ``fit`` the adapters are merged, so
    that the module holds an ordinary model again.

    Args:
        lora: rank, scale, dropout and where adapters go.
        seed: of the adapters' initial values, so that a searched and a given plan start alike.
        model_attribute: the module's attribute that holds the language model, such as ``model`` or ``net.lm``.
        distillation: learn from the dense model's next-token distributions, too, or from these alone. They are written into ``teacher/``
            in the run folder before anything is pruned, so that a run that goes on finds them. The module's ``training_step`` has to
            ask for them by its attribute ``distillation``, as :class:`adapruner.PrunableCausalLM` does.
        form: ``lora``, or ``full``: every weight of the decoder's layers trains, in float32, and nothing is left to merge. Of ``lora`` only
            ``checkpoint_activations`` counts then.
        time_budget: training ends after this time, such as ``45m``, ``1h30m`` or a number of seconds, unless its steps or passes end it
            before; a run that goes on counts what it used. A learning-rate schedule that steps with the optimizer spans the time.
        early_stop: every so many steps the model is judged on held-out text; training ends where that gains no more, and the best weights
            come back.
        held_out: what it is judged on: texts, for the module's ``tokenizer``, or token windows, as :func:`adapruner.prune` takes them; the
            search split when empty. Windows with documents that recovery trains on are left out, where the Trainer's data are of our data
            module; of other data nobody can tell: see to it.

    >>> LoRARecoveryCallback(LoRAConfig(r=16)).lora.r
    16
    """

    @typed_as("recovery.")
    def __init__(
        self,
        lora: LoRAConfig = LoRAConfig(),
        seed: int = 0,
        model_attribute: str = "model",
        distillation: DistillationConfig = DistillationConfig(),
        form: RecoveryForm = "lora",
        time_budget: float | str | None = None,
        early_stop: EarlyStopConfig = EarlyStopConfig(),
        held_out: Any = None,
    ) -> None:
        super().__init__()
        leave_out_adverts()
        check_seed("recovery.seed", seed)
        check_form(form)
        self.lora, self.seed, self.model_attribute, self.distillation = lora, seed, model_attribute, distillation
        self.form, self.ending, self.held_out = form, RecoveryEnding(time_budget, early_stop, model_attribute), held_out
        self.history: list[tuple[int, float]] = []
        self.seconds, self.tokens = 0.0, 0
        self._started: float | None = None
        self._attached = False
        self._searched: Any = None
        self._batch: tuple[Any, int] = (None, 0)
        self._activations, self._terminal = ExitStack(), ExitStack()
        self._progress: Any = plain_lines("recovery", None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attaches the adapters, once, at the start of ``fit``.

        Raises:
            ConfigurationError: if callbacks are in an order that cannot work, or it is to be distilled and nothing was pruned; the model is
                as it was.
        """
        self._terminal.enter_context(on_terminal(trainer))
        if stage != "fit" or self._attached:
            return
        count_steps(trainer)  # here too, since it may stand without a search
        check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        pl_module.configure_model()
        self._find_held_out(trainer, pl_module)
        self._find_teacher(trainer, pl_module)
        with isolate_rng():
            torch.manual_seed(self.seed)
            model = held_model(pl_module, self.model_attribute)
            hold_model(pl_module, self.model_attribute, make_trainable(model, self.form, self.lora))
        self._attached = True

    def check_trainable(self, trainer: Trainer, model: Any) -> None:
        """Refuses what this recovery could not train: see :func:`adapruner.recovery.form.check_trainable`."""
        check_trainable(model, self.form, self.lora)
        parts = ["full fine-tuning"] if self.form == "full" else self.lora.also_train
        if parts and str(trainer.precision).endswith("true") and "16" in str(trainer.precision):
            raise ConfigurationError(
                f"trainer.precision: expected weights in float32 for {' and '.join(parts)}, got {trainer.precision}; give bf16-mixed, or "
                "train adapters alone"
            )

    def check_before_search(self, trainer: Trainer) -> None:
        """Refuses to judge a model whose parts no rank can run by itself, and text that recovery trains on."""
        if self.ending.early_stop and isinstance(trainer.strategy, FSDPStrategy):
            raise ConfigurationError(
                "recovery.early_stop: expected a strategy under which the model can be judged between two steps, got FSDP1; choose ddp, or "
                "lightning.pytorch.strategies.ModelParallelStrategy (FSDP2), or early_stop.every_n_steps 0"
            )

    def _find_held_out(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the training is judged on, where it is: own text, or the search split."""
        if not self.ending.early_stop:
            return
        self.check_before_search(trainer)
        data = getattr(trainer, "datamodule", None)
        windows = self._searched if self._searched is not None else getattr(data, "search_windows", None)
        if self.held_out is not None:
            windows = windows_from_texts(self.held_out, getattr(pl_module, "tokenizer", None), role="held out", argument="held_out")
        self.ending.held_out = held_out_windows(windows, getattr(data, "recovery_windows", None), self.ending.early_stop)

    def check_with_model(self, pl_module: LightningModule, model: Any) -> None:
        """Refuses distillation for a module that would not use it, or of more tokens than there are; likewise held-out text."""
        if self.held_out is not None or hasattr(getattr(pl_module.trainer, "datamodule", None), "search_windows"):
            self._find_held_out(pl_module.trainer, pl_module)
        if self.distillation and not hasattr(pl_module, "distillation"):
            raise ConfigurationError(
                f"recovery.distillation: expected a module with the attribute distillation, got {type(pl_module).__name__} without one; "
                "set it to None in __init__, and return adapruner.recovery.distillation.training_loss(model, self.distillation, batch) in "
                "training_step"
            )
        check_vocabulary(self.distillation, vocabulary_of(model))

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: Any) -> None:
        """Remembers the search split, wherever the search had it from."""
        self._searched = pruning.scored.data.search_windows

    def on_scored(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The dense model writes down what is to be learnt of it, or a run before this one has."""
        if self.distillation:
            model = held_model(pl_module, self.model_attribute)
            folder, windows = Path(trainer.default_root_dir), training_windows(trainer)
            pl_module.distillation = prepare_distillation(model, windows, self.distillation, folder)  # type: ignore[assignment]

    def _find_teacher(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where no search came before, which would have called :meth:`on_scored`."""
        if not self.distillation or getattr(pl_module, "distillation", None) is not None:
            return
        if self.distillation.teacher is None:
            raise ConfigurationError(
                "recovery.distillation.teacher: expected a teacher's name where no search stands before, got None; name the dense model"
            )
        model = held_model(pl_module, self.model_attribute)
        self.check_with_model(pl_module, model)
        model.to(trainer.strategy.root_device)
        self.on_scored(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimizers and schedules are made, and nothing of a checkpoint is in them yet."""
        self.ending.span_schedules(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training time is counted from here; where Lightning draws no bar, plain lines say where it is."""
        restore_rotary(pl_module)  # where it stands alone, without the search
        self._activations.enter_context(activations_as_configured(held_model(pl_module, self.model_attribute), self.lora))
        self._activations.enter_context(stage("recovery"))
        self._started = time.monotonic()
        steps = trainer.estimated_stepping_batches
        self._progress = plain_lines("recovery", int(steps) if math.isfinite(steps) else None)
        self.ending.begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the batch, should its loss not be finite."""
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Refuses a loss that is not finite before it makes every weight so.

        Raises:
            ModelError: naming the step and, where a sample of the batch shows it alone, the sample and the layer.
        """
        with trainer.precision_plugin.forward_context():
            check_loss(loss, held_model(pl_module, self.model_attribute), trainer.global_step, partial(self._suspect, trainer, pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Refuses gradients that are not finite; where losses are scaled (``16-mixed``), the scaler skips such a step by itself.

        Raises:
            ModelError: naming the first parameter, the step and, where a sample of the last batch shows it alone, the sample.
        """
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        model, suspect = held_model(pl_module, self.model_attribute, None), partial(self._suspect, trainer, pl_module)
        with trainer.precision_plugin.forward_context():
            check_gradients(dict(pl_module.named_parameters()), model, trainer.global_step, suspect)

    def _suspect(self, trainer: Trainer, pl_module: LightningModule) -> Suspect:
        """The running batch, its name and the tokenizer; no batch where a forward is a step of all ranks, and one alone met it."""
        (batch, index), tokenizer = self._batch, None
        with suppress(ModelError):  # a model without one trains all the same
            tokenizer = getattr(pl_module, "tokenizer", None)
        sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
        rank = f" of rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        return (None if sharded else batch), f"batch {index}{rank}", tokenizer

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the recovery curve for the report, over all ranks, and ends the training where its time is over."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            own = torch.stack([loss.detach().float(), torch.tensor(float(counted_tokens(batch)), device=loss.device)])
            mean, tokens = trainer.strategy.reduce(own, reduce_op="mean").tolist()  # type: ignore[union-attr]
            self.tokens += round(tokens * trainer.world_size)
            self.history.append((trainer.global_step, mean))
        self.ending.after_batch(trainer, self._spent())
        if isinstance(loss, torch.Tensor):
            if self.ending.budget is not None:
                self._progress.total = self.ending.budget.planned_steps
            self._progress(trainer.global_step, f"loss {mean:.3f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training time ends here."""
        self.seconds, self._started = self._spent(), None
        self.ending.end(trainer, self.seconds)
        self._activations.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was set for the training is as it was."""
        self._activations.close()
        self._terminal.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges the adapters, after callbacks that need them apart; nothing of them is left in the module."""
        make_whole = getattr(pl_module, "make_whole", None)
        if callable(make_whole):
            make_whole()
        self.ending.restore_best(pl_module)
        for listener in listeners_of(trainer):  # a resumed run that had ended has no end of training
            listener.before_merge(trainer, pl_module)
        hold_model(pl_module, self.model_attribute, make_plain(held_model(pl_module, self.model_attribute)))
        self._attached = False  # another fit of the module trains adapters again
        if self.distillation:
            pl_module.distillation = None  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merges the adapters that ``test(ckpt_path=...)`` and the like brought, so that the module holds an ordinary model again."""
        self._terminal.close()
        if stage != "fit" and held_model(pl_module, self.model_attribute, None) is not None:
            hold_model(pl_module, self.model_attribute, merge_lora(held_model(pl_module, self.model_attribute)))

    def report_sections(self, trainer: Trainer) -> dict[str, Any]:
        """Settings and curve of the recovery, and the seed of its adapters."""
        lora, steps = self.lora, trainer.global_step
        section: dict[str, Any] = {"form": self.form, "r": lora.r, "alpha": lora.alpha, "steps": steps, "seconds": self.seconds}
        section |= self.ending.to_report()
        section |= {"history": self.history, "distillation": self.distillation.to_report(), "tokens": self.tokens or None}
        return {"recovery": section, "recovery_seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """The recovery curve so far, the seconds it took and the tokens it saw."""
        curve = {"history": [list(row) for row in self.history], "seconds": self._spent(), "tokens": self.tokens}
        return {**curve, "ending": self.ending.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the curve of the checkpoint."""
        self.history = [(int(step), float(loss)) for step, loss in state_dict.get("history", [])]
        self.seconds, self.tokens = float(state_dict.get("seconds", 0.0)), int(state_dict.get("tokens", 0))
        self.ending.load_state_dict(state_dict.get("ending", {}))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A training that its time had ended is not begun again for one more step."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if self.ending.had_ended(state.get("ending", {})):
            trainer.should_stop = True

    def _spent(self) -> float:
        """Seconds of training, over all attempts."""
        return self.seconds + (0.0 if self._started is None else time.monotonic() - self._started)


def short_recovery(trainer: Trainer, pl_module: LightningModule, steps: int) -> Callable[[torch.nn.Module], torch.nn.Module] | None:
    """The run's own recovery as a function of a model, for ``steps`` optimizer steps: same data, adapters and optimizer.

    ``None`` where the run has no LoRA recovery, no steps are asked for, or the module cannot build its optimizer for other
    parameters (``build_optimizer``).
    """
    lora, build = first_of(trainer, LoRARecoveryCallback), getattr(pl_module, "build_optimizer", None)
    if lora is None or build is None or steps < 1:
        return None
    settings, distillation = lora.lora, getattr(pl_module, "distillation", None)
    options: dict[str, Any] = {"clip_norm": trainer.gradient_clip_val, "seed": lora.seed, "distillation": distillation}

    def recover(model: torch.nn.Module) -> torch.nn.Module:
        return recover_briefly(model, training_batches(trainer), settings, form=lora.form, steps=steps, build_optimizer=build, **options)

    return recover
