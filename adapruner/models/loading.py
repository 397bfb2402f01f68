"""Loads a causal language model and its tokenizer from the hub or a folder, and checks that a model is one that can be pruned."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError, ModelError
from adapruner.freed_memory import give_back_freed_memory
from adapruner.models.gguf_input import dequantising, gguf_arguments, is_gguf, one_bar, without_quantisation
from adapruner.models.loading_checks import check_loaded, check_model_folder
from adapruner.models.model_names import DEMO, PACKAGE, check_model_name, file_of_package

DTYPES = ("auto", "float32", "bfloat16", "float16")


def model_source(name_or_path: str) -> str:
    """Where a model comes from: the embedded folder for ``demo``, a package's file for ``package:``, else the name as given.

    Raises:
        ModelError: if the package is not installed or has no such file.
    """
    if name_or_path.startswith(PACKAGE):
        return file_of_package(name_or_path)
    if name_or_path != DEMO:
        return name_or_path
    from adapruner.demo import MODEL_FOLDER

    return str(MODEL_FOLDER)


def check_dtype(dtype: str) -> None:
    """Refuses the name of a type that models are not loaded in.

    Raises:
        ConfigurationError: if it is none of :data:`DTYPES`.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f"model.dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}; name one of them")


def load_language_model(
    name_or_path: str,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A dense causal language model in evaluation mode, from safetensors or GGUF; ``from_pretrained`` with our errors.

    Args:
        name_or_path: hub name, local folder or GGUF file, whose weights are dequantised; ``package:NAME/PATH`` is a file that an installed
            package carries; ``demo`` is the small model that comes with adapruner. An export with layers of different widths is loaded
            by :func:`adapruner.load` instead.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; the library's choice when empty.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run modelling code that comes with the model. Off: such a model is refused.

    Raises:
        ConfigurationError: for an unknown dtype.
        ModelError: if the folder or hub name cannot be loaded, or has other tensors than its configuration builds.

    >>> load_language_model("demo").config.model_type
    'llama'
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_dtype(dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # they are refused below, by name
    options["dtype"] = "auto" if dtype == "auto" else getattr(torch, dtype)
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if is_gguf(name_or_path):
        del options["use_safetensors"]
        options.update(dequantising())
    with one_bar() if is_gguf(name_or_path) else nullcontext():
        model, found = _from_pretrained(AutoModelForCausalLM, "model", name_or_path, revision, **options)
    check_loaded(model, found, name_or_path)
    give_back_freed_memory()  # the dequantised tensors, say
    return without_quantisation(model, name_or_path) if is_gguf(name_or_path) else model


def load_tokenizer(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; one without a padding token pads with its end of text.

    Args:
        name_or_path: as for :func:`load_language_model`.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the tokenizer.

    Raises:
        ModelError: if it cannot be loaded.

    >>> load_tokenizer("demo").decode(load_tokenizer("demo")("a word")["input_ids"], skip_special_tokens=True)
    'a word'
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, "tokenizer", name_or_path, revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_language_model(model: Any, where: str) -> None:
    """Refuses what is not a whole Hugging Face causal LM.

    Args:
        model: what should be one.
        where: the attribute or argument that holds it, for the message: ``MyModule.model``.

    Raises:
        ModelError: if it lacks ``config`` or ``get_input_embeddings``, is compiled, or some parameter has no value or is spread over
            ranks.
    """
    if model is None or not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        raise ModelError(
            f"model_attribute: expected a Hugging Face causal LM in {where}, got "
            f"{type(model).__name__}; name the attribute that holds it, and build it in __init__ or configure_model"
        )
    if not getattr(model, "can_generate", lambda: True)():
        raise ModelError(
            f"model_attribute: expected a model with a head that predicts tokens in {where}, got {type(model).__name__}; "
            "load it with AutoModelForCausalLM"
        )
    if hasattr(model, "peft_config"):
        raise ModelError(f"model_attribute: expected a model without adapters in {where}, got {type(model).__name__}; merge them first")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(f"model_attribute: expected a model that is not compiled in {where}, got one; compile it after pruning")
    empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if empty is not None:
        raise ModelError(f"model_attribute: expected a model with weights in {where}, got {empty} on the meta device; load its weights")
    if is_sharded(model):
        raise ModelError(
            "configure_model: expected it to build the whole model, got one that is sharded before the surgery; shard it in the "
            "module's setup, which comes after the callbacks'"
        )


def is_sharded(model: Any) -> bool:
    """Whether some parameter is spread over ranks, by FSDP1 or FSDP2."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    flat = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return flat or any(hasattr(p, "full_tensor") for p in model.parameters())


def leave_out_warnings_of_widths() -> None:
    """From here on transformers does not warn that the configuration of an export has widths for each layer: our classes follow them.

    Three lines that nobody can act on, said while the configuration is read, before any class of ours is asked for.
    """
    import_module("adapruner.models.families.modeling_adapruner")  # which has the filter, for exports that are loaded without us


def _from_pretrained(factory: Any, what: str, name_or_path: str, revision: str | None, **options: Any) -> Any:
    source = model_source(name_or_path)
    if is_gguf(source):
        source, gguf = gguf_arguments(source)
        options.update(gguf)
    check_model_name(source, revision)
    leave_out_warnings_of_widths()
    local = Path(source).exists()
    if Path(source).is_dir() and "gguf_file" not in options:
        check_model_folder(Path(source))
    try:
        return factory.from_pretrained(source, revision=None if local else revision, **options)
    except Exception as error:  # whatever a foreign configuration makes of the library: a division by its zero heads, a failed assertion
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines) if lines[0].rstrip().endswith(":") else lines[0]
        raise ModelError(
            f"model.name_or_path: expected a {what} to load from {name_or_path!r}, got {reason[:200]!r}; "
            "give a local folder with config.json and safetensors, or a hub name this machine can reach"
        ) from error
