"""The one way in which adapruner is extended: named members of a kind, one file each, found by their names.

A kind (metrics, samplers, objectives, data sources, ...) has one :class:`Registry`. Its shipped members register themselves when
their module is imported; the registry imports the modules of its package on first use. A user's own member is registered by the
same decorator, in a file that ``--import my_file.py`` names, or in a package that lists it as an entry point of the registry's group.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from adapruner.errors import ConfigurationError, nearest

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Members of one kind by name.

    Args:
        kind: what a member is, in words, for messages: ``sampler``.
        package: dotted name of the package whose modules hold the shipped members; each registers what it defines.
        group: entry-point group of other distributions' members, such as ``adapruner.samplers``.

    >>> greetings: Registry[str] = Registry("greeting")
    >>> greetings.add("plain", "hello")
    'hello'
    >>> greetings.find("plain")
    'hello'
    >>> greetings.find("plan")
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: greeting: expected a known greeting, got 'plan'; did you mean 'plain'? Known: plain
    """

    def __init__(self, kind: str, package: str | None = None, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._members: dict[str, Member] = {}
        self._loaded = False

    def add(self, name: str, member: Member) -> Member:
        """Makes a member known by its name, and returns it.

        Raises:
            ConfigurationError: if the name is taken by another member.
        """
        if self._members.get(name, member) is not member:
            raise ConfigurationError(f"{self.kind}: expected a new name, got {name!r}, which is taken; choose another")
        self._members[name] = member
        return member

    def register(self, name: str) -> Callable[[Member], Member]:
        """The same as a decorator."""
        return lambda member: self.add(name, member)

    def remove(self, name: str) -> None:
        """Forgets a member; for tests and notebooks that register one again."""
        self._members.pop(name, None)

    def find(self, name: str, argument: str | None = None) -> Member:
        """The member of a name.

        Args:
            argument: the option that named it, for the message; the kind when empty.

        Raises:
            ConfigurationError: if there is none; the message has the nearest name.
        """
        self._load()
        if name not in self._members:
            got = f"expected a known {self.kind}, got {name!r}"
            raise ConfigurationError(f"{argument or self.kind}: {got}; {nearest(str(name), self._members)}")
        return self._members[name]

    def names(self) -> tuple[str, ...]:
        """Names of all members, shipped ones first, in the order in which they were registered."""
        self._load()
        return tuple(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # a member's module may ask for others while it is imported
        if self.package is not None:
            package = import_module(self.package)
            for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
                import_module(f"{self.package}.{module}")
        if self.group is not None:
            for entry in entry_points(group=self.group):
                member = entry.load()
                if entry.name not in self._members:
                    self.add(entry.name, member)
