"""Structured pruning of language models, from calibration text to a folder that loads anywhere.

The pipeline is readable from the folder tree; each stage is one package, in this order:

1. :mod:`adapruner.data` -- text in, token windows out: sources, the calibration pool ``[n_samples, seq_len]``.
2. :mod:`adapruner.models` -- what the model is made of: heads, KV groups and FFN channels, each with every coupled row
   and column.
3. :mod:`adapruner.importance` -- statistics collected once per calibration sample, one metric per file, their mixture.
   :mod:`adapruner.calibration` -- which samples of the pool speak, and how much.
4. :mod:`adapruner.search` -- which recipe: the space, the objective, a study that can be killed and resumed.
5. :mod:`adapruner.pruning` -- scores and a budget become a plan; masks for the trials, one surgery for the winner.
6. :mod:`adapruner.recovery` -- closed-form reconstruction, then LoRA in the same ``fit``.
7. :mod:`adapruner.evaluation` -- perplexity, zero-shot tasks, parameters, MACs, memory and latency.
8. :mod:`adapruner.report` -- one JSON and one page with plots.
9. :mod:`adapruner.export` -- a Hugging Face folder, with the stock class whenever the shapes allow it.

:mod:`adapruner.callbacks` puts these stages into any Lightning project; :mod:`adapruner.cli` runs them from a YAML file.

The names below are imported on first use: ``import adapruner`` loads neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapruner._version import __version__
from adapruner.errors import AdaPrunerError

if TYPE_CHECKING:
    from adapruner.data_module import PruningDataModule
    from adapruner.export.loading import load
    from adapruner.module import PrunableCausalLM
    from adapruner.pruning.plan import PruningPlan, read_plan

__all__ = [
    "AdaPrunerError",
    "PrunableCausalLM",
    "PruningDataModule",
    "PruningPlan",
    "__version__",
    "load",
    "read_plan",
]

#: Public name -> the module that defines it.
_LAZY = {
    "PrunableCausalLM": "adapruner.module",
    "PruningDataModule": "adapruner.data_module",
    "PruningPlan": "adapruner.pruning.plan",
    "load": "adapruner.export.loading",
    "read_plan": "adapruner.pruning.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
