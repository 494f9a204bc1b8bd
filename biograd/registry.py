"""Registries: a name for each interchangeable part, in one literal table, open to other packages.

A package adds a part by an entry point and touches nothing here::

    [project.entry-points."biograd.estimators"]
    my_rule = "my_package.rules:MyRule"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import FunctionType
from typing import Generic, TypeVar

from biograd.errors import BiogradError, RecipeError, nearest

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name: biograd's own, then those of other installed packages.

    Args:
        group: of entry points, ``biograd.estimators`` for instance.
        own: biograd's parts; those of others must be classes with the same base, or of their type.
        callables: others may be anything that can be called, as where biograd's are functions.

    Raises:
        BiogradError: when a part of another package is asked for that cannot be imported, or is no
            such part; or when two packages give one name.
    """

    def __init__(self, group: str, own: Mapping[str, Part], callables: bool = False) -> None:
        self.group, self.own = group, dict(own)
        self.callables = callables or all(isinstance(v, FunctionType) for v in self.own.values())

    @cached_property
    def others(self) -> dict[str, importlib.metadata.EntryPoint]:
        """The entry points of other packages; their modules are imported when they are used."""
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            if point.name in self.own or found.get(point.name, point).value != point.value:
                other = found.get(point.name)
                raise BiogradError(
                    f"two parts are called {point.name!r} in {self.group}: {point.value} and "
                    f"{other.value if other else 'one of biograd'}: rename one, or uninstall it"
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Part:
        others = self.others  # first: a name given twice
        if name in self.own:
            return self.own[name]
        point = others[name]
        try:
            part: Part = point.load()
        except (Exception, SystemExit) as error:
            why = f"it ends the program, {error!r}" if isinstance(error, SystemExit) else error
            raise BiogradError(
                f"{self.group}: {name} = {point.value} cannot be imported: {why}"
            ) from error
        if not self._fits(part):
            raise BiogradError(
                f"{self.group}: {name} = {point.value} is {part!r:.60}, no {self._noun}: name "
                "another, or uninstall it"
            )
        return part

    @cached_property
    def _common(self) -> type:
        """The narrowest class that biograd's parts have in common, or are instances of."""
        kinds = [part if isinstance(part, type) else type(part) for part in self.own.values()]
        return next(k for k in kinds[0].__mro__ if all(issubclass(other, k) for other in kinds))

    @cached_property
    def _classes(self) -> bool:
        return all(isinstance(part, type) for part in self.own.values())

    @property
    def _noun(self) -> str:
        if self.callables:
            return "function"
        return f"class of {self._common.__name__}" if self._classes else self._common.__name__

    def _fits(self, part: object) -> bool:
        """Return whether a part is of the kind of biograd's own."""
        if self.callables:
            return callable(part)
        if self._classes:
            return isinstance(part, type) and issubclass(part, self._common)
        return isinstance(part, self._common)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.others

    def __iter__(self) -> Iterator[str]:
        return iter((*self.own, *self.others))

    def __len__(self) -> int:
        return len(self.own) + len(self.others)

    def find(self, name: str, where: str) -> Part:
        """Return the part called ``name``.

        Args:
            where: what named it: file and key, or an option.

        Raises:
            RecipeError: there is none; the message ends with the nearest names.
        """
        if name not in self.others and name not in self.own:  # others first: a name given twice
            raise RecipeError(f"{where} = {name!r}: {nearest(name, self)}")
        return self[name]
