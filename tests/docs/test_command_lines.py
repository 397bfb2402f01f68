"""Every command line of README and docs is one that the program understands; nothing is run.

Of ``fit`` and its like the parser itself judges names and values. Programs that are not ours stand in a table with the reason why nothing
judges them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from adapruner.cli import export, fit, inspect, prune, write_texts
from adapruner.cli.help_page import COMMANDS, LIKE_FIT
from adapruner.cli.imports import take_imports
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.cli.shipped_configs import find_configs, shipped_configs
from adapruner.compare import command as compare
from adapruner.data.sets import EvaluationSet
from adapruner.data.text_source import TextSource

from .blocks import PAGES, ROOT, Block, arguments, blocks, commands, inline_options

#: Program -> why its lines are not judged.
NOT_OURS = {
    "llama-cli": "of llama.cpp, which is not installed with us",
    "llama-server": "of llama.cpp",
    "llama-quantize": "of llama.cpp",
    "python convert_hf_to_gguf.py": "of llama.cpp",
    "vllm": "needs vLLM, which is not installed with us",
    "curl": "asks a server that vLLM or llama.cpp would have to be",
    "sha256sum": "of the operating system",
}
#: Language of a block -> what judges it; a new one needs a judge.
JUDGED = {
    "bash": "here",
    "yaml": "here",
    "json": "here",
    "python": "test_python_blocks.py",
    "toml": "tests/extension/test_entry_points.py",
    "diff": "tests/search/test_adding_a_dimension.py and tests/extension: the changes of those pages are made",
    "text": "output, which nobody runs",
    "bibtex": "a reference",
    "": "CONTRIBUTING's commands of make, judged here",
}
LINES = [(block, words) for block in blocks("bash") for words in commands(block)]
# A block without a language holds commands of make, or a drawing.
LINES += [(block, words) for block in blocks("") for words in commands(block) if words[0] == "make"]
OURS = [(block, found) for block, words in LINES if (found := arguments(words)) is not None]
# A line that begins with an option belongs behind any fit.
OURS += [(block, ["fit", "--config", "quickstart.yaml", *words]) for block, words in LINES if words[0].startswith("--")]
#: Option -> the page that adds it.
ADDED = {"pruning.search.space.power": "docs/add-a-search-dimension.md"}


def test_there_is_something_to_judge() -> None:
    assert len(OURS) > 40
    assert {found[0] for _, found in OURS if found} >= {"prune", "fit", "test", "predict", "export", "compare", "inspect", "write-texts"}


def test_every_language_has_a_judge() -> None:
    assert {block.language for block in blocks() if not block.language.startswith("{")} <= set(JUDGED)


def test_what_fit_and_its_like_are_given() -> None:
    """By the parser: names, types, choices, files of configurations."""
    lines = [(f"{block} {' '.join(words)}", take_imports(words[1:])[1]) for block, words in OURS if words[0] in LIKE_FIT]
    given = {place: ["fit", *find_configs(_without_checkpoint(words))] for place, words in lines}
    given = {place: words for place, words in given.items() if not {"--help", "--print_config", "-h"} & set(words)}
    assert len(given) > 25
    fit.check_fit(given)
    for place, words in given.items():
        assert read_catalogue("fit").misspelt(words[1:]) == [], place


def _without_checkpoint(words: list[str]) -> list[str]:
    """The parser asks for the file, which the reader's run writes."""
    if "--ckpt_path" not in words:
        return words
    position = words.index("--ckpt_path")
    return words[:position] + words[position + 2 :]


def test_what_prune_is_given() -> None:
    made = {f"{block} {' '.join(words)}": prune.fit_words(take_imports(words[1:])[1]) for block, words in OURS if words[0] == "prune"}
    assert len(made) > 6
    fit.check_fit({place: ["fit", *find_configs(words)] for place, words in made.items()})


@pytest.mark.parametrize(
    ("command", "parser"),
    [
        ("export", export.make_parser()),
        ("inspect", inspect.make_parser()),
        ("compare", compare.make_parser()),
        ("write-texts", write_texts.make_parser()),
    ],
    ids=["export", "inspect", "compare", "write-texts"],
)
def test_what_the_other_commands_are_given(command: str, parser: object) -> None:
    lines = [(block, words[1:]) for block, words in OURS if words[0] == command]
    assert lines
    for block, words in lines:
        try:
            given = vars(parser.parse_args(take_imports(words)[1]))  # type: ignore[attr-defined]
        except SystemExit:
            pytest.fail(f"{block}: {command} {' '.join(words)}")
        for name in [given.get("base"), given.get("config"), *(given.get("methods") or [])]:
            assert name in (None, "adapruner", *shipped_configs()), block


def test_commands_and_programs_are_known() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for block, words in LINES:
        given = arguments(words)
        if given is not None:
            assert given[0] in {*COMMANDS, "--version", "--help"}, block
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, block
        elif "pip" in words[:4]:
            assert set(re.findall(r"adapruner\[(\w+)\]", " ".join(words))) <= extras, block
        elif words[0] == "python" and words[1].endswith(".py") and f"python {words[1]}" not in NOT_OURS:
            assert (ROOT / words[1]).is_file(), block
        elif words[0] not in ("pytest", "python") and not words[0].startswith("--"):
            assert words[0] in NOT_OURS or " ".join(words[:2]) in NOT_OURS, f"{block}: {words[0]} needs a judge, or a reason"


def test_options_in_sentences_and_tables() -> None:
    found = inline_options()
    assert len(found) > 50
    catalogue = read_catalogue("fit")
    wrong = {f"{page}: {line}" for page, words in found if ADDED.get(words[0][2:]) != page for line in catalogue.misspelt(words)}
    assert wrong == set()


def check_yaml(block: Block, folder: Path) -> None:
    """A part of a configuration: its names, and the items of its lists."""
    file = folder / "part.yaml"
    file.write_text(block.code)
    assert read_catalogue("fit").misspelt(["--config", str(file)]) == [], block
    for name, part in yaml.safe_load(block.code).get("data", {}).items():
        if name == "evaluation":
            [EvaluationSet(**{**one, **({"source": TextSource(**one["source"])} if "source" in one else {})}) for one in part]
        else:
            [TextSource(**one) for one in part["sources"]]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_configurations(block: Block, tmp_path: Path) -> None:
    check_yaml(block, tmp_path)


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_rows(block: Block) -> None:
    for line in block.code.splitlines():
        json.loads(line)


def test_wrong_lines_are_noticed(tmp_path: Path) -> None:
    """The judges above, on lines that they must not pass."""
    with pytest.raises(Exception, match=r"dtyp"):
        fit.check_fit({"page": ["fit", "--model.dtyp", "float32"]})
    with pytest.raises(Exception, match=r"n_trials"):
        fit.check_fit({"page": ["fit", "--pruning.search.n_trials", "many"]})
    assert read_catalogue("fit").misspelt(["--model.dtyp", "float32"]) != []
    with pytest.raises(AssertionError, match=r"seq_length"):
        check_yaml(Block("page", 1, "yaml", "data: {search: {seq_length: 3}}"), tmp_path)
    with pytest.raises(TypeError, match=r"colum"):
        check_yaml(Block("page", 1, "yaml", "data: {search: {sources: [{name: a, path: b, colum: c}]}}"), tmp_path)


def test_pages_are_there() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/method.md"} <= set(PAGES)
