"""README's Python blocks run as they stand, on a tiny model in the place of the reader's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adapruner.run  # noqa: F401  # before anything is shortened: it keeps what it imports
from adapruner import argument_checks
from adapruner.recovery.training import RecoveryConfig
from adapruner.search.config import SearchConfig
from tests.callbacks.test_stranger import Stranger, loader
from tests.test_run import texts
from tests.tiny import save_tiny, tiny_llama, word_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(marker: str) -> str:
    return next(code for code in BLOCKS if marker in code)


class Few(SearchConfig):
    def __init__(self, **_: Any) -> None:
        super().__init__(n_trials=8, random_sets=0)


class Short(RecoveryConfig):
    def __init__(self, **_: Any) -> None:
        super().__init__(steps=2)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the reader has at hand; the search is short."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "my-model", intermediate_size=320)
    for place, short in {
        "search.options.SearchConfig": Few,
        "recovery.training.RecoveryConfig": Short,
        "stages.RecoveryConfig": Short,
    }.items():
        monkeypatch.setattr(f"adapruner.{place}", short)
    found = texts(60)
    yield {
        "texts": found["books"],
        "more_texts": found["code"],
        "held_out_texts": texts(20, seed=9)["books"],
        "model": tiny_llama(intermediate_size=320),
        "tokenizer": word_tokenizer(),
        "my_module": Stranger(),
        "train_loader": loader(4),
        "val_loader": loader(5),
        "test_loader": loader(6),
    }
    argument_checks._hints.cache_clear()  # which may have seen the short ones


def test_the_ten_lines_at_the_top(names: dict[str, Any]) -> None:
    exec(block("adapruner.prune("), names)
    assert names["result"].plan.pruned_fraction == pytest.approx(0.2, abs=0.002)
    assert Path("out/config.json").is_file()


def test_the_stages_one_at_a_time(names: dict[str, Any]) -> None:
    exec(block("stages.score("), names)
    assert names["found"].plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert Path("out/plan.json").is_file()


def test_the_lightning_project(names: dict[str, Any]) -> None:
    code = block("trainer.fit(my_module").replace("max_steps=500", "max_steps=2, accelerator='cpu', logger=False")
    code = code.replace("PruningSearchCallback(0.3,", "PruningSearchCallback(0.3, search=few,")
    exec(code, {**names, "few": Few()})
    assert names["my_module"].plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert Path("out/config.json").is_file()


def test_the_block_on_loading_an_export_names_what_exists() -> None:
    assert "from_pretrained" in block('"runs/quickstart/model"')
    assert len(BLOCKS) == 4  # a new block needs a test here
