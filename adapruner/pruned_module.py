"""Checkpoints of pruned modules load into fresh ones: in ``fit``, ``validate``, ``test`` and ``predict`` of a Trainer with our
callbacks for any module, and by ``load_from_checkpoint`` in any process for a module that has :class:`PrunedCheckpoints`.

(Lightning lets a checkpoint name a function that builds the module, but only one of its own list, so that no checkpoint can run
code: a class of one's own has to say by itself that it can be pruned.)
"""

from __future__ import annotations

from typing import Any

from adapruner.export.saving import save_as_export
from adapruner.models.model_attribute import held_model, hold_model
from adapruner.recovery.checkpoint_contents import describe_pruning, fit_to_checkpoint


class PrunedCheckpoints:
    """Mixin for a LightningModule, to stand before it among the bases: its checkpoints say how it was pruned, and loading one prunes.

    ``model_attribute`` names the attribute that holds the language model, such as ``model`` or ``net.lm``, which ``__init__`` or
    ``configure_model`` builds dense.

    >>> from lightning import LightningModule
    >>> class MyModule(PrunedCheckpoints, LightningModule):
    ...     model_attribute = "language"
    """

    model_attribute = "model"
    plan: Any = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The plan and the adapters' form go into the checkpoint, as JSON types."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint.update(describe_pruning(held_model(self, self.model_attribute), self.plan))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prunes a still dense model by the checkpoint's plan and attaches its adapters, so that the weights fit.

        Raises:
            ModelError: if the model was pruned by another plan already.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        self.configure_model()  # type: ignore[attr-defined]
        model, self.plan = fit_to_checkpoint(held_model(self, self.model_attribute), checkpoint, self.plan, save_as_export)
        hold_model(self, self.model_attribute, model)


def carry_pruning(pl_module: Any, model_attribute: str) -> None:
    """Gives this one module what :class:`PrunedCheckpoints` gives a class; once, and not where the class has it.

    A callback cannot do it by its own hooks: they come after the weights are loaded, and not at all with ``save_weights_only``.
    """
    if isinstance(pl_module, PrunedCheckpoints) or getattr(pl_module, "_carries_pruning", False):
        return
    save, load = pl_module.on_save_checkpoint, pl_module.on_load_checkpoint

    def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
        save(checkpoint)
        checkpoint.update(describe_pruning(held_model(pl_module, model_attribute), getattr(pl_module, "plan", None)))

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        load(checkpoint)
        pl_module.configure_model()
        model, plan = fit_to_checkpoint(
            held_model(pl_module, model_attribute), checkpoint, getattr(pl_module, "plan", None), save_as_export
        )
        hold_model(pl_module, model_attribute, model)
        pl_module.plan = plan

    for hook in (on_save_checkpoint, on_load_checkpoint):
        object.__setattr__(pl_module, hook.__name__, hook)
    object.__setattr__(pl_module, "_carries_pruning", True)
