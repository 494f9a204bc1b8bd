"""Registries: a name for each interchangeable part, in one literal table, open to other packages.

A package adds a part by an entry point and touches nothing here::

    [project.entry-points."biograd.estimators"]
    my_rule = "my_package.rules:MyRule"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Generic, TypeVar

from biograd.errors import BiogradError, RecipeError, nearest

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name: biograd's own, then those of other installed packages.

    Args:
        group: of entry points, ``biograd.estimators`` for instance.
        own: biograd's parts.

    Raises:
        BiogradError: when a part of another package is asked for that cannot be imported, or when
            two packages give one name.
    """

    def __init__(self, group: str, own: Mapping[str, Part]) -> None:
        self.group, self.own = group, dict(own)

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
        if name in self.own:
            return self.own[name]
        point = self.others[name]
        try:
            part: Part = point.load()
        except Exception as error:
            raise BiogradError(
                f"{self.group}: {name} = {point.value} cannot be imported: {error}"
            ) from error
        return part

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
