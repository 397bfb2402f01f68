"""The one way in which adapruner is extended: named members of a kind, one file each, found by their names.

A kind (metrics, samplers, objectives, data sources, ...) has one :class:`Registry`. Its shipped members register themselves when
their module is imported; the registry imports the modules of its package on first use. A user's own member is registered by the
same decorator, in a file that ``--import my_file.py`` names, or in a package that lists it as an entry point of the registry's group.

Most members are a class without arguments that has a ``name``; ``@registry.add_class`` registers one instance of it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from adapruner.errors import ConfigurationError, nearest

Member = TypeVar("Member")
Given = TypeVar("Given")


class Registry(Generic[Member]):
    """Members of one kind by name.

    Args:
        kind: what a member is, in words, for messages: ``sampler``.
        package: dotted name of the package whose modules hold the shipped members, or of the one module that does.
        group: entry-point group of other distributions' members, such as ``adapruner.samplers``.
        check: called with every new member; raises what is wrong with it.

    >>> greetings: Registry[str] = Registry("greeting")
    >>> greetings.add("plain", "hello")
    'hello'
    >>> greetings.find("plain")
    'hello'
    >>> greetings.find("plan")
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: greeting: expected a known greeting, got 'plan'; did you mean 'plain'? Known: plain
    """

    def __init__(
        self, kind: str, package: str | None = None, group: str | None = None, check: Callable[[Member], object] | None = None
    ) -> None:
        self.kind, self.package, self.group, self.check = kind, package, group, check
        self._members: dict[str, Member] = {}
        self._loaded = False

    def add(self, name: str, member: Member) -> Member:
        """Makes a member known by its name, and returns it.

        Raises:
            ConfigurationError: if the name is taken by another member.
        """
        if self.package is not None and not self._ships(member):
            self._load()  # a shipped name is taken, whether it was asked for yet or not
        if self._members.get(name, member) is not member:
            raise ConfigurationError(f"{self.kind}: expected a new name, got {name!r}, which is taken; choose another")
        if self.check is not None:
            self.check(member)
        self._members[name] = member
        return member

    def add_class(self, given: Given) -> Given:
        """Makes an instance of a class (or an instance that is given) known by its ``name``; returns what was given, as a decorator does.

        Raises:
            ConfigurationError: as :meth:`add`.
        """
        member: Any = given() if isinstance(given, type) else given
        if not isinstance(given, type) or type(self._members.get(member.name)) is not given:  # else the same class once more
            self.add(member.name, member)
        return given

    def register(self, name: str) -> Callable[[Member], Member]:
        """A decorator that adds what it decorates under this name."""
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
        """Names of all members: the shipped ones sorted, then the others in the order in which they were registered."""
        self._load()
        shipped = sorted(name for name, member in self._members.items() if self._ships(member))
        return (*shipped, *(name for name in self._members if name not in shipped))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def _ships(self, member: Member) -> bool:
        """Whether a class, a function or an object is defined in the registry's own package, whatever module was imported first."""
        return self.package is not None and f"{getattr(member, '__module__', '')}.".startswith(f"{self.package}.")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # a member's module may ask for others while it is imported
        if self.package is not None:
            package = import_module(self.package)
            for module in sorted(found.name for found in pkgutil.iter_modules(getattr(package, "__path__", []))):
                import_module(f"{self.package}.{module}")
        if self.group is not None:
            for entry in entry_points(group=self.group):
                try:
                    member = entry.load()  # a decorated one registers itself
                except Exception as error:
                    got = f"{type(error).__name__}: {error}"
                    raise ConfigurationError(
                        f"{self.kind}: expected to load {entry.value!r}, got {got}; mend or remove its package"
                    ) from error
                if entry.name not in self._members:
                    self.add(entry.name, member() if isinstance(member, type) and hasattr(member, "name") else member)
