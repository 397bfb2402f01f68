"""Structured pruning of language models, from calibration text to a folder that loads anywhere.

>>> import adapruner
>>> result = adapruner.prune(model, tokenizer, calibration=texts, budget=0.2)  # doctest: +SKIP
>>> result.save("out")  # doctest: +SKIP

:mod:`adapruner.run` is the run from top to bottom and the file to read first; each of its stages is one room:

1. :mod:`adapruner.data` -- text in, token windows out.
2. :mod:`adapruner.models` -- what a model is made of: heads, KV groups and FFN channels, each with every coupled row and column.
3. :mod:`adapruner.importance` -- statistics collected once per calibration sample, one metric per file, their mixture.
   :mod:`adapruner.calibration` -- the weights of the calibration samples.
4. :mod:`adapruner.pruning` -- scores and a budget become a plan; masks for the trials, one surgery for the winner.
5. :mod:`adapruner.recovery` -- closed-form reconstruction, then LoRA.
6. :mod:`adapruner.search` -- which recipe: the space, the objective, a study that can be killed and resumed.
7. :mod:`adapruner.evaluation` -- perplexity, zero-shot tasks, parameters, MACs, memory and latency.
8. :mod:`adapruner.report` -- one JSON and one page with plots.
9. :mod:`adapruner.export` -- a Hugging Face folder, with the stock class whenever the shapes allow it; GGUF.

:mod:`adapruner.callbacks` puts these stages into any Lightning project; :mod:`adapruner.cli` runs them from a YAML file.

The names below are imported on first use: ``import adapruner`` loads neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapruner._version import __version__
from adapruner.errors import AdaPrunerError

if TYPE_CHECKING:
    from adapruner import stages
    from adapruner.data_module import PruningDataModule
    from adapruner.export.loading import load
    from adapruner.importance.metrics import register_metric
    from adapruner.models.families.family import register_family
    from adapruner.module import PrunableCausalLM
    from adapruner.pruned_module import PrunedCheckpoints
    from adapruner.pruning.allocation import Allocation
    from adapruner.pruning.budget import Budget
    from adapruner.pruning.plan import PruningPlan, read_plan
    from adapruner.pruning.recipe import Recipe
    from adapruner.recovery.configuration import ReconstructionConfig
    from adapruner.recovery.distillation import DistillationConfig
    from adapruner.recovery.early_stop import EarlyStopConfig
    from adapruner.recovery.lora import LoRAConfig
    from adapruner.recovery.training import RecoveryConfig
    from adapruner.report.recorder import ReportConfig
    from adapruner.run import PruningResult, prune
    from adapruner.search.config import SearchConfig
    from adapruner.search.objectives import ObjectiveConfig
    from adapruner.search.space import SearchSpace

__all__ = [
    "AdaPrunerError",
    "Allocation",
    "Budget",
    "DistillationConfig",
    "EarlyStopConfig",
    "LoRAConfig",
    "ObjectiveConfig",
    "PrunableCausalLM",
    "PrunedCheckpoints",
    "PruningDataModule",
    "PruningPlan",
    "PruningResult",
    "Recipe",
    "ReconstructionConfig",
    "RecoveryConfig",
    "ReportConfig",
    "SearchConfig",
    "SearchSpace",
    "__version__",
    "load",
    "prune",
    "read_plan",
    "register_family",
    "register_metric",
    "stages",
]

#: Public name -> the module that defines it.
_LAZY = {
    "Allocation": "adapruner.pruning.allocation",
    "Budget": "adapruner.pruning.budget",
    "DistillationConfig": "adapruner.recovery.distillation",
    "EarlyStopConfig": "adapruner.recovery.early_stop",
    "LoRAConfig": "adapruner.recovery.lora",
    "ObjectiveConfig": "adapruner.search.objectives",
    "PrunableCausalLM": "adapruner.module",
    "PrunedCheckpoints": "adapruner.pruned_module",
    "PruningDataModule": "adapruner.data_module",
    "PruningPlan": "adapruner.pruning.plan",
    "PruningResult": "adapruner.run",
    "Recipe": "adapruner.pruning.recipe",
    "ReconstructionConfig": "adapruner.recovery.configuration",
    "RecoveryConfig": "adapruner.recovery.training",
    "ReportConfig": "adapruner.report.recorder",
    "SearchConfig": "adapruner.search.config",
    "SearchSpace": "adapruner.search.space",
    "load": "adapruner.export.loading",
    "prune": "adapruner.run",
    "read_plan": "adapruner.pruning.plan",
    "register_family": "adapruner.models.families.family",
    "register_metric": "adapruner.importance.metrics",
}


def __getattr__(name: str) -> Any:
    if name == "stages":
        return import_module("adapruner.stages")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
