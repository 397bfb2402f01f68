from __future__ import annotations

from typing import Any

import pytest

from .words import numbered_word_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return numbered_word_tokenizer()
