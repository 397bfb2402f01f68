"""Writes an exported folder in DeciLM's form, which vLLM serves by a class of its own, whatever the widths of the layers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.export.folder import PLAN_FILE, copy_tokenizer
from adapruner.export.formats import FormatRecord, register_export_format
from adapruner.export.formats.deci import configuration_decilm
from adapruner.export.formats.deci.layout import Layer, Layout, read_layout
from adapruner.export.formats.gguf.folder import ExportedFolder, read_folder
from adapruner.export.loading import check_whole
from adapruner.export.options import ExportOptions
from adapruner.export.staging import check_folder, is_export, staged
from adapruner.files.atomic import replace_folder
from adapruner.files.digests import write_sums

CLASS = "DeciLMForCausalLM"
_OF_OTHERS = ("pruned_shapes", "pruned_attributes", "per_layer_config", "allow_global_per_layer_attribute_access", "transformers_version")
_HEADS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
"""Projection of the attention -> the dimension in which its heads lie."""
_BIAS = re.compile(r"model\.layers\.\d+\.(.+)\.bias")
_QUERY = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
_OUTPUT = {"self_attn.o_proj"}
_FFN = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@register_export_format
class Deci:
    """The format of ``--format deci``."""

    name = "deci"

    def check(self, target: Path, options: ExportOptions) -> None:
        """Refuses a place that cannot be written, or holds something other than an earlier export."""
        check_folder(target)

    def is_own(self, target: Path) -> bool:
        """Whether the folder is empty, or an earlier export."""
        return target.is_dir() and (is_export(target) or not any(target.iterdir()))

    def write(self, folder: Path, target: Path, options: ExportOptions) -> FormatRecord:
        """Writes what :func:`write_deci` writes: beside the scratch folder first, which lies on the target's file system."""
        new = folder.with_name(f"{folder.name}.{self.name}")
        notes = _fill(new, folder, options.max_shard_size)
        check_folder(target)
        replace_folder(new, Path(os.path.realpath(target)))
        return _record(target, notes)


def write_deci(folder: str | Path, target: str | Path, max_shard_size: str | int = "5GB") -> FormatRecord:
    """Converts an exported Hugging Face folder; an earlier export in the target's place is replaced once the new one is whole.

    Args:
        folder: what :func:`adapruner.export.folder.export_model` wrote, of a Llama, Mistral or Qwen2, of any widths.
        target: where to.
        max_shard_size: of one safetensors file, such as ``"5GB"``.

    Raises:
        ConfigurationError: if ``target`` holds something else or cannot be written.
        ModelError: if the folder is damaged, or DeciLM computes something else.
    """
    with staged(Path(target)) as new:
        notes = _fill(new, Path(folder), max_shard_size)
    return _record(Path(target), notes)


def _record(target: Path, notes: tuple[str, ...]) -> FormatRecord:
    return FormatRecord(target, f"for vLLM, {CLASS}", notes)


def _fill(new: Path, folder: Path, max_shard_size: str | int) -> tuple[str, ...]:
    """Makes the new folder of an export, and returns the notes."""
    from huggingface_hub import save_torch_state_dict

    exported = read_folder(folder)
    layout = read_layout(exported)
    check_whole(folder)
    new.mkdir()
    save_torch_state_dict(_state(exported, layout), new, max_shard_size=max_shard_size, metadata={"format": "pt"})
    (new / "config.json").write_text(json.dumps(_config(exported, layout), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(configuration_decilm.__file__, new / Path(configuration_decilm.__file__).name)
    shutil.copyfile(folder / PLAN_FILE, new / PLAN_FILE)
    copy_tokenizer(folder, new)  # the generation settings with it
    notes = _notes(layout)
    (new / "README.md").write_text(_card(folder / "README.md", notes), encoding="utf-8")
    write_sums(new)
    return notes


def _config(exported: ExportedFolder, layout: Layout) -> dict[str, Any]:
    """Llama's configuration, with what DeciLM reads besides."""
    kept = {key: value for key, value in exported.config.items() if key not in _OF_OTHERS}
    biased = _biased(exported)
    if kept.get("sliding_window") and not kept.get("layer_types"):  # Mistral's, which every layer has
        kept["layer_types"] = ["sliding_attention"] * len(layout.layers)
    return {
        **kept,
        "architectures": [CLASS],
        "model_type": configuration_decilm.DeciLMConfig.model_type,
        "auto_map": {"AutoConfig": f"{Path(configuration_decilm.__file__).stem}.{configuration_decilm.DeciLMConfig.__name__}"},
        "num_attention_heads": layout.heads,
        "num_key_value_heads": max(layout.kv_heads),
        "head_dim": layout.head_dim,
        "intermediate_size": max(layer.ffn for layer in layout.layers),
        "hidden_act": "silu",
        "tie_word_embeddings": exported.tied,
        "attention_bias": biased >= _OUTPUT,  # of o_proj, once qkv_bias is given
        "qkv_bias": biased >= _QUERY,
        "mlp_bias": biased >= _FFN,
        "block_configs": layout.block_configs(int(exported.config["hidden_size"])),
    }


def _state(exported: ExportedFolder, layout: Layout) -> dict[str, Tensor]:
    """Every tensor at DeciLM's widths; zeros for heads and biases that the model does not have."""
    state = {name: exported.tensor(name) for name in exported.shapes if not (exported.tied and name == "lm_head.weight")}
    for index, (layer, kv_heads) in enumerate(zip(layout.layers, layout.kv_heads, strict=True)):
        prefix = f"model.layers.{index}.self_attn"
        for role, dim in _HEADS.items():
            wide = kv_heads if role in ("k_proj", "v_proj") else layout.heads
            heads = list(range(layer.kv_heads)) if role in ("k_proj", "v_proj") else _places(layer, layout.heads // kv_heads)
            for part in ("weight", "bias") if dim == 0 else ("weight",):
                if (name := f"{prefix}.{role}.{part}") in state:
                    state[name] = _spread(state[name], heads, wide, layout.head_dim, dim)
    return {**state, **dict(_zero_biases(exported, state))}


def _places(layer: Layer, group: int) -> list[int]:
    """Where each query head of a layer comes to lie: those of one KV head together, zeros behind them."""
    return [kv * group + head for kv in range(layer.kv_heads) for head in range(layer.group)]


def _spread(tensor: Tensor, heads: list[int], wide: int, head_dim: int, dim: int) -> Tensor:
    """The tensor with its heads at these places of ``wide``, and zeros elsewhere."""
    if len(heads) == wide:
        return tensor
    rows = (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()
    shape = list(tensor.shape)
    shape[dim] = wide * head_dim
    return tensor.new_zeros(shape).index_copy_(dim, rows, tensor)


def _biased(exported: ExportedFolder) -> set[str]:
    """Projections that have a bias in DeciLM: all of a kind, in all layers, where one has one."""
    own = {found[1] for found in map(_BIAS.fullmatch, exported.shapes) if found}
    return {projection for kind in (_QUERY, _OUTPUT, _FFN) if own & kind for projection in kind}


def _zero_biases(exported: ExportedFolder, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Biases that DeciLM has and the model does not."""
    for index in range(int(exported.config["num_hidden_layers"])):
        for projection in _biased(exported):
            name = f"model.layers.{index}.{projection}"
            if f"{name}.bias" not in state:
                yield f"{name}.bias", state[f"{name}.weight"].new_zeros(state[f"{name}.weight"].shape[0])


def _notes(layout: Layout) -> tuple[str, ...]:
    query, key_value = layout.zero_heads
    heads = ((query, layout.heads * len(layout.layers), "query"), (key_value, sum(layout.kv_heads), "KV"))
    counts = " and ".join(f"{empty:,} of the {every:,} {kind} heads of all layers together" for empty, every, kind in heads if empty)
    zeros = f"filled up with heads of zeros, which change no result: {counts}; DeciLM has one number of query heads for all layers"
    return ("transformers has no class for DeciLM: load the export that it was made of", *([zeros] if query or key_value else []))


def _card(source: Path, notes: tuple[str, ...]) -> str:
    """The export's card, which tells how to serve it instead of how to load it."""
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    serve = "```bash\nvllm serve DIR --trust-remote-code\n```\n" + "".join(f"\n- {note}" for note in notes)
    text = re.sub(r"```python\n.*?```", lambda _: serve, text, count=1, flags=re.DOTALL)
    return "".join(line for line in text.splitlines(keepends=True) if "adapruner.load" not in line)
