"""GiB of the whole model's weights, as they are stored."""

from __future__ import annotations

from adapruner.pruning.costs import CostInputs, CostModel, Counted, register_cost

GIB = 2**30


@register_cost
class WeightMemory(CostModel):
    """GiB of weights."""

    name, words, target = "memory", "GiB of weights", "weight_memory_gib"

    def count(self, inputs: CostInputs) -> Counted:
        """The coupled tensors' bytes, of those of all parameters and buffers."""
        sizes = inputs.known_sizes(self.name)
        per_parameter = sizes.bytes_per_parameter / GIB  # a power of two: dividing by it loses nothing
        return Counted({g.name: g.parameters_per_unit * per_parameter for g in inputs.structure.groups}, sizes.weight_bytes / GIB)
