"""The pipeline's stages as Lightning callbacks, for any project: thin faces of the packages in ``adapruner/``.

======================================== ===================================================================
:class:`PruningSearchCallback`           searches the recipe and prunes the model before the first step
:class:`LoRARecoveryCallback`            puts LoRA adapters on the pruned model, merges them at the end
:class:`RecoveryCheckpointCallback`      keeps the last state of recovery, for a run that was ended
:class:`ZeroShotEvaluationCallback`      scores dense, pruned and recovered model on zero-shot tasks
:class:`CompressionReportCallback`       measures dense against pruned, writes the JSON and the page
:class:`PrunedExportCallback`            writes the Hugging Face folder
:class:`PruningListener`                 base class of callbacks that follow the pruning of a model
======================================== ===================================================================

The files live at the top of the repository; their name on import is ``adapruner.callbacks``. From a checkout,
``import callbacks`` works too and gives the very same modules, so that no class ever exists twice.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, spec_from_loader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from adapruner.callbacks.compression_report import CompressionReportCallback
    from adapruner.callbacks.listener import PruningListener
    from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
    from adapruner.callbacks.pruned_export import PrunedExportCallback
    from adapruner.callbacks.pruning_search import PruningSearchCallback
    from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
    from adapruner.callbacks.zero_shot_evaluation import ZeroShotEvaluationCallback

__all__ = [
    "CompressionReportCallback",
    "LoRARecoveryCallback",
    "PrunedExportCallback",
    "PruningListener",
    "PruningSearchCallback",
    "RecoveryCheckpointCallback",
    "ZeroShotEvaluationCallback",
]

#: Public name -> the module that defines it; imported on first use.
_LAZY = {
    "CompressionReportCallback": "adapruner.callbacks.compression_report",
    "LoRARecoveryCallback": "adapruner.callbacks.lora_recovery",
    "PrunedExportCallback": "adapruner.callbacks.pruned_export",
    "PruningListener": "adapruner.callbacks.listener",
    "PruningSearchCallback": "adapruner.callbacks.pruning_search",
    "RecoveryCheckpointCallback": "adapruner.callbacks.recovery_checkpoint",
    "ZeroShotEvaluationCallback": "adapruner.callbacks.zero_shot_evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _BareName:
    """Finder and loader of ``callbacks.x``: gives the module ``adapruner.callbacks.x`` itself.

    Without it the import system would run the file a second time under the bare name.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("callbacks.") or find_spec(f"adapruner.{name}") is None:
            return None
        return spec_from_loader(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty stand-in, which :meth:`exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(f"adapruner.{module.__name__}")


if __name__ == "callbacks":
    sys.meta_path.insert(0, _BareName())
    sys.modules["callbacks"] = import_module("adapruner.callbacks")
