"""GPT-2 (Radford et al., 2019): weights lie ``[in, out]`` in ``Conv1D``; q, k and v are split by an attribute."""

from typing import Any

from torch import nn

from adapruner.models.families.family import Family, IndexMap, LayerShape, register_family
from adapruner.models.families.index_maps import stacked_qkv


def _qkv(config: Any) -> IndexMap:
    heads = config.num_attention_heads
    return stacked_qkv("attn.c_attn", heads, heads, config.hidden_size // heads)


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    width = shape.query_heads * shape.head_dim
    return {"attn": {"num_heads": shape.query_heads, "split_size": width, "embed_dim": width}}


def _linear_form(model: nn.Module) -> None:
    """``Conv1D`` computes x W + b: a linear layer with the transposed weight."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, device="meta")
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=module.weight.requires_grad)
            linear.bias = module.bias
            model.set_submodule(name, linear.train(module.training))


def _stock_state(state: dict[str, Any], config: Any) -> dict[str, Any]:
    names = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: tensor.T.contiguous() if name.endswith(names) else tensor for name, tensor in state.items()}


register_family(
    Family(
        "gpt2",
        outputs={"attn.c_proj": "attention", "mlp.c_proj": "ffn"},
        maps={"attention": _qkv},
        attributes=_attributes,
        linear_form=_linear_form,
        stock_state=_stock_state,
        ffn_name="n_inner",
        head_counts=False,
    )
)
