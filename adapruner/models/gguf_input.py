"""GGUF files as dense models: transformers dequantises the tensors; what it keeps of the quantisation is taken off the model.

A GGUF holds weights, tokenizer and chat template in one file. What comes of it is an ordinary model in the asked type, whose base was
quantised: pruning and export go on from the dequantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapruner.errors import ModelError
from adapruner.progress import progress_bar

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
#: Attribute of a model's configuration that says what its weights were quantised as; written into ``config.json``.
QUANTISED_BASE = "quantized_base"


def is_gguf(name_or_path: str) -> bool:
    """Whether a model is given as a GGUF file, by its name.

    >>> is_gguf("models/SmolLM2.Q4_1.gguf"), is_gguf("HuggingFaceTB/SmolLM2-135M")
    (True, False)
    """
    return str(name_or_path).lower().endswith(SUFFIX)


def gguf_arguments(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Folder and further arguments for transformers' ``from_pretrained``.

    Raises:
        ModelError: if the file is not there, is no GGUF, or the package that reads it is missing.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise ModelError(f"model.name_or_path: expected a GGUF file, got {name_or_path!r}, which is not there; correct the path")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise ModelError(f"model.name_or_path: expected a GGUF file, got {name_or_path!r}, which begins with {start!r}; give another file")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelError(
            f"model.name_or_path: expected the package gguf to read {name_or_path!r}, got none; pip install 'adapruner[gguf]'"
        ) from None
    return str(path.parent), {"gguf_file": path.name}


def dequantising() -> dict[str, Any]:
    """The further argument that makes transformers unpack every weight: newer versions keep them packed where they have a kernel."""
    try:
        from transformers import GgufConfig  # type: ignore[attr-defined]
    except ImportError:  # versions that cannot keep them packed
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def one_bar() -> Iterator[None]:
    """Inside the block, transformers' bar over the tensors that it dequantises is one of ours: the two would flicker over each other, and
    where there is no terminal or a run was asked to be silent, its own is there all the same."""
    from transformers import modeling_gguf_pytorch_utils as library

    before = getattr(library, "tqdm", None)
    if before is None:  # versions without a bar
        yield
        return
    setattr(library, "tqdm", _counted)  # noqa: B010
    try:
        yield
    finally:
        setattr(library, "tqdm", before)  # noqa: B010


def _counted(tensors: Sequence[Any], **options: Any) -> Iterator[Any]:
    """The tensors one by one, as far as they are unpacked; in the place of ``tqdm``, with whose options."""
    with progress_bar("GGUF tensors", len(tensors)) as advance:
        for done, tensor in enumerate(tensors, start=1):
            yield tensor
            advance(done)


def without_quantisation(model: Any, name_or_path: str) -> Any:
    """The dequantised model as an ordinary one that can be saved, with a note in its configuration of what it was.

    >>> import adapruner
    >>> model, _ = adapruner.stages.load_model("demo")
    >>> without_quantisation(model, "SmolLM2.Q4_1.gguf").config.quantized_base
    'SmolLM2.Q4_1.gguf'
    """
    model.hf_quantizer = None
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    setattr(model.config, QUANTISED_BASE, Path(name_or_path).name)
    return model
