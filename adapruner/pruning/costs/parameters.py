"""Parameters: those of the matrices that units live in, or all of the model."""

from __future__ import annotations

from adapruner.pruning.costs import CostInputs, CostModel, Counted, register_cost


@register_cost
class BlockParameters(CostModel):
    """Parameters of the attention and FFN matrices that units live in."""

    name, words, target, in_whole_numbers = "block", "block parameters", "parameters_left", True

    def count(self, inputs: CostInputs) -> Counted:
        """The coupled tensors' parameters; the absolute target counts the whole model's."""
        structure = inputs.structure
        per_unit = {g.name: float(g.parameters_per_unit) for g in structure.groups}
        return Counted(per_unit, float(structure.block_parameters), float(structure.parameters))


@register_cost
class AllParameters(CostModel):
    """Every parameter of the model, embeddings included."""

    name, words, target, in_whole_numbers = "all", "all parameters", "parameters_left", True

    def count(self, inputs: CostInputs) -> Counted:
        """The coupled tensors' parameters, of all parameters."""
        structure = inputs.structure
        return Counted({g.name: float(g.parameters_per_unit) for g in structure.groups}, float(structure.parameters))
