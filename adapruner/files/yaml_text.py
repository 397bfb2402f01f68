"""YAML that somebody else may have written: read whole, as text of options, or refused with a reason in a few words.

The library alone lets a key stand twice, follows aliases into structures of any size or without an end, and falls over deep nesting.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

#: More than any configuration has; what is larger is no configuration.
MOST_BYTES, MOST_NODES, MOST_LEVELS, MOST_DIGITS = 2**24, 10_000, 64, 300

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YAMLRefused(yaml.YAMLError):
    """What is wrong with the text, in words."""


def read_yaml_text(file: Path) -> str:
    """The text of a file, with or without a byte order mark.

    Raises:
        OSError: if it cannot be read.
        YAMLRefused: if it is too large, or no UTF-8 text.
    """
    with file.open("rb") as opened:  # a device or a pipe has no size to ask for
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise YAMLRefused(f"more than {MOST_BYTES // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise YAMLRefused("bytes that are not UTF-8") from None


def check_yaml(text: str) -> None:
    """Whether the text is YAML of a bounded size in which every key stands once.

    >>> check_yaml("{a: 1, b: {a: 2}}")
    >>> check_yaml("{a: 1, a: 2}")
    Traceback (most recent call last):
    adapruner.files.yaml_text.YAMLRefused: the key 'a' twice, in line 1

    Raises:
        yaml.YAMLError: saying what is wrong with it.
    """
    _check_levels(text)
    node = yaml.compose(text, _Loader)
    if node is not None and _size_of(node, {}) > MOST_NODES:
        raise YAMLRefused(f"more than {MOST_NODES:,} entries, aliases followed")


def read_yaml(file: Path) -> Any:
    """What a file says, in plain types.

    Raises:
        OSError: if it cannot be read.
        yaml.YAMLError: saying what is wrong with it.
    """
    text = read_yaml_text(file)
    check_yaml(text)
    return yaml.safe_load(text)


def _check_levels(text: str) -> None:
    """Before nodes are made of it: that recurses, and C has no limit."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS:
            raise YAMLRefused(f"more than {MOST_LEVELS} levels of nesting")


def _size_of(node: Any, sizes: dict[int, int | None]) -> int:
    """Entries below a node, those behind aliases counted as often as they are named; checks keys and numbers on the way."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise YAMLRefused(f"an alias of what it stands in, in line {_line(node)}")
        return known
    sizes[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size = 1 + sum(_size_of(part, sizes) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size_of(part, sizes) for part in node.value)
    else:
        size = 1
        _check_scalar(node)
    sizes[id(node)] = size
    return size


def _check_keys(node: Any) -> None:
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise YAMLRefused(f"the key {key.value!r:.60} twice, in line {_line(key)}")
            seen.add((key.tag, key.value))


def _check_scalar(node: Any) -> None:
    if len(node.value) <= MOST_LEVELS:
        return
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        raise YAMLRefused(f"a whole number of {len(node.value)} digits, in line {_line(node)}")
    if node.tag == "tag:yaml.org,2002:str":  # the parser of options reads some as YAML once more
        try:
            _check_levels(node.value)
        except YAMLRefused:
            raise
        except yaml.YAMLError:
            return


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


@cache
def set_yaml_limits() -> None:
    """From here on the parser of options reads YAML by these rules, in values and in every file that a value names."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")

    def load_checked(stream: str) -> Any:
        check_yaml(stream)
        return load(stream)

    set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))
