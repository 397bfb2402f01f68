"""The catalogue of options is the parser's, and what it says of a misspelt one is true, soon, and never said of a right one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapruner.cli import option_catalogue
from adapruner.cli.help_page import LIKE_FIT
from adapruner.cli.option_catalogue import FILE, Catalogue, Option, read_catalogue
from adapruner.cli.shipped_configs import shipped_configs
from adapruner.importance.metrics import METRICS
from adapruner.models.loading import DTYPES
from tests.cli.write_option_catalogue import KNOWN, default_of, in_words, text

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


NAMING = Catalogue(
    "fit",
    {
        "sampler": Option("text", "tpe", "", known=["gp", "tpe"]),
        "space.metrics": Option("a list of texts", "[l2]", "", known=["l1", "l2"], group="adapruner.no_such_group"),
        "recipe": Option("a Recipe or null", "", "", kind="Recipe"),
        "recipe.coefficients": Option("a mapping", "{}", "", open=True, known=["l1", "l2"]),
        "order": Option("text or null", "null", "", known=["joint"]),
    },
    lightning="0",
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler", "tpee"], ["sampler: expected a known sampler, got 'tpee'; did you mean 'tpe'? Known: gp, tpe"]),
        (["--sampler=tpee", "--sampler=tpe"], []),
        (["--sampler", "'tpe'"], []),
        (["--space.metrics", "[l2, zz]"], ["space.metrics: expected a known metric, got 'zz'; Known: l1, l2"]),
        (["--space.metrics+", "zz"], ["space.metrics: expected a known metric, got 'zz'; Known: l1, l2"]),
        (
            ["--recipe={coefficients: {l3: 1.0}}"],
            ["recipe.coefficients: expected a known metric, got 'l3'; Known: l1, l2"],
        ),
        (
            ["--config", "{space: {metrics: [l1, zz]}, sampler: xx}"],
            [
                "space.metrics: expected a known metric, got 'zz'; Known: l1, l2",
                "sampler: expected a known sampler, got 'xx'; Known: gp, tpe",
            ],
        ),
    ],
)
def test_names_that_no_option_knows(words: list[str], said: list[str]) -> None:
    assert NAMING.unknown(words) == said


@pytest.mark.parametrize(
    "words",
    [
        ["--sampler", "gp", "--space.metrics=[l1]", "--order", "null", "--order=joint", "--recipe", "null"],
        ["--space.metrics", "[3, l1]"],  # what is no name has another fault
        ["--space.metrics", "[l1, ["],
        ["--space.metrics"],
        ["--recipe.coefficients.l2", "1.0", "no option"],
        ["--zzz", "tpee"],
    ],
)
def test_names_that_are_known_or_not_for_the_catalogue_to_judge(words: list[str]) -> None:
    assert NAMING.unknown(words) == []


def test_where_a_package_adds_names_the_parser_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option_catalogue, "entry_points", lambda group: [group])
    assert NAMING.unknown(["--space.metrics", "[zz]"]) == []
    assert NAMING.unknown(["--sampler", "zz"]) != []  # whose names no package adds to


def test_every_name_that_is_shipped_is_known() -> None:
    options = read_catalogue("fit").options
    assert {name for name, option in options.items() if option.known} == {*KNOWN}
    assert {*METRICS.names()} >= {*options["report.compare"].known} >= {"l2", "wanda_sp"}
    assert [*options["model.dtype"].known] == [*DTYPES]


@pytest.mark.parametrize("name", sorted({*shipped_configs()} - {"compare.yaml"}))  # whose options are those of compare
def test_shipped_configurations_are_spelt_right(name: str) -> None:
    file = str(shipped_configs()[name])
    assert read_catalogue("fit").misspelt(["--config", file]) == []
    assert read_catalogue("fit").unknown(["--config", file]) == []


def test_a_file_is_read_for_its_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"search:\n  trails: \xff\n")  # for the parser to refuse
    assert SMALL.misspelt([f"--config={file}"]) == SMALL.unknown([f"--config={file}"]) == []
    file.write_text("search:\n  trails: 3\n")
    assert SMALL.misspelt([f"--config={file}"]) == SMALL.misspelt(["--search.trails=3"]) != []


def test_options_of_the_trainer_are_judged_where_lightning_is_the_same() -> None:
    import lightning

    same = Catalogue("fit", SMALL.options, lightning.__version__)
    line = "trainer.max_stpes: expected an option of fit, got an unknown one; did you mean trainer.max_steps?"
    assert same.misspelt(["--trainer.max_stpes", "3"]) == [line]


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--pruning.serach.n_trials", "3"],
        ["fit", "--report.compare", "[wanda]"],
        ["prune", "demo", "--texts", "README.md", "--pruning.search.space.metrics", "[taylor_frist]"],
        ["prune", "./no-model", "--texts", "README.md"],
        ["prune", "two words", "--texts", "README.md"],
        *([command, "--help"] for command in LIKE_FIT),
    ],
)
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
