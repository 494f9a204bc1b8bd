"""Where data enter an existing network, and what of it comes out, as a user names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from biograd.circuit.graph import INPUT
from biograd.circuit.readouts import KINDS, Counts, LeakyReadout, Readout
from biograd.encoding import Encoding
from biograd.errors import CapabilityError, RecipeError, nearest

SPIKES = "spikes"
COURSES = ("course", "leaky")
"""Readouts that give outputs in every step."""
STIMULI = ("dense", "one_to_one", "direct")
"""How data become the current of a group."""
Pair = tuple[str, str]
"""Group and variable."""


@dataclasses.dataclass(frozen=True)
class Ends:
    """Where the data go, and what is read.

    Attributes:
        inputs: groups, each with the variable that receives the data.
        outputs: groups, each with "spikes" or a variable; "": what the group passes on.
    """

    inputs: tuple[Pair, ...]
    outputs: tuple[Pair, ...]

    @property
    def heard(self) -> tuple[str, ...]:
        """The groups that are read."""
        return tuple(dict.fromkeys(group for group, _ in self.outputs))

    def read_of(self, group: str) -> tuple[str, ...]:
        """Return what is read of a group."""
        return tuple(variable for name, variable in self.outputs if name == group)


def read_ends(
    input: Any, output: Any, groups: Mapping[str, Any], sources: Mapping[str, Any]
) -> Ends:
    """Return the ends of a network.

    Raises:
        CapabilityError: a group that only spikes, and is not replaced by the data.
        RecipeError: names that are not there, or another form.
    """
    ends = Ends(_inputs(input), _outputs(output))
    names = [name for name, _ in ends.inputs]
    for name, variable in ends.inputs:
        where = f"wrap: input = {input!r}"
        if name not in groups and name not in sources:
            raise RecipeError(f"{where}: {nearest(name, [*groups, *sources])}")
        if name in sources and variable != SPIKES:
            raise RecipeError(f"{where}: the data replace its {SPIKES!r}")
        if name in sources and len(names) > 1:
            raise RecipeError(f"{where}: the data replace {name!r}, and cannot go elsewhere too")
    for name, _ in ends.outputs:
        if name not in groups:
            raise RecipeError(f"wrap: output = {output!r}: {nearest(name, groups)}")
    for other in sources:
        if other not in names:
            raise CapabilityError(
                f"wrap: {other} ({type(sources[other]).__name__}) cannot be wrapped unless the "
                f"data replace it, input = ({other!r}, {SPIKES!r}): take it out of the network"
            )
    for name in groups:
        if name in (INPUT, "readout") or not name.isidentifier() or taken(name):
            raise RecipeError(f"wrap: a group cannot be called {name!r}: give it another name=")
    return ends


def taken(name: str) -> bool:
    """Return whether torch has a use of its own for a name."""
    return hasattr(nn.ModuleDict(), name)


def _pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(p, str) for p in given)


def _inputs(given: Any) -> tuple[Pair, ...]:
    pairs = given if isinstance(given, list) else [given]
    if not pairs or not all(map(_pair, pairs)):
        raise RecipeError(f"wrap: input = {given!r}: write (group, variable), or a list of them")
    if len(set(pairs)) < len(pairs):
        raise RecipeError(f"wrap: input = {given!r}: one is there twice")
    return tuple(pairs)


def _outputs(given: Any) -> tuple[Pair, ...]:
    parts = given if isinstance(given, list) else [given]
    if not parts or not all(isinstance(one, str) or _pair(one) for one in parts):
        raise RecipeError(
            f"wrap: output = {given!r}: write a group, (group, variable), or a list of them"
        )
    found = tuple((one, "") if isinstance(one, str) else one for one in parts)
    if len(set(found)) < len(found):
        raise RecipeError(f"wrap: output = {given!r}: one is there twice")
    return found


class Columns(nn.Module):
    """Some columns of what a population passes on, ``[..., first:last]``."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.part = slice(first, last)

    def forward(self, passed: Tensor) -> Tensor:
        """Return the columns."""
        return passed[..., self.part]

    def extra_repr(self) -> str:
        """Return the columns for ``print``."""
        return f"{self.part.start}, {self.part.stop}"


def reading(
    kind: str | None, units: int, classes: int | None, encoding: Encoding, time_constant_ms: float
) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Return the readout of ``units``, what stands before it, and behind it in every step.

    Raises:
        RecipeError: no such readout.
    """
    layer = Counts() if classes is None else nn.Linear(units, classes)
    kind = kind or ("course" if classes is None else "membrane")
    if kind == "course":
        return layer, None, nn.Identity()
    if kind == "leaky":
        return layer, None, LeakyReadout(encoding.dt_ms, time_constant_ms)
    if kind not in KINDS:
        raise RecipeError(f"wrap: readout = {kind!r}: {nearest(kind, (*KINDS, *COURSES))}")
    return layer, Readout(kind, encoding.steps, encoding.dt_ms, time_constant_ms), None
