"""Help of ``fit`` and its like: thirty options by what they decide, groups on demand, all with their text."""

from __future__ import annotations

import pytest

from adapruner.cli.command_help import ESSENTIAL, command_help
from adapruner.cli.help_page import LIKE_FIT
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.errors import ConfigurationError
from tests.cli.command_line import elsewhere, run  # noqa: F401  # the former by being there


@pytest.mark.parametrize("command", LIKE_FIT)
def test_the_page_has_the_options_that_matter_and_says_where_the_others_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    for title, names in ESSENTIAL[command].items():
        assert f"\n{title}:\n" in out
        assert all(f"\n  --{name} " in out for name in names)
    assert f"adapruner {command} --help all" in out
    assert max(map(len, out.splitlines())) <= 130


def test_fit_shows_about_thirty() -> None:
    names = [name for group in ESSENTIAL["fit"].values() for name in group]
    assert 30 <= len(names) <= 40
    assert len(set(names)) == len(names)


def test_every_option_of_ours_has_a_text() -> None:
    without = [name for name, option in read_catalogue("fit").options.items() if not option.text]
    assert without == []


def test_all_and_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    options = read_catalogue("fit").options
    _, everything, _ = run(capsys, "fit", "--help", "all")
    assert all(f"\n  --{name} " in everything for name in options)
    _, group, _ = run(capsys, "fit", "--help", "pruning.budget")
    shown = {line.split()[0].removeprefix("--") for line in group.splitlines() if line.startswith("  --")}
    assert shown == {name for name in options if name.startswith("pruning.budget.")}


def test_an_unknown_group_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "fit", "--help", "prunning")
    assert code == 2
    assert err == "adapruner: error: help: expected a group of options, got 'prunning'; did you mean pruning?\n"


@pytest.mark.parametrize("width", [60, 200])
def test_lines_are_as_wide_as_asked_for(width: int) -> None:
    lines = command_help("fit", ["--help", "checkpoint"], width).splitlines()
    assert max(map(len, lines)) <= width


def test_help_wins_over_what_stands_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fit", "--no.such", "3", "-h")
    assert code == 0
    assert out.startswith("adapruner fit: ")


def test_an_unknown_group_raises() -> None:
    with pytest.raises(ConfigurationError, match="expected a group of options"):
        command_help("fit", ["-h", "nothing"])
