"""The catalogue of options is the parser's, and what it says of a misspelt one is true, soon, and never said of a right one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli.help_page import LIKE_FIT
from adapruner.cli.option_catalogue import FILE, Catalogue, Option, read_catalogue
from adapruner.cli.shipped_configs import shipped_configs
from tests.cli.write_option_catalogue import default_of, in_words, text

ROOT = Path(__file__).parents[2]
SMALL = Catalogue(
    "fit",
    {
        "search.trials": Option("a whole number", "64", ""),
        "search.refit": Option("a Refit or null", "", "", kind="Refit"),
        "search.refit.ridge": Option("a number", "0.01", ""),
        "search.weights": Option("a mapping", "{}", "", open=True),
        "model.optimizer": Option("the path of a class", "AdamW", "", open=True),
        "trainer.max_steps": Option("a whole number", "-1", ""),
    },
    lightning="0",
)


def test_the_file_is_what_the_parsers_say() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "python -m tests.cli.write_option_catalogue"


@pytest.mark.parametrize(
    ("words", "name", "of", "hint"),
    [
        (["--search.trails", "3"], "search.trails", "fit", "did you mean search.trials?"),
        (["--search.trails=3", "--search.trails=4"], "search.trails", "fit", "did you mean search.trials?"),
        (["--trails"], "trails", "fit", "did you mean search.trials?"),
        (["--zzz", "3"], "zzz", "fit", "see adapruner fit --help"),
        (["--search.refit.rigde", "3"], "search.refit.rigde", "Refit", "did you mean search.refit.ridge?"),
        (["--search", "{trails: 3}"], "search.trails", "fit", "did you mean search.trials?"),
        (["--config", "{search: {refit: {rigde: 3}}}"], "search.refit.rigde", "Refit", "did you mean search.refit.ridge?"),
        (["--search.refit={rigde: 3}"], "search.refit.rigde", "Refit", "did you mean search.refit.ridge?"),
    ],
)
def test_what_there_is_not(words: list[str], name: str, of: str, hint: str) -> None:
    assert SMALL.misspelt(words) == [f"{name}: expected an option of {of}, got an unknown one; {hint}"]


@pytest.mark.parametrize(
    "words",
    [
        ["--search.trials", "-3"],
        ["--search.trials+", "3"],
        ["--search.refit", "null"],
        ["--search.refit.class_path", "mine.Refit", "--search.refit.init_args.mine", "3"],
        ["--config", "{search: {refit: {class_path: mine.Refit, init_args: {mine: 3}}}}"],
        ["--search.weights.anything", "3"],
        ["--model.optimizer", "SGD", "--model.optimizer.lr", "3", "--model.optimizer.init_args.lr", "3"],
        ["--trainer.of_another_release", "3"],
        ["--config", "no such file: ["],
        ["--config=missing.yaml", "--print_config"],
        ["--search.refit.help"],
        ["no option", "--search.trails", "3"],
        [],
    ],
)
def test_what_there_is_or_is_not_for_the_catalogue_to_say(words: list[str]) -> None:
    assert SMALL.misspelt(words) == []


@pytest.mark.parametrize("name", sorted({*shipped_configs()} - {"compare.yaml"}))  # whose options are those of compare
def test_shipped_configurations_are_spelt_right(name: str) -> None:
    file = str(shipped_configs()[name])
    assert read_catalogue("fit").misspelt(["--config", file]) == []


def test_a_file_is_read_for_its_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("search:\n  trails: 3\n")
    assert SMALL.misspelt([f"--config={file}"]) == SMALL.misspelt(["--search.trails=3"]) != []


def test_options_of_the_trainer_are_judged_where_lightning_is_the_same() -> None:
    import lightning

    same = Catalogue("fit", SMALL.options, lightning.__version__)
    line = "trainer.max_stpes: expected an option of fit, got an unknown one; did you mean trainer.max_steps?"
    assert same.misspelt(["--trainer.max_stpes", "3"]) == [line]


@pytest.mark.parametrize("words", [["fit", "--pruning.serach.n_trials", "3"], *([command, "--help"] for command in LIKE_FIT)])
def test_the_answer_comes_before_anything_heavy_is_loaded(words: list[str]) -> None:
    """The best of three: a busy machine slows one run, not all."""
    code = f"import sys, adapruner.cli as c\ntry:\n    c.main({words!r})\nexcept SystemExit as end:\n    print(end.code, *sys.modules)"
    seconds: list[float] = []
    done: Any = None
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == ("0" if "--help" in words else "2")
    assert {"torch", "numpy", "lightning", "transformers", "jsonargparse"} & set(modules) == set()
    assert min(seconds) < 1.5


def test_comparisons_are_answered_as_soon() -> None:
    words = ["compare", "--methods", "a=--config quickstart.yaml --pruning.serach.n_trials 3", "--seeds", "0", "--budgets", "0.2"]
    code = f"import sys, adapruner.cli as c\ntry:\n    c.main({words!r})\nexcept SystemExit as end:\n    print(end.code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "torch" not in done.stdout.split()
    assert done.stdout.split()[0] == "2"


def test_types_in_words() -> None:
    assert in_words(int | None) == "a whole number or null"
    assert in_words(list[float]) == "a list of numbers"


def test_defaults_as_yaml() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--size", type=list[int], default=[1, 2])
    parser.add_argument("--name", type=str, required=True)
    found = {action.dest: default_of(action) for action in parser._actions if hasattr(action, "_typehint")}
    assert found == {"size": "[1, 2]", "name": ""}
