"""Mixtures of experts in a form made of linear layers: the experts side by side as one wide network, the router as a layer.

Exact, at a price: every expert is computed for every token, ``experts / num_experts_per_tok`` times the products of the stock
class. Masks, statistics, surgery and adapters then need to know nothing about experts; exports are stacked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError


class LinearRouter(nn.Module):
    """A stock router whose weight is that of a linear layer, ``router``: softmax over all experts, then the largest few."""

    def __init__(self, stock: Any) -> None:
        """Takes over the weight ``[experts, hidden]`` of a stock router."""
        nn.Module.__init__(self)  # a class made of this one and the stock one must not build the stock one's tensors
        self.top_k = int(stock.top_k)
        self.norm_topk_prob = bool(getattr(stock, "norm_topk_prob", True))  # Mixtral always does
        self.router = _linear(stock.weight.detach(), stock.weight.requires_grad)
        self._kept: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[tokens, experts]``, weights ``[tokens, top_k]`` and indices ``[tokens, top_k]`` of the chosen experts."""
        logits = self.router(hidden_states.reshape(-1, self.router.in_features))
        among = logits if self._kept is None else logits[:, self._kept.to(logits.device)]
        scores, indices = torch.topk(torch.softmax(among, dim=-1, dtype=torch.float), self.top_k, dim=-1)
        if self.norm_topk_prob:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return logits, scores.to(logits.dtype), indices if self._kept is None else self._kept.to(indices.device)[indices]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is made on the spot: a pickle could not find it by name."""
        return _empty_router, (type(self).__bases__[1],), self.__dict__

    @contextmanager
    def choosing_among(self, kept: list[int]) -> Iterator[None]:
        """Inside the block the other experts are never chosen and have no part in the softmax, as if they were not there."""
        before, self._kept = self._kept, torch.tensor(kept, dtype=torch.long)
        try:
            yield
        finally:
            self._kept = before


class WideExperts(nn.Module):
    """``y = down(cat_e act(gate_e x) * (up_e x) * r_e)``, with ``r_e`` the token's routing weight of expert e, 0 if not chosen.

    The channels of expert e are the e-th of as many runs of equal length as the router has rows. It stands where a stock class
    has its stacked experts, is called as they are, and computes in any precision (the stock class refuses float64). The layers
    have names of their own because peft takes a ``gate_proj`` in a mixture for a part of a stacked parameter, and finds none.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: Any, router: LinearRouter) -> None:
        """Copies ``gate_up`` ``[experts, 2 * width, hidden]`` and ``down`` ``[experts, hidden, width]``; keeps neither."""
        super().__init__()
        experts, hidden, width = down.shape
        self.act_fn = act_fn
        self._router = (router,)  # in a tuple: it belongs to the block, and is asked only how many experts there are
        gate, up = gate_up.unflatten(1, (2, width)).unbind(1)
        trained = gate_up.requires_grad
        self.wide_gate = _linear(_copy(gate).view(experts * width, hidden), trained)
        self.wide_up = _linear(_copy(up).view(experts * width, hidden), trained)
        self.wide_down = _linear(_copy(down.transpose(0, 1)).view(hidden, experts * width), down.requires_grad)

    @property
    def sets(self) -> int:
        """Number of experts, for the tracer: equally many channels of each stay."""
        return int(self._router[0].router.out_features)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``[tokens, hidden]``.

        Args:
            hidden_states: ``[tokens, hidden]``.
            top_k_index: ``[tokens, chosen]`` int64, the experts of each token.
            top_k_weights: ``[tokens, chosen]``, their routing weights.
        """
        experts = self.sets
        routing = hidden_states.new_zeros(len(hidden_states), experts)
        routing = routing.scatter(1, top_k_index, top_k_weights.to(routing.dtype))
        up = self.wide_up(hidden_states).unflatten(1, (experts, -1))
        # weighted before the product: an expert that was not chosen cannot overflow in half precision, and 0 * inf is no 0
        weighted = (up * routing[..., None]).flatten(1)
        return self.wide_down(self.act_fn(self.wide_gate(hidden_states)) * weighted)  # type: ignore[no-any-return]


def widen_experts(model: nn.Module) -> None:
    """Gives every mixture of the model wide experts and a linear router, in place, one layer at a time. Again, it does nothing.

    Raises:
        ModelError: if some decoder layers have experts and others none.
    """
    # the blocks, not their experts: a list of these would keep all stacked tensors until the end
    mixtures: list[Any] = [m for m in model.modules() if hasattr(m, "experts") and hasattr(m, "gate")]
    if mixtures and all(isinstance(block.experts, WideExperts) for block in mixtures):
        return
    depth = model.config.num_hidden_layers  # type: ignore[union-attr]
    if len(mixtures) != depth:
        raise ModelError(
            f"model: expected experts in all {depth} decoder layers of {type(model).__name__}, got them in {len(mixtures)}; "
            "give one without mlp_only_layers and with decoder_sparse_step 1"
        )
    for block in mixtures:
        stock, training = block.experts, block.training
        block.gate = _router_class(type(block.gate))(block.gate).train(training)  # type: ignore[arg-type]  # classes hash
        block.experts = WideExperts(stock.gate_up_proj, stock.down_proj, stock.act_fn, block.gate).train(training)


def stack_experts(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors of the wide form, pruned or not -> ``gate_up_proj`` ``[experts, 2 * width, hidden]``, ``down_proj`` ``[experts,
    hidden, width]`` and the router's ``weight`` ``[experts, hidden]``; layers may differ in both. Others stay as they are."""
    found = {name.replace(".gate.router.weight", ".gate.weight"): tensor for name, tensor in state.items()}
    for name in [n for n in state if n.endswith(".gate.router.weight")]:
        block, experts = name.removesuffix("gate.router.weight"), state[name].shape[0]
        parts = [found.pop(f"{block}experts.{part}.weight") for part in ("wide_gate", "wide_up")]
        down = found.pop(f"{block}experts.wide_down.weight")
        found[f"{block}experts.gate_up_proj"] = torch.cat([part.unflatten(0, (experts, -1)) for part in parts], dim=1)
        found[f"{block}experts.down_proj"] = down.unflatten(1, (experts, -1)).transpose(0, 1).contiguous()
    return found


@cache
def _router_class(stock: type[nn.Module]) -> Any:
    """Also a ``stock``: ``output_router_logits`` finds routers by their class."""
    return type(f"Linear{stock.__name__}", (LinearRouter, stock), {"__module__": __name__, "__doc__": LinearRouter.__doc__})


def _empty_router(stock: type[nn.Module]) -> Any:
    made = _router_class(stock)  # type: ignore[arg-type]  # classes hash
    return made.__new__(made)


def _copy(tensor: Tensor) -> Tensor:
    """Contiguous, with a storage of its own, so that the stacked tensor can go."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _linear(weight: Tensor, trained: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=trained)
    return linear
