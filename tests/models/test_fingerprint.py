from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from adapruner.models.fingerprint import fingerprint_model

Builder = Callable[..., Any]


def test_sixteen_hex_digits_the_same_for_a_copy(tiny_model: Builder) -> None:
    model, again = tiny_model("llama"), tiny_model("llama")

    assert re.fullmatch(r"[0-9a-f]{16}", fingerprint_model(model))
    assert fingerprint_model(model) == fingerprint_model(again)
    assert fingerprint_model(model) == fingerprint_model(model.train().requires_grad_(False))


def test_other_weights_shapes_names_and_precisions_differ(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    prints = [
        fingerprint_model(model),
        fingerprint_model(tiny_model("llama", intermediate_size=20)),
        fingerprint_model(tiny_model("mistral")),
    ]
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(1.001)
    prints.append(fingerprint_model(model))
    prints.append(fingerprint_model(model.to(torch.bfloat16)))

    assert len(set(prints)) == 5


def test_the_same_values_under_another_name_differ() -> None:
    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            setattr(self, name, nn.Parameter(torch.ones(3)))

    assert fingerprint_model(Named("a")) != fingerprint_model(Named("b"))


def test_first_and_last_value_of_a_long_tensor_count() -> None:
    linear = nn.Linear(1000, 1, bias=False)
    nn.init.zeros_(linear.weight)
    prints = {fingerprint_model(linear)}
    for position in (0, 999):
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[0, position] = 1.0
        prints.add(fingerprint_model(linear))

    assert len(prints) == 3


def test_the_meta_device_has_a_fingerprint_of_shapes(tiny_model: Builder) -> None:
    with torch.device("meta"):
        small, large = nn.Linear(3, 4), nn.Linear(4, 3)

    assert fingerprint_model(small) != fingerprint_model(large)
