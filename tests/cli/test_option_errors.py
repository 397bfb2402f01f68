"""What is said of wrong options: by a small parser, without the program's own options."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ActionConfigFile, ArgumentParser

from adapruner.cli.option_errors import Options, explain, options_of
from adapruner.errors import ConfigurationError


@dataclass
class Source:
    name: str
    weight: float = 1.0
    kind: Literal["hub", "file"] = "hub"


@dataclass
class Search:
    trials: int
    sources: Sequence[Source] = ()
    coefficients: Mapping[str, float] = field(default_factory=dict)
    refit: Source | None = None


class Model:
    def __init__(self, optimizer: Callable[[Iterable], torch.optim.Optimizer] = torch.optim.AdamW, verbose: bool = False) -> None: ...


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("-c", "--config", action=ActionConfigFile)
    made.add_class_arguments(Search, "search")
    made.add_class_arguments(Model, "model")
    return made


def faults(parser: ArgumentParser, *words: str) -> list[str]:
    """Those of options that the parser itself refuses."""
    options = options_of(parser, "fit")
    given = options.read(words)
    with pytest.raises(ArgumentError, match=r"."):
        parser.parse_args(list(words))
    return list(options.faults(given))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--search.trails=3", "--search.trials=3"], "search.trails: expected an option of fit, got an unknown one; did you mean search.trials?"),
        (["--search.trials=many"], "search.trials: expected a whole number, got 'many'; see adapruner fit --help"),
        (["--search.sources=[{name: a}]"], "search.trials: expected a value, got none; give one, or a configuration such as quickstart.yaml"),
        (["--config={search: {trials: 2, sources: [{name: a, weigh: 1}]}}"], "search.sources.weigh: expected an option of Source, got an unknown one; did you mean search.sources.weight?"),
        (["--search.trials=2", "--search.sources=[{name: a}, {weight: 2}]"], "search.sources.name: expected a value, got none; give one, or a configuration such as quickstart.yaml"),
        (["--search.trials=2", "--search.sources=[{name: a, kind: hup}]"], "search.sources.kind: expected a known kind, got 'hup'; did you mean 'hub'? Known: file, hub"),
        (["--search.trials=2", "--search.sources=books"], "search.sources: expected a list, got 'books'; see adapruner fit --help"),
        (["--search.trials=2", "--search.coefficients={l2: much}"], "search.coefficients: expected a number, got 'much'; see adapruner fit --help"),
        (["--search.trials=2", "--search.refit={name: a, weight: heavy}"], "search.refit.weight: expected a number, got 'heavy'; see adapruner fit --help"),
        (["--search.trials=2", "--search.refit.name=a", "--search.refit.weigh=1"], "search.refit.weigh: expected an option of Source, got an unknown one; did you mean search.refit.weight?"),
        (["--search.trials=2", "--model.verbose=loud"], "model.verbose: expected true or false, got 'loud'; see adapruner fit --help"),
        (["--search.trials=2", "--model.optimizer=torch.optim.AdamWW"], "model.optimizer: expected a class of torch.optim, got 'AdamWW'; did you mean torch.optim.AdamW?"),
        (["--search.trials=2", "--model.optimizer=torch.optin.Adam"], "model.optimizer: expected the path of a class, such as torch.optim.AdamW, got 'torch.optin.Adam'; correct it"),
        (["--search.trials=2", "--model.optimizer=SGD", "--model.optimizer.rate=1"], "model.optimizer.rate: expected an option of SGD, got an unknown one; see adapruner fit --help"),
        (["--search.trials=2", "--model.optimizer=SGD", "--model.optimizer.lr=small"], "model.optimizer.lr: expected a number or a Tensor, got 'small'; see adapruner fit --help"),
    ],
)  # fmt: skip
def test_one_fault(parser: ArgumentParser, words: list[str], expected: str) -> None:
    assert faults(parser, *words) == [expected]


def test_all_faults_come_together_and_good_options_are_none(parser: ArgumentParser) -> None:
    found = faults(
        parser, "--search.trials=many", "--model.verbose=loud", "--search.coefficients={l2: 1}", "--model.optimizer=torch.optim.SGD"
    )
    assert [line.split(":")[0] for line in found] == ["search.trials", "model.verbose"]


@pytest.mark.parametrize(
    "value",
    ["[1]", "{class_path: 3}", "{class_path: [a]}", "{class_path: json.nothing}", "{1: 2}", "[[]]", ": :", "3.5", "null", "%", "x" * 999],
)
@pytest.mark.parametrize(
    "name",
    [
        "search",
        "search.trials",
        "search.sources",
        "search.refit",
        "search.refit.kind",
        "search.coefficients",
        "model.optimizer",
        "model.optimizer.lr",
        "model.verbose",
    ],
)
def test_no_value_is_too_odd_to_be_judged(parser: ArgumentParser, name: str, value: str) -> None:
    options = options_of(parser, "fit")
    try:
        given = options.read(["--search.trials=3", f"--{name}={value}"])
    except ConfigurationError:
        return
    for line in options.faults(given):
        assert "; " in line


def test_a_group_in_a_file_of_its_own_is_not_at_fault(parser: ArgumentParser, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("search: search.yaml\nmodel: {verbose: loud}\n")
    (tmp_path / "search.yaml").write_text("trials: 3\n")
    assert [line.split(":")[0] for line in faults(parser, "--config", str(tmp_path / "all.yaml"))] == ["model.verbose"]


def test_a_long_configuration_may_be_written_on_the_command_line(parser: ArgumentParser) -> None:
    long = "{search: {trials: 3, coefficients: {" + ", ".join(f"metric_{number}: 1.0" for number in range(99)) + "}}}"
    assert len(long) > 999
    assert options_of(parser, "fit").read([f"--config={long}"])["search.trials"] == 3


def test_what_types_do_not_say_is_the_parsers_text(parser: ArgumentParser) -> None:
    options = options_of(parser, "fit")
    error = explain(options, options.read(["--search.trials=3"]), ArgumentError(None, "two\n  lines"))
    assert str(error) == "arguments: expected those of fit, got: two lines; see adapruner fit --help"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["3"], r"^arguments: expected options such as --trainer\.max_steps 100, got '3'"),
        (["--search.trials"], r"^search\.trials: expected a value, got none; write one behind it"),
        (["--search.trials", "--model.verbose=true"], r"^search\.trials: expected a value, got none"),
        (["--config", "torn.yaml"], r"^--config: expected options in YAML, got while parsing .* line 3, .*; mend the file"),
        (["-c", "list.yaml"], r"^--config: expected options in YAML, got \[1\]; mend the file"),
        (["-c=."], r"^--config: expected a file that can be read, got Is a directory at \.; correct it"),
        (["-c", "latin.yaml"], r"^--config: expected a file that can be read, got bytes that are not UTF-8 at latin\.yaml"),
        (["--search=3"], r"^search: expected options in YAML, got 3; mend the file, or write key: value"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    parser: ArgumentParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.yaml").write_text("search: {\n  [")
    Path("list.yaml").write_text("[1]")
    Path("latin.yaml").write_bytes("name: ä".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=message):
        options_of(parser, "fit").read(words)


def test_options_are_read_in_the_order_of_their_last_value(parser: ArgumentParser, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("search: {trials: 3, refit: {name: b}}\nmodel: null\n")
    (tmp_path / "group.yaml").write_text("trials: 5\n")
    options: Options = options_of(parser, "fit", nullable=("model",))
    words = ["--config", str(tmp_path / "a.yaml"), "--model.verbose", "true", f"--search={tmp_path / 'group.yaml'}", "--print_config"]
    expected: dict[str, Any] = {"search.refit": {"name": "b"}, "model": None, "model.verbose": "true", "search.trials": 5}
    assert list(options.read(words).items()) == list(expected.items())
