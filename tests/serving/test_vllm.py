"""vLLM itself serves every form of export: its greedy tokens are those of transformers in float32 (``make test-vllm``)."""

from __future__ import annotations

from typing import Any

import pytest

from . import cases
from .results import Row

#: Folders that vLLM's own class does not take, with what it says: its Qwen2 divides the hidden size by the heads that are left. The
#: folder's class, by the transformers backend, and DeciLM do.
NOT_BY_ITS_OWN = dict.fromkeys([("Qwen2", "uniform"), ("Qwen2", "padded")], "exceeds dimension size")
EVERY = [(family, form) for family in cases.FAMILIES for form in cases.FORMS]


@pytest.mark.parametrize(("family", "form"), EVERY)
def test_by_the_class_of_the_folder(rows: dict[Any, Row], family: str, form: str) -> None:
    row = rows[family, form, "transformers"]
    assert (row.error, row.equal, row.tokens) == ("", 192, 192)
    assert row.served_by == "TransformersForCausalLM"


@pytest.mark.parametrize(("family", "form"), EVERY)
def test_stock_folders_by_classes_of_its_own(rows: dict[Any, Row], family: str, form: str) -> None:
    row = rows.get((family, form, "vllm"))
    assert (row is not None) == (form in ("uniform", "padded"))
    if row is None:
        return
    if (family, form) in NOT_BY_ITS_OWN:
        assert NOT_BY_ITS_OWN[family, form] in row.error
    else:
        assert (row.error, row.equal, row.tokens) == ("", 192, 192)
        assert row.served_by not in ("TransformersForCausalLM", "")


@pytest.mark.parametrize("family", cases.DECI_FAMILIES)
@pytest.mark.parametrize("form", cases.FORMS)
def test_in_decilm_form(rows: dict[Any, Row], family: str, form: str) -> None:
    row = rows[family, form, "deci"]
    assert (row.error, row.equal, row.tokens) == ("", 192, 192)
    assert row.served_by == "DeciLMForCausalLM"
