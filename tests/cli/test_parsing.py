"""From words to a configuration: lists that replace lists, and what only the command line may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapruner.cli.fit import OPTIONAL_STAGES, make_parser
from adapruner.cli.option_errors import options_of
from adapruner.cli.parsing import parse
from adapruner.errors import ConfigurationError
from tests.spoilt import BASE

SOURCES = "{name: one, path: one.txt, part: [0.2, 0.3], documents: 5}"
MONITOR = "{class_path: lightning.pytorch.callbacks.LearningRateMonitor}"
LOGGER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: a}}"
FIRST = f"""\
model: {{name_or_path: model}}
data:
  calibration: {{sources: [{SOURCES}]}}
  search: {{sources: [{SOURCES}]}}
  recovery: {{samples: 7, sources: [{SOURCES}]}}
  evaluation: [{{name: test, source: {SOURCES}, limit: 3, windows: [64]}}]
zero_shot: {{tasks: [boolq]}}
report: {{compare: [l2]}}
trainer:
  callbacks: [{{class_path: lightning.pytorch.callbacks.LearningRateMonitor, init_args: {{logging_interval: step, log_momentum: true}}}}]
  logger: [{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: run, name: mine}}}}]
"""


@pytest.fixture(scope="module")
def parser() -> Any:
    return make_parser("fit")


def parsed(parser: Any, *words: str) -> Any:
    return parse(parser.parse_args, parser, "fit", words, OPTIONAL_STAGES)[0]


@pytest.mark.parametrize("where", ["file", "command line"])
@pytest.mark.parametrize(
    ("option", "value", "left"),
    [
        ("data.search.sources", "[{name: other, path: plain.jsonl}]", {"part": [0.0, 1.0], "documents": None}),
        ("data.calibration.sources", "[{name: other, path: plain.jsonl}]", {"part": [0.0, 1.0], "documents": None}),
        ("data.recovery.sources", "[{name: other, path: plain.jsonl}]", {"part": [0.0, 1.0], "documents": None}),
        ("data.evaluation", "[{name: other, source: {name: other, path: p}}]", {"limit": None, "windows": [128]}),
        ("trainer.callbacks", f"[{MONITOR}]", {"logging_interval": None, "log_momentum": False}),
        ("trainer.logger", f"[{LOGGER}]", {"save_dir": "a", "name": "lightning_logs"}),
    ],
)  # fmt: skip
def test_a_later_list_replaces_the_earlier_one_whole(
    parser: Any, where: str, option: str, value: str, left: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    nested = value
    for part in reversed(option.split(".")):
        nested = f"{{{part}: {nested}}}"
    (tmp_path / "second.yaml").write_text(nested)
    later = [f"--config={tmp_path / 'second.yaml'}"] if where == "file" else [f"--{option}={value}"]
    config = parsed(parser, f"--config={tmp_path / 'first.yaml'}", *later)
    (item,) = config[option] if option != "data.recovery.sources" else config["data.recovery"]["sources"]
    found = item.get("init_args") or item
    assert {name: found[name] for name in left} == left
    assert config["data.recovery"]["samples"] == 7  # a record is laid over the earlier one as ever


def test_items_are_appended_and_changed_as_ever(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    monitor = "lightning.pytorch.callbacks.DeviceStatsMonitor"
    config = parsed(parser, f"--config={tmp_path / 'first.yaml'}", f"--trainer.callbacks+={monitor}", "--data.search.sources.path=new.txt")
    assert len(config.trainer.callbacks) == 2
    (source,) = config.data.search.sources
    assert (source.path, source.part) == ("new.txt", [0.2, 0.3])


def test_words_without_two_lists_stay_as_they_are(parser: Any) -> None:
    words = ["--config={data: {search: {sources: [{name: a, path: b}]}}}", "--data.batch_size", "4", "--print_config"]
    assert options_of(parser, "fit", OPTIONAL_STAGES).with_whole_lists(words) == words


def test_a_runs_own_configuration_is_taken_again(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    first = parsed(parser, f"--config={tmp_path / 'base.yaml'}")
    (tmp_path / "config.yaml").write_text(parser.dump(first, skip_unset=False))
    again = parsed(parser, f"--config={tmp_path / 'config.yaml'}")
    assert parser.dump(again) == parser.dump(first)


def test_code_is_asked_for_on_the_command_line_alone(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    base = f"--config={tmp_path / 'base.yaml'}"
    assert parsed(parser, base, "--model.trust_remote_code=true").model.trust_remote_code
    for words in (["--config={model: {trust_remote_code: true}}"], ["--model={trust_remote_code: true}"]):
        with pytest.raises(ConfigurationError, match=r"model\.trust_remote_code: expected on the command line alone"):
            parsed(parser, base, *words)
        assert parsed(parser, base, *words, "--model.trust_remote_code=true").model.trust_remote_code
    assert parsed(parser, base, "--model.trust_remote_code=true", "--model.attn_implementation=me/kernel")
