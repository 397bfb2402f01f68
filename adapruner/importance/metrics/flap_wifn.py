"""FLAP's WIFN: mean_i |W_ij| * ||X_j||, as Wanda-sp, but each layer's scores standardised. An et al., arXiv 2312.11983, section 4.1."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs
from adapruner.importance.metrics.wanda_sp import WandaSP


@register_metric
class FluctuationWIFN:
    """Wanda-sp's score under FLAP's name; FLAP ranks it globally after a z-score within each group."""

    name = "flap_wifn"
    paper = "arXiv 2312.11983, section 4.1"
    needs = WandaSP.needs

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``: z-scores over the group's channels, moved to start at 0 (only their order is used)."""
        scores = WandaSP().score(inputs)
        z = (scores - scores.mean()) / scores.std(correction=0).clamp_min(1e-12)
        return z - z.min()
