"""What has to be known about a model family: nothing for most, one small file for the others.

A decoder that :mod:`adapruner.models.tracing` reads by itself needs no file here. One does

- whose output projections have uncommon names (:attr:`~adapruner.models.families.family.Family.outputs`),
- whose query, key and value are fused, so that the tracer gets the rows wrong (``maps``),
- whose forward reads its widths from attributes (``attributes``),
- whose layers are not made of linear layers (``linear_form``),
- where a kind of unit cannot be removed exactly (``unprunable``),
- or whose stock class has no configuration for every width (the export's fields).
"""

from adapruner.models.families.family import FAMILIES, TRIED, Family, LayerShape, family_of, known_families, register_family

__all__ = ["FAMILIES", "TRIED", "Family", "LayerShape", "family_of", "known_families", "register_family"]
