"""LoRA recovery inside the same ``fit``: adapters on after the surgery, merged at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.callbacks.loss_diagnosis import blame_for_gradient, blame_for_loss
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import ConfigurationError, ModelError
from adapruner.recovery.lora import LoRAConfig, attach_lora, merge_lora, recover_briefly


class LoRARecoveryCallback(Callback):
    """Trains low-rank adapters on the (pruned) model instead of the model itself.

    Put it after :class:`PruningSearchCallback` in the list of callbacks. At the end of ``fit`` the adapters are merged, so
    that the module holds an ordinary model again.

    Args:
        lora: rank, scale, dropout and where adapters go.
        seed: of the adapters' initial values, so that a searched and a given plan start alike.
        model_attribute: the module's attribute that holds the language model.
    """

    def __init__(self, lora: LoRAConfig = LoRAConfig(), seed: int = 0, model_attribute: str = "model") -> None:
        super().__init__()
        self.lora, self.seed, self.model_attribute = lora, seed, model_attribute
        self.history: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._started: float | None = None
        self._attached = False
        self._batch: tuple[Any, int] = (None, 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attaches the adapters, once, at the start of ``fit``."""
        if stage != "fit" or self._attached:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(c, PruningSearchCallback) for c in callbacks[callbacks.index(self) :]):
            raise ConfigurationError(
                "trainer.callbacks: expected LoRARecoveryCallback after PruningSearchCallback, got it before; move it behind"
            )
        pl_module.configure_model()
        with isolate_rng():
            torch.manual_seed(self.seed)
            setattr(pl_module, self.model_attribute, attach_lora(getattr(pl_module, self.model_attribute), self.lora).train())
        self._attached = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training time is counted from here."""
        self._started = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the batch, should its loss be no number."""
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """A loss that is no number would make every weight one: refused before it does.

        Raises:
            ModelError: naming the step and, where a sample of the batch shows it alone, the sample and the layer.
        """
        if not bool(torch.isfinite(loss.detach()).all()):
            blame = blame_for_loss(trainer, pl_module, getattr(pl_module, self.model_attribute), *self._batch)
            raise ModelError(
                f"recovery: expected a finite loss, got {float(loss.detach())} after {trainer.global_step} optimizer steps{blame}; "
                "lower the learning rate, set trainer.gradient_clip_val, or train in bfloat16 or float32"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """The same for gradients; where losses are scaled (``16-mixed``), the scaler passes over such a step by itself.

        Raises:
            ModelError: naming the first parameter, the step and, where a sample of the last batch shows it alone, the sample.
        """
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        named = [(name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        norms = torch._foreach_norm([gradient for _, gradient in named]) if named else []
        if named and not bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()):
            bad = next((name for name, gradient in named if not bool(torch.isfinite(gradient).all())), None)
            if bad is not None:  # a norm may overflow where no gradient does
                model = getattr(pl_module, self.model_attribute, None)
                blame = "" if model is None else blame_for_gradient(trainer, pl_module, model, *self._batch, pl_module.get_parameter(bad))
                raise ModelError(
                    f"recovery: expected finite gradients, got inf or nan in {bad} after {trainer.global_step} optimizer steps{blame}; "
                    "lower the learning rate, or train in bfloat16 or float32"
                )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the recovery curve for the report, over all ranks."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self.history.append((trainer.global_step, float(trainer.strategy.reduce(loss.detach(), reduce_op="mean"))))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training time ends here."""
        if self._started is not None:
            self.seconds += time.monotonic() - self._started
            self._started = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges the adapters, after callbacks that need them apart; nothing of them is left in the module."""
        make_whole = getattr(pl_module, "make_whole", None)
        if callable(make_whole):
            make_whole()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            listener = getattr(callback, "before_merge", None)  # a resumed run that had ended has no end of training
            if listener is not None:
                listener(trainer, pl_module)
        setattr(pl_module, self.model_attribute, merge_lora(getattr(pl_module, self.model_attribute)))

    def state_dict(self) -> dict[str, Any]:
        """The recovery curve so far, and the seconds it took."""
        running = time.monotonic() - self._started if self._started is not None else 0.0
        return {"history": [list(row) for row in self.history], "seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the curve of the checkpoint."""
        self.history = [(int(step), float(loss)) for step, loss in state_dict.get("history", [])]
        self.seconds = float(state_dict.get("seconds", 0.0))


def short_recovery(trainer: Trainer, pl_module: LightningModule, steps: int) -> Callable[[torch.nn.Module], torch.nn.Module] | None:
    """The run's own recovery as a function of a model, for ``steps`` optimizer steps: same data, adapters and optimizer.

    ``None`` where the run has no LoRA recovery, no steps are asked for, or the module cannot build its optimizer for other
    parameters (``build_optimizer``).
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    lora = next((c for c in callbacks if isinstance(c, LoRARecoveryCallback)), None)
    build: Any = getattr(pl_module, "build_optimizer", None)
    if lora is None or build is None or steps < 1:
        return None
    settings, seed, clip = lora.lora, lora.seed, trainer.gradient_clip_val
    data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def recover(model: torch.nn.Module) -> torch.nn.Module:
        batches = data.train_dataloader()
        return recover_briefly(model, batches, settings, steps=steps, build_optimizer=build, clip_norm=clip, seed=seed)

    return recover
