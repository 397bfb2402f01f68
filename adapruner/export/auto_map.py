"""By which Auto classes of ``transformers`` an export with a modelling file can be loaded."""

from __future__ import annotations

from typing import Any

from adapruner.models.families import modeling_adapruner

_MODULE = modeling_adapruner.__name__.rpartition(".")[2]


def auto_map_of(config: Any) -> dict[str, str]:
    """``auto_map`` of ``config.json``: every Auto class that ``transformers`` has for the family, and our class for it.

    Serving engines build ``AutoModel`` and add a head of their own; a folder without that entry gets the dense stock class there.

    Args:
        config: of the family's stock class.

    >>> from transformers import BloomConfig
    >>> for auto, ours in auto_map_of(BloomConfig()).items():
    ...     print(auto, ours)
    AutoModelForCausalLM modeling_adapruner.PrunedBloomForCausalLM
    AutoModelForSequenceClassification modeling_adapruner.PrunedBloomForSequenceClassification
    AutoModelForTokenClassification modeling_adapruner.PrunedBloomForTokenClassification
    AutoModel modeling_adapruner.PrunedBloomModel
    """
    import transformers

    stock = {auto: getattr(transformers, auto)._model_mapping for auto in modeling_adapruner.AUTO_CLASSES}
    names = {auto: classes[type(config)].__name__ for auto, classes in stock.items() if type(config) in classes}
    return {auto: f"{_MODULE}.{modeling_adapruner.PREFIX}{name}" for auto, name in names.items()}
