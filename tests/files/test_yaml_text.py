"""YAML of somebody else's: bounded, every key once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adapruner.files.yaml_text import MOST_BYTES, YAMLRefused, check_yaml, read_yaml, read_yaml_text
from tests.bad_inputs import ALIASES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' twice, in line 2"),
        ("{1: a, 1: b}", "the key '1' twice"),
        (ALIASES, "more than 10,000 entries, aliases followed"),
        ("a: &a [*a]", "an alias of what it stands in, in line 1"),
        ("a: &a {b: {c: *a}}", "an alias of what it stands in"),
        ("[" * 100_000, "more than 64 levels of nesting"),
        ("- " * 100_000, "more than 64 levels of nesting"),
        ("a: '" + "{a: " * 1000 + "'", "more than 64 levels of nesting"),
        ("a: " + "9" * 5000, "a whole number of 5000 digits, in line 1"),
        ("a: 0x" + "f" * 5000, "a whole number of 5002 digits"),
        ("[" + "1, " * 20_000 + "]", "more than 10,000 entries"),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(YAMLRefused, match=message):
        check_yaml(text)


@pytest.mark.parametrize(
    "text", ["", "x", "a: 1", "<<: {a: 1}\na: 2", "a: &b [1]\nc: [*b, *b]", "? 1\n: 2", "a: '" + "x" * 9999 + "'", "1.5e3"]
)
def test_what_passes_is_read_as_the_library_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "while parsing a flow node"),
        ("a: *b", "found undefined alias"),
        ("a: \0", "control characters are not allowed"),
        ("\ta: 1", "cannot start any token"),
    ],
)
def test_what_the_library_refuses_it_says_itself(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        check_yaml(text)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(file) == {"a": 1}
    for content, message in ((b"a: \xe4", "bytes that are not UTF-8"), (b" " * (MOST_BYTES + 1), "more than 16 MiB")):
        file.write_bytes(content)
        with pytest.raises(YAMLRefused, match=message):
            read_yaml_text(file)
    file.write_text("a: 1\na: 2")
    with pytest.raises(YAMLRefused, match="twice"):
        read_yaml(file)
    with pytest.raises(YAMLRefused, match="more than 16 MiB"):  # it has no end
        read_yaml_text(Path("/dev/zero"))
