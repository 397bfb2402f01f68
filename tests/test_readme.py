"""README's Python blocks run as they stand, on a tiny model in the place of the reader's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adapruner.run  # noqa: F401  # before anything is shortened: it keeps what it imports
from adapruner import argument_checks
from adapruner.cli.help_page import COMMANDS
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.cli.prune import fit_words
from adapruner.cli.shipped_configs import find_configs
from adapruner.recovery.training import RecoveryConfig
from adapruner.search.config import SearchConfig
from tests.test_run import texts
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    Path("my-text.txt").write_text("\n\n".join(texts(240)["books"]))
    yield {"__name__": "stranger"}
    argument_checks._hints.cache_clear()  # which may have seen the short ones


def test_the_ten_lines_at_the_top(names: dict[str, Any]) -> None:
    exec(block("adapruner.prune("), names)
    assert names["result"].plan.pruned_fraction == pytest.approx(0.2, abs=0.002)
    assert Path("out/config.json").is_file()
    assert "perplexity on texts, windows of 128 tokens: " in repr(names["result"])


def test_the_lightning_project(names: dict[str, Any]) -> None:
    code = block("class MyModule(LightningModule)").replace("max_steps=200", "max_steps=2, accelerator='cpu', logger=False")
    assert "PruningSearchCallback(0.3, SearchConfig(64)," in code
    code = code.replace("SearchConfig(64)", "few")
    exec(code, names := {**names, "few": Few()})
    assert names["search"].plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
    assert Path("out/config.json").is_file()
    assert Path("out/tokenizer.json").read_bytes() == Path("my-model/tokenizer.json").read_bytes()


def test_every_block_has_a_test_here() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("line", [line.partition("#")[0].split() for line in re.findall(r"^adapruner (.*)$", README, re.MULTILINE)])
def test_commands_are_spelt_right(line: list[str]) -> None:
    command, *words = line
    if command == "prune":
        command, words = "fit", fit_words(words)
    if command == "fit":
        assert read_catalogue("fit").misspelt(find_configs(words)) == []
    else:
        assert command in COMMANDS


def test_a_stranger_reads_it_to_the_end() -> None:
    assert len(README.splitlines()) <= 120


def test_links_lead_somewhere() -> None:
    places = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert len(places) > 5
    assert all(place.startswith("https://") or (ROOT / place).exists() for place in places)
