"""Every Python block of docs runs as it stands, page by page, on a tiny model in the place of the reader's own and of the demo.

README and the pages that extend the package have tests of their own, which run the very code of these pages; the table says which. All
blocks compile, and whatever they import is there.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adapruner.demo
from adapruner import argument_checks
from adapruner.importance.metrics import METRICS
from adapruner.search.config import SearchConfig
from tests.callbacks.test_stranger import loader
from tests.test_run import texts
from tests.tiny import save_tiny, tiny_llama, word_tokenizer

from .blocks import ROOT, Block, blocks

#: Page -> the test that runs its blocks.
ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "CONTRIBUTING.md": "tests/extension/contributing.py",
    "docs/add-a-data-source.md": "tests/data/test_sources.py",
    "docs/add-a-family.md": "tests/models/families/test_adding_a_family.py",
    "docs/add-a-metric.md": "tests/importance/test_adding_a_metric.py",
    "docs/add-an-export-format.md": "tests/export/formats/test_adding_a_format.py",
}
#: Page -> why its blocks are only compiled.
NOT_RUN = {
    "docs/quantising.md": "make test-quantise runs the same calls, in an environment of its own",
    "docs/serving.md": "it loads exports and writes GGUF, as tests/export/test_loading.py and tests/export/formats/gguf do with many more",
}
#: What blocks import and an environment of its own has: `make test-quantise`, or nothing here.
NOT_HERE = {"torchao", "llmcompressor", "compressed_tensors", "trl"}
#: Page -> (what stands there, what runs here), so that seconds are enough.
SHORTER = {
    "docs/tutorial-python.md": [("search=32", "search=few"), ("recovery=20", "recovery=2")],
    "docs/tutorial-lightning.md": [
        ("max_steps=500", "max_steps=2, accelerator='cpu', logger=False"),
        ("PruningSearchCallback(0.3,", "PruningSearchCallback(0.3, search=few,"),
    ],
    "docs/chat-data.md": [("recovery=200", "recovery=2, search=few")],
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
HERE = sorted({block.page for block in blocks("python")} - set(ELSEWHERE) - set(NOT_RUN))


def small_texts(split: str = "calibration") -> dict[str, list[str]]:
    """In the place of the demo's text."""
    found = texts(60, seed=len(split))
    return {"stdlib": found["books"], "numpy": found["code"], "torch": found["code"]}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the reader has at hand."""
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "my-model", intermediate_size=320)
    save_tiny(tmp_path / "runs" / "my-model-0.2" / "model", intermediate_size=320)
    monkeypatch.setattr(adapruner.demo, "MODEL_FOLDER", folder)
    monkeypatch.setattr(adapruner.demo, "texts", small_texts)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    given = texts(60)
    yield {
        "few": SearchConfig(n_trials=8, random_sets=0, rerank=None),
        "texts": given["books"],
        "held_out_texts": texts(20, seed=9)["books"],
        "pairs": list(zip(given["code"], given["books"], strict=True)),
        "model": tiny_llama(intermediate_size=320),
        "tokenizer": tokenizer,
        "train_loader": loader(4),
        "val_loader": loader(5),
        "test_loader": loader(6),
    }
    argument_checks._hints.cache_clear()
    if "my_metric" in METRICS:
        METRICS.remove("my_metric")


@pytest.mark.parametrize("page", HERE)
def test_the_blocks_of_a_page_run_one_after_the_other(page: str, names: dict[str, Any]) -> None:
    replaced = SHORTER.get(page, [])
    for block in blocks("python"):
        if block.page != page:
            continue
        code = block.code
        for long, short in replaced:
            code = code.replace(long, short)
        exec(compile("\n" * block.line + code, str(ROOT / page), "exec"), names)
    if page == "docs/tutorial-python.md":
        assert names["result"].plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
        assert names["again"].plan.hash == names["plan"].hash
    if page == "docs/tutorial-lightning.md":
        assert names["my_module"].plan.pruned_fraction == pytest.approx(0.3, abs=0.002)
        assert Path("out/config.json").is_file()
    if page == "docs/extending.md":
        assert "my_metric" in METRICS


def test_what_is_made_shorter_stands_there() -> None:
    for page, replaced in SHORTER.items():
        text = "".join(block.code for block in blocks("python") if block.page == page)
        assert [long for long, _ in replaced if long not in text] == [], page


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_what_runs_elsewhere_is_named_there(page: str, test: str) -> None:
    assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", NOT_RUN)
def test_what_is_not_run_is_there(page: str) -> None:
    assert page in {block.page for block in blocks("python")}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_what_a_block_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module.split(".")[0] not in NOT_HERE:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block}: {node.module}.{alias.name}"
