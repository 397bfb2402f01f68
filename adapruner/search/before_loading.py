"""What a model's configuration alone refuses, before weights and text are read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from adapruner.models.gguf_input import is_gguf
from adapruner.models.loading import model_source
from adapruner.models.model_names import check_model_name
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.costs import COSTS
from adapruner.pruning.costs.sizes import ModelSizes, measure_sizes
from adapruner.search.options import PruningOptions

#: Of a configuration that says less than the folder: it was pruned before, or brings its own code.
_SAYS_LESS = ("adapruner", "pruned_shapes", "per_layer_config", "auto_map")


def check_budget_before_loading(name_or_path: str, options: PruningOptions, revision: str | None = None) -> None:
    """Whether any plan can reach the budget: by the model that the configuration builds, on the meta device.

    What cannot be known in this way passes, and is judged with the model: of GGUF files, whose configuration takes as long to read as the
    model, of exports, and of budgets that are measured. So does a configuration that cannot be read; loading says what is wrong with it.

    Args:
        name_or_path: as of :func:`adapruner.models.loading.load_language_model`.
        options: what is asked for.
        revision: on the hub.

    Raises:
        BudgetError: if none can.
        ModelError: if there is no such model.

    >>> from adapruner.search.options import pruning_options
    >>> check_budget_before_loading("demo", pruning_options(0.93))
    Traceback (most recent call last):
    adapruner.errors.BudgetError: budget.pruned_fraction: expected at most 0.9176 of block parameters for this model, got 0.93; ...
    """
    others = options.depth_width or options.search.space.pruned_fraction or (options.recipe and options.recipe.pruned_fraction)
    if options.plan is not None or others or COSTS.find(options.budget.of).timed:
        return
    source = model_source(name_or_path)
    check_model_name(source, revision)
    known: tuple[ModelStructure, ModelSizes] | None = None
    with suppress(Exception):  # of whatever library, for whatever reason
        known = _structure(source, options, revision)
    if known is not None and known[0].groups:  # without any it is no model, and loading says why
        options.budget.costs(known[0], sizes=known[1])


def _structure(source: str, options: PruningOptions, revision: str | None) -> tuple[ModelStructure, ModelSizes] | None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if is_gguf(source):
        return None
    config: Any = AutoConfig.from_pretrained(
        source,
        revision=None if Path(source).exists() else revision,
        trust_remote_code=False,  # else a terminal is asked
    )
    if set(_SAYS_LESS) & set(config.to_dict()):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    structure = trace_structure(model, options.attention_units, options.ffn_units)
    return structure, measure_sizes(model, structure)
