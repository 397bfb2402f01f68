"""Perplexity as a metric of torchmetrics: the sums over batches and processes of ``validate``, ``test`` and validation in ``fit``.

In a file of its own because importing torchmetrics is slow. Its own text ``Perplexity`` is not used: it takes
``softmax().log()``, which is infinite as soon as one token's probability underflows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from adapruner.evaluation.perplexity import NLLResult, token_nll


class CausalPerplexity(Metric):
    """Perplexity of next-token predictions, weighted by token over all updates and processes.

    As input to ``update``:

    - ``logits``: ``[b, t, v]`` of any floating type, as the model returns them.
    - ``labels``: ``[b, t]`` int64, not shifted; -100 is ignored.

    As output of ``compute``: a float64 scalar, NaN before any token was seen.

    >>> import torch
    >>> metric = CausalPerplexity()
    >>> metric.update(torch.zeros(2, 5, 16), torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, -100, -100]]))
    >>> metric.compute()
    tensor(16.0000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 1.0

    nll_sum: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last: tuple[Tensor, int] = torch.zeros((), dtype=torch.float64), 0
        self.add_state("nll_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds one batch. :attr:`last` then holds its own sum in nats (a float64 scalar) and its number of predicted tokens.

        Raises:
            DataError: if the shapes do not fit.
        """
        nll_sum, tokens = token_nll(logits, labels)
        self.nll_sum += nll_sum
        self.tokens += tokens
        self.last = nll_sum, tokens

    def compute(self) -> Tensor:
        """``exp`` of the mean negative log-likelihood over everything seen."""
        return torch.exp(self.nll_sum / self.tokens)

    def result(self) -> NLLResult:
        """The sums over everything seen by all processes; all of them must ask."""
        with self.sync_context():
            return NLLResult(float(self.nll_sum), int(self.tokens))
