"""The loss of every next token without ever holding the logits of a whole batch: over a vocabulary of 50 to 250 thousand words they
would be the largest tensors of a run by far.

The trunk runs once; the head, with whatever a family does to its logits (a scale, a soft cap), runs over a part of the positions at a
time. Where the head does not train, the gradient of a part is taken while its logits are there; else they are computed again in the
backward pass. Where a model cannot be taken apart so, its logits are made whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from adapruner.models.forward import answering

#: PyTorch's ``ignore_index``.
IGNORED = -100
#: Bytes of float32 logits that are held at a time; a batch that has fewer is not taken apart.
MOST_BYTES = 64 * 2**20


class PartLoss(Protocol):
    """Losses ``[n]`` of logits ``[n, vocabulary]`` at some positions, batch and sequence joined."""

    def __call__(self, logits: Tensor, positions: slice) -> Tensor: ...


#: Model -> its trunk and the class of the trunk's output, or ``None`` where it cannot be taken apart.
_trunks: WeakKeyDictionary[nn.Module, tuple[Any, type] | None] = WeakKeyDictionary()


def next_token_losses(model: Any, labels: Tensor, **inputs: Any) -> Tensor:
    """NLL ``[batch, seq_len]`` in nats of the token after each position, at least float32; 0 where none is counted.

    Differentiable, where gradients are on, with respect to the inputs and the model's weights.

    Args:
        model: a Hugging Face causal LM, or one with peft's adapters.
        labels: ``[batch, seq_len]`` int64, not shifted; -100 is ignored.
        inputs: ``input_ids`` or ``inputs_embeds``, and ``attention_mask``, as the model takes them.

    >>> import adapruner
    >>> model, tokenizer = adapruner.stages.load_model("demo")
    >>> ids = tokenizer("a word or two", return_tensors="pt")["input_ids"]
    >>> losses = next_token_losses(model, ids, input_ids=ids)
    >>> torch.allclose(losses.sum() / (ids.numel() - 1), model(ids, labels=ids).loss)
    True
    """
    targets = next_labels(labels)
    flat = targets.flatten()

    def loss(logits: Tensor, positions: slice) -> Tensor:
        return cross_entropies(logits, flat[positions].to(logits.device))

    return losses_in_parts(model, loss, **inputs).view_as(targets)


def next_labels(labels: Tensor) -> Tensor:
    """``[batch, seq_len]``: the label after each position; -100 after the last.

    >>> next_labels(torch.tensor([[7, -100, 9]])).tolist()
    [[-100, 9, -100]]
    """
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)


def losses_in_parts(model: Any, loss: PartLoss, **inputs: Any) -> Tensor:
    """The loss ``[batch * seq_len]`` of every position, made of the logits of one part of the positions after the other.

    Differentiable, where gradients are on, with respect to the inputs and the model's weights.

    Args:
        model: a Hugging Face causal LM, or one with peft's adapters.
        loss: logits ``[n, vocabulary]`` and which positions they are of, batch and sequence joined -> losses ``[n]``, each of its own
            row of logits alone.
        inputs: ``input_ids`` or ``inputs_embeds`` first, and ``attention_mask``, as the model takes them.
    """
    given: Tensor = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    causal, rows, count = _causal(model), _rows_at_once(model), given.shape[0] * given.shape[1]
    parts = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    if count <= rows or not splits_at_head(causal):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
        return torch.cat([loss(logits[part], part) for part in parts])
    hidden = _trunks[causal][0](**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # type: ignore[index]
    frozen_head = hidden.requires_grad and not _trains(causal, _trunks[causal][0])  # type: ignore[index]
    return torch.cat([_part(causal, hidden[part], partial(loss, positions=part), frozen_head) for part in parts])


def mean_next_token_loss(model: Any, labels: Tensor, **inputs: Any) -> Tensor:
    """Mean NLL over the counted tokens, as a Hugging Face model's own ``loss``; nan where none is counted, as that.

    Args:
        model, labels, inputs: as for :func:`next_token_losses`.
    """
    counted = (labels[:, 1:] != IGNORED).sum()
    return next_token_losses(model, labels, **inputs).sum() / counted


@torch.no_grad()
def logit_parts(model: Any, **inputs: Any) -> Iterator[Tensor]:
    """Logits ``[n, vocabulary]`` of one part of the positions after the other, batch and sequence joined; without gradients.

    Args:
        model, inputs: as for :func:`next_token_losses`.
    """
    given: Tensor = next(iter(inputs.values()))
    causal, rows = _causal(model), _rows_at_once(model)
    positions = given.shape[0] * given.shape[1]
    if positions <= rows or not splits_at_head(causal):
        yield from model(**inputs, use_cache=False).logits.flatten(0, 1).split(rows)
        return
    trunk, output = _trunks[causal]  # type: ignore[misc]
    for part in trunk(**inputs, use_cache=False).last_hidden_state.flatten(0, 1).split(rows):
        yield _head(causal, part, trunk, output)


@torch.no_grad()
def splits_at_head(model: Any) -> bool:
    """Whether trunk and head, one after the other, give the model's own logits; tried on two tokens, once for each model.

    A sharded root gathers its weights in its own forward: then they do not, and it may have been whole when it was tried.
    """
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        return False
    if model not in _trunks:
        _trunks[model] = _trunk(model)
    return _trunks[model] is not None


def _trunk(model: Any) -> tuple[Any, type] | None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.base_model is model or getattr(model.config, "output_router_logits", False):
        return None
    weight: Any = model.get_input_embeddings().weight
    ids, training = torch.tensor([[0, 1]], device=weight.device), {m: m.training for m in model.modules()}
    try:
        model.eval()
        whole = model(input_ids=ids, use_cache=False).logits[0].float()
        for trunk in dict.fromkeys((model.base_model, getattr(model, "get_decoder", lambda: None)())):  # OPT's head calls its decoder
            output = None if trunk is None else trunk(input_ids=ids, use_cache=False)
            if output is not None:
                found = _head(model, output.last_hidden_state[0], trunk, type(output)).float()
                if torch.allclose(found, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())):
                    return trunk, type(output)
        return None
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError):
        return None
    finally:
        for module, mode in training.items():
            module.training = mode


def _causal(model: Any) -> Any:
    """The language model inside peft's adapters, which stay active."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _rows_at_once(model: Any) -> int:
    vocabulary = int(getattr(getattr(_causal(model), "config", None), "vocab_size", 0) or 0)
    return max(1, MOST_BYTES // (4 * vocabulary)) if vocabulary else 1024


def _part(model: Any, hidden: Tensor, loss: Callable[[Tensor], Tensor], frozen_head: bool) -> Tensor:
    trunk, output = _trunks[model]  # type: ignore[misc]

    def losses(states: Tensor) -> Tensor:
        return loss(_head(model, states, trunk, output))

    if not torch.is_grad_enabled():
        return losses(hidden)
    if frozen_head:
        return _LossesOfFrozenHead.apply(hidden, losses)  # type: ignore[no-any-return, no-untyped-call]
    return checkpoint(losses, hidden, use_reentrant=False)  # type: ignore[no-any-return]


def _trains(model: Any, trunk: Any) -> bool:
    """Whether a weight of the head wants a gradient; embeddings count, which may serve as the head's weights."""
    inside = {id(parameter) for parameter in trunk.parameters()}
    tables = (model.get_output_embeddings(), model.get_input_embeddings())
    embeddings = [p for table in tables if table is not None for p in table.parameters()]
    return any(p.requires_grad for p in (*embeddings, *(p for p in model.parameters() if id(p) not in inside)))


class _LossesOfFrozenHead(torch.autograd.Function):
    """Losses ``[n]`` of hidden states ``[n, hidden]`` whose gradients are taken at once, so that no logits are computed twice.

    A token's loss depends on its own hidden state alone: the gradient of the sum has every token's own in its rows.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            states = hidden.detach().requires_grad_(True)
            values = losses(states)
            (gradients,) = torch.autograd.grad(values.sum(), states)
        context.save_for_backward(gradients)
        return values.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradients,) = context.saved_tensors
        return (gradients * upstream[:, None]).to(gradients.dtype), None  # upstream is float32 at least: 1 / count is not rounded


def _head(model: Any, hidden: Tensor, trunk: Any, output: type) -> Tensor:
    """Logits ``[n, vocabulary]`` of hidden states ``[n, hidden]``: the model's own forward, its trunk answering with what is known."""
    with answering(trunk, output(last_hidden_state=hidden[None])):
        logits: Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits
    return logits[0]


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL ``[n]`` in nats, at least float32, of targets ``[n]`` under logits ``[n, vocabulary]``; 0 where the target is -100."""
    return cross_entropy(at_least_fp32(logits), targets, ignore_index=IGNORED, reduction="none")


def at_least_fp32(logits: Tensor) -> Tensor:
    """Float64 stays; anything narrower than float32 becomes it."""
    return logits if logits.dtype == torch.float64 else logits.float()
