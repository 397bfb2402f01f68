"""A recovery of a few steps, beside the run's own: for the second look at the best plans, and for every method that is compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.recovery.distillation import Distillation, training_loss
from adapruner.recovery.form import RecoveryForm, make_plain, make_trainable
from adapruner.recovery.lora import LoRAConfig, activations_as_configured


def recover_briefly(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    config: LoRAConfig,
    *,
    form: RecoveryForm = "lora",
    steps: int,
    build_optimizer: Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, Any]],
    clip_norm: float | None = None,
    seed: int = 0,
    distillation: Distillation | None = None,
) -> nn.Module:
    """A short recovery without a Trainer: adapters or the layers' own weights, ``steps`` optimizer steps, merge.

    Every compared method is recovered so: same batches, optimizer and schedule as the run itself. The
    model is changed in place; give a copy to keep it.

    Args:
        batches: dictionaries of ``input_ids``, ``labels``, ``attention_mask`` ``[batch, seq_len]``; read again from the
            start when they end before the steps do.
        form: what is trained.
        build_optimizer: trainable parameters -> optimizer and scheduler (or ``None``), the latter stepped per batch.
        distillation: what is added to the loss, or takes its place; ``None``: the cross entropy alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = make_trainable(model, form, config)
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        optimizer, scheduler = build_optimizer(parameters)
        with activations_as_configured(adapted, config):
            for batch in itertools.islice(_repeat(batches), steps):
                loss = training_loss(adapted, distillation, {name: value.to(parameters[0].device) for name, value in batch.items()})
                optimizer.zero_grad()
                loss.backward()
                if clip_norm:
                    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
    return make_plain(adapted)


def _repeat(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from batches
