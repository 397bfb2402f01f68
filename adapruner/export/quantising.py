"""What a quantiser will make of an export's widths: told in its notes, for whoever wants four bits of it later.

Quantisers share a scale over a group of neighbours along a row of a matrix, which is as long as its inputs. Where the group does not
divide the row, the tool refuses the matrix or leaves it in 16 bits. A pruned width is the row of one matrix in each block: that of the
output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

#: Channels of a group -> who groups so.
GROUPS = {
    32: "Q8_0, Q4_0, int4 in groups of 32",
    64: "int4 in groups of 64",
    128: "int4 in groups of 128, which AWQ, GPTQ and W4A16 take by default",
    256: "Q4_K_M and the like",
}
_SHOWN = 4
"""Widths of one matrix that a note names."""


def group_notes(model: Any) -> list[str]:
    """One note on the rows that common groups do not divide; none where the largest, of 256, divides them all.

    Args:
        model: a causal LM; on the meta device, too.

    >>> group_notes(nn.Sequential(nn.Linear(96, 512), nn.Linear(512, 8)))[0][:75]
    'quantising: groups of 64 (int4 in groups of 64) do not divide rows of 0 (96'
    """
    rows, told, clauses = _rows(model), set[tuple[str, int]](), []
    for size, who in GROUPS.items():
        odd = {(role, width) for role, widths in rows.items() for width in widths if width % size} - told
        if odd:
            named = " and ".join(
                f"{role} ({_listed(sorted(w for r, w in odd if r == role))})" for role in rows if role in {r for r, _ in odd}
            )
            clauses.append(f"groups of {size} ({who}) do not divide rows of {named}" if not told else f"of {size} ({who}) also {named}")
        told |= odd
    remedy = (
        "such matrices are refused or keep more bits; FFN widths that fit come from --pruning.search.space.allocation.round_to and the "
        "size of the group, such as 128"
    )
    return [f"quantising: {'; '.join(clauses)}: {remedy}"] if clauses else []


def _rows(model: Any) -> dict[str, set[int]]:
    """Role -> lengths of the rows, over all layers. Rows of the residual stream are one role, whoever reads it."""
    config = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", None)
    found: dict[str, set[int]] = {}
    for name, length in _matrices(model):
        role = "the residual stream" if length == hidden else name.rpartition(".")[2]
        found.setdefault(role, set()).add(length)
    return found


def _matrices(model: Any) -> Iterator[tuple[str, int]]:
    """Name and inputs of every linear layer, GPT-2's transposed ones and fused experts among them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module.in_features
        elif type(module).__name__ == "Conv1D":
            yield name, module.weight.shape[0]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:  # [experts, outputs, inputs]
            yield name, parameter.shape[2]


def _listed(widths: list[int]) -> str:
    more = f" and {len(widths) - _SHOWN} more" if len(widths) > _SHOWN else ""
    return ", ".join(map(str, widths[:_SHOWN])) + more
