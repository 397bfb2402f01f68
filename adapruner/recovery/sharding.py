"""Recovery over several ranks: the model's parameters sharded after the surgery (FSDP1, FSDP2), and every token counted alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: What FSDP1 and activation checkpointing put into a parameter's name.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class ShardedModel:
    """A model whose parameters are spread over the ranks of a mesh, layer by layer, until it is asked for as a whole.

    Made after the surgery and the adapters, before the optimizer, on every rank alike.

    Args:
        model: changed in place: its parameters become ``DTensor``.
        mesh: one-dimensional, over the ranks that share the data.
    """

    def __init__(self, model: nn.Module, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        self.model = model
        self._frame = _with_parameters(model, lambda name, p: torch.empty_like(p, device="meta"))
        for layer in _longest_list(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def whole(self) -> nn.Module:
        """An ordinary model with the present parameters, on every rank: all ranks must ask. The sharded one can be forgotten."""
        values = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in self.model.named_parameters()}
        return _with_parameters(self._frame, lambda name, p: values[name].detach())


class FlatlyShardedModel:
    """The same under FSDP1, which wraps modules and keeps the parameters of each in one flat tensor.

    Whoever wraps (Lightning, the whole LightningModule) does it behind this, with :attr:`policy`.

    Args:
        model: whole, not yet wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._frame = _with_parameters(model, lambda name, p: torch.empty_like(p, device="meta"))

    @property
    def policy(self) -> Callable[..., Any]:
        """Which modules become one unit each: the decoder's layers, and the adapters in them apart from the frozen rest.

        A flat tensor has one dtype, and adapters are in float32 on a model of bfloat16; and one that needs gradients in part
        keeps memory for all of them.
        """
        from torch.distributed.fsdp.wrap import CustomPolicy

        layers = set(_longest_list(self.model))
        partly = len({p.requires_grad for p in self.model.parameters()}) > 1
        return CustomPolicy(lambda module: module in layers or (partly and _is_trained_leaf(module)))  # type: ignore[return-value]

    @staticmethod
    def as_it_is() -> Any:
        """Mixed precision that casts nothing, parameters, gradients or buffers: rotary frequencies in bfloat16 lose positions."""
        from torch.distributed.fsdp import MixedPrecision

        return MixedPrecision()

    def whole(self, root: nn.Module) -> nn.Module:
        """As :meth:`ShardedModel.whole`; ``root`` is the outermost wrapped module. Beside the whole model one unit at a time is there."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        names = {module: _plain_name(f"{name}.") for name, module in self.model.named_modules()}
        values: dict[str, Tensor] = {}
        for unit in FullyShardedDataParallel.fsdp_modules(root):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                for module in _of_unit(unit):
                    if module in names:
                        own = module.named_parameters(recurse=False)
                        values |= {names[module] + name: p.detach().clone() for name, p in own}
        return _with_parameters(self._frame, lambda name, p: values[name])


def token_share(labels: Tensor) -> Tensor | float:
    """This rank's number of counted tokens over the mean of all ranks: a factor for its loss.

    Ranks average their gradients; with it the average is that of the tokens, as in one process, not one of averages. All ranks
    must call it; 1 in a single process.

    Args:
        labels: ``[batch, seq_len]``, -100 where not counted.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    own = (labels[:, 1:] != -100).sum().float()
    total = own.clone()
    dist.all_reduce(total)
    return own * dist.get_world_size() / total


def _with_parameters(model: nn.Module, value: Callable[[str, Any], Tensor]) -> nn.Module:
    """A copy with other parameters, tied where the model's are, without ever copying these."""
    memo: dict[int, Any] = {id(p): nn.Parameter(value(name, p), p.requires_grad) for name, p in model.named_parameters()}
    return copy.deepcopy(model, memo)


def _of_unit(unit: nn.Module) -> Iterator[nn.Module]:
    """The modules inside a wrapped one whose parameters are in its flat tensor."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for child in unit.children():
        if not isinstance(child, FullyShardedDataParallel):
            yield child
            yield from _of_unit(child)


def _is_trained_leaf(module: nn.Module) -> bool:
    own = list(module.parameters())
    return next(module.children(), None) is None and bool(own) and all(p.requires_grad for p in own)


def _plain_name(name: str) -> str:
    """Without what wrapping adds."""
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def _longest_list(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder's layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    yield from max(lists, key=len, default=())
