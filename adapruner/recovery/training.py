"""Recovery without a Trainer: one process, one device, resumable. Lightning's Trainer does the same on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.argument_checks import check_fields, check_seed, typed
from adapruner.data.resumable import training_loader
from adapruner.errors import ConfigurationError
from adapruner.models.fingerprint import digest_weights
from adapruner.progress import announce
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.diagnosis import Suspect, check_gradients, check_loss
from adapruner.recovery.distillation import Distillation, DistillationConfig, counted_tokens, training_loss
from adapruner.recovery.early_stop import EarlyStop, EarlyStopConfig, held_out_windows
from adapruner.recovery.form import RecoveryForm, check_form, check_trainable, copy_of_trained, make_plain, make_trainable
from adapruner.recovery.lora import LoRAConfig, activations_as_configured
from adapruner.recovery.time_budget import check_has_unit, seconds_of
from adapruner.recovery.training_bar import Ending, ending_in_words, recovery_bar
from adapruner.recovery.training_state import TrainingState
from adapruner.stage_times import stage


@dataclass(frozen=True)
class RecoveryConfig:
    """Recovery of a pruned model by training: with adapters (LoRA), or of its layers as they are.

    Raises:
        ConfigurationError: if a number is out of range.

    >>> RecoveryConfig(steps=200, lora=LoRAConfig(r=16)).lora.r
    16
    >>> RecoveryConfig(time_budget="45m").most_steps is None
    True
    """

    steps: int | None = None
    """Optimizer steps; beside a time budget the most that there are. ``None``: 100, or as many as the time budget holds."""
    time_budget: str | float | None = None
    """Training time, such as ``"45m"``, ``"1h30m"`` or a number of seconds, after which it ends; a run that goes on counts what it used
    before."""
    form: RecoveryForm = "lora"
    """``lora`` trains low-rank adapters and merges them; ``full`` trains every weight of the layers, in float32: its optimizer holds as
    much again twice."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Rank, scale, dropout and place of the adapters."""
    batch_size: int = 8
    """Windows in one step."""
    learning_rate: float = 1e-4
    """Learning rate of AdamW, without weight decay; constant after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradients of one step; ``None`` leaves them as they are."""
    seed: int = 0
    """Seed of the adapters' initial values, of dropout and of the order of windows."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """How often it is judged on held-out text, whose best weights are the result, and when it ends for it; never by default."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """How much is learnt from the dense model's distributions; nothing by default."""
    every_n_steps: int = 50
    """Steps between two checkpoints in the run folder: what a kill can cost at most."""

    def __post_init__(self) -> None:
        check_fields(self, "recovery.")
        check_form(self.form)
        seconds_of(self.time_budget)
        for name in ("steps", "batch_size", "every_n_steps"):
            got = getattr(self, name)
            if got is not None and got < 1:
                raise ConfigurationError(f"recovery.{name}: expected a whole number of 1 or more, got {got}; give a positive number")
        check_seed("recovery.seed", self.seed)
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise ConfigurationError(f"recovery.clip_norm: expected a positive number or None, got {self.clip_norm}; give 1.0")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigurationError(f"recovery.learning_rate: expected a positive number, got {self.learning_rate}; give 1e-4")
        if self.warmup_steps < 0:
            raise ConfigurationError(f"recovery.warmup_steps: expected 0 or more, got {self.warmup_steps}; give 0 for no warm-up")

    @property
    def most_steps(self) -> int | None:
        """Optimizer steps that end it, if nothing does before; ``None`` where only its time does."""
        return 100 if self.steps is None and self.time_budget is None else self.steps

    def build_optimizer(self, parameters: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW over the parameters, and the warm-up, to be stepped with it."""
        warm, schedulers = max(1, self.warmup_steps), torch.optim.lr_scheduler
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        return optimizer, schedulers.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm))


@dataclass(frozen=True)
class RecoveredModel:
    """A recovered model, its adapters merged."""

    model: Any
    history: list[tuple[int, float]]
    """(optimizer step, mean loss of its batch in nats per token)."""
    seconds: float
    """Time that the training took, over all attempts of a run that was ended in between."""
    config: RecoveryConfig
    tokens: int = 0
    """Predictions that it trained on, over all steps."""
    ended_by: Ending = "steps"
    """What ended it."""
    looks: EarlyStop | None = None
    """What was seen on held-out text; ``None`` where it was not judged."""

    def to_report(self) -> dict[str, Any]:
        """The report's section on LoRA recovery."""
        lora = self.config.lora
        section: dict[str, Any] = {
            "form": self.config.form,
            "r": lora.r,
            "alpha": lora.alpha,
            "steps": len(self.history),
            "seconds": self.seconds,
        }
        looks = None if self.looks is None else self.looks.to_report()
        section |= {"time_budget": seconds_of(self.config.time_budget), "ended_by": self.ended_by, "early_stop": looks}
        return {**section, "history": self.history, "tokens": self.tokens, "distillation": self.config.distillation.to_report()}


@stage("recovery")
def train_recovery(
    model: nn.Module,
    windows: Any,
    config: RecoveryConfig,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    tokenizer: Any = None,
    distillation: Distillation | None = None,
    held_out: Any = None,
) -> RecoveredModel:
    """Trains low-rank adapters on the pruned model and merges them, or the layers' own weights; its mode, and which parameters train, are
    as before.

    A training that is interrupted or fails leaves the model as it was: a copy of its own weights that train is kept for that.

    Args:
        model: the pruned model on its device; changed in place.
        windows: training text, with ``input_ids``, ``labels``, ``attention_mask``, each int64 ``[n, seq_len]``.
        config: how.
        folder: the run folder, where ``checkpoints/recovery.pt`` is kept, and gone on from; ``None`` keeps nothing.
        identity: what the result depends on beside ``config``, as plain values; a checkpoint of another identity is left alone.
        tokenizer: quotes the text of a sample whose loss is not finite.
        distillation: with what the teacher says of these windows, where ``config`` distils.
        held_out: windows in the same form, for ``config.early_stop``; those with documents that are trained on are left out.

    Raises:
        ModelError: if a loss or a gradient is not finite, naming the step and where it can be told the sample and the layer.
        ConfigurationError: if no layer has one of the adapters' target names, or the checkpoint cannot be written.
    """
    check_trainable(model, config.form, config.lora)
    loader: Any = training_loader(windows, config.batch_size, config.seed)
    judged_on = held_out_windows(held_out, windows, config.early_stop) if config.early_stop else None
    identity = {**asdict(config), **(identity or {}), "weights": digest_weights(model), "steps": None, "time_budget": None}
    if distillation is not None:
        identity["teacher"] = distillation.targets.identity
    if judged_on is not None:
        identity["held out"] = sha256(judged_on.input_ids.numpy().tobytes()).hexdigest()[:16]
    mode, trains = model.training, {name: p.requires_grad for name, p in model.named_parameters()}
    with ExitStack() as undone, torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(config.seed)
        before = copy_of_trained(model, config.form, config.lora)
        adapted = make_trainable(model, config.form, config.lora)
        undone.callback(_take_off, adapted, mode, trains, before)  # where the training does not come to its end
        state = TrainingState(adapted, loader, config, folder, identity, judged_on)
        state.resume()
        with activations_as_configured(adapted, config.lora), recovery_bar(config.most_steps, config.time_budget) as advance:
            state.look()
            for batch in _endless(loader) if state.ended_by is None else ():
                loss = _step(adapted, batch, state, config, tokenizer, distillation)
                state.finished(loss, counted_tokens(batch))
                advance(state.step, state.budget, f"loss {loss:.4f} nats/token")
                if state.ended_by is not None:
                    break
        state.save()
        if state.looks is not None:
            state.looks.restore(adapted)
        undone.pop_all()
    merged = make_plain(adapted).train(mode)
    _set_trained(merged, trains)
    ended_by = state.ended_by or "steps"
    if config.time_budget is not None or config.early_stop:
        announce(ending_in_words(state.step, state.seconds, ended_by))
    return RecoveredModel(merged, state.history, state.seconds, config, state.tokens, ended_by, state.looks)


def _take_off(adapted: Any, mode: bool, trains: dict[str, bool], before: dict[str, Tensor]) -> None:
    """Leaves the model as it was: adapters come off, whole weights come back."""
    model = adapted.unload() if hasattr(adapted, "unload") else adapted
    with torch.no_grad():
        for name, value in before.items():
            model.get_parameter(name).copy_(value)
    if hasattr(model, "peft_config"):
        del model.peft_config  # else save_pretrained looks for adapters
    _set_trained(model.train(mode), trains)


def _set_trained(model: nn.Module, trains: dict[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.get(name, True))


@typed
def recovery_config(recovery: RecoveryConfig | int | str | None) -> RecoveryConfig | None:
    """A number of steps, or a time such as ``"45m"``, as a configuration; 0 for no recovery.

    Raises:
        ConfigurationError: if it is none of these.

    >>> recovery_config("45m").time_budget
    '45m'
    """
    if isinstance(recovery, str):
        check_has_unit("recovery", recovery)
        return RecoveryConfig(time_budget=recovery)
    if isinstance(recovery, int):
        return RecoveryConfig(steps=recovery) if recovery else None
    return recovery


def short_recovery(
    windows: Any, config: RecoveryConfig | None, steps: int, distillation: Distillation | None = None
) -> Callable[[nn.Module], nn.Module] | None:
    """The same recovery as a function of a model, for ``steps`` optimizer steps, each time over the same batches.

    ``None`` without a recovery, or where no steps are asked for.
    """
    if config is None or steps < 1:
        return None

    def recover(model: nn.Module) -> nn.Module:
        batches: Any = training_loader(windows, config.batch_size, config.seed)
        build, clip = config.build_optimizer, config.clip_norm
        options: dict[str, Any] = {"clip_norm": clip, "seed": config.seed, "distillation": distillation}
        return recover_briefly(model, batches, config.lora, form=config.form, steps=steps, build_optimizer=build, **options)

    return recover


def _step(
    adapted: Any, batch: dict[str, Tensor], state: TrainingState, config: RecoveryConfig, tokenizer: Any, distillation: Distillation | None
) -> float:
    loss = training_loss(adapted, distillation, {name: value.to(state.device) for name, value in batch.items()})

    def suspect() -> Suspect:
        return batch, f"the batch of step {state.step + 1}", tokenizer

    check_loss(loss, adapted, state.step, suspect)
    state.optimizer.zero_grad()
    loss.backward()
    check_gradients(state.trained, adapted, state.step, suspect)
    if config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_norm)
    state.optimizer.step()
    state.scheduler.step()
    return float(loss.detach())


def _endless(loader: Any) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader
