"""Learned weights, written into the variables of the user's synapses."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.wrapping.groups import brief
from biograd.wrapping.synapses import Provenance, Way

Array = NDArray[np.float64]
TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written into a network.

    Attributes:
        values: ``"synapses.variable"`` to the number of synapses whose value was set.
        left: what was learned and has no place in the network: the layer of the data, the readout,
            constants (``circuit.layer(group).constants()`` has their values).
    """

    values: Mapping[str, int]
    left: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Change:
    """Values for a variable of some synapses."""

    synapses: Any
    variable: str
    members: NDArray[np.int64]
    values: Array
    target: str


def write(learned: Mapping[str, tuple[Way, Array, float]], variables: Mapping[str, str]) -> Written:
    """Set the variables of all synapses whose weights have changed.

    Args:
        learned: by projection its way, the weights now and their unit in SI.
        variables: by synapses, the variable to set.

    Raises:
        CapabilityError: a weight that no variable can hold; nothing is written then.
        RecipeError: no such synapses or variable.
    """
    _check(variables, [way for way, _, _ in learned.values()])
    changes = [one for given in learned.values() for one in _changes(*given, variables)]
    merged = _merged(changes)
    for (_, variable), (synapses, values, _) in merged.items():
        whole = np.array(synapses.variables[variable].get_value())
        whole[list(values)] = list(values.values())
        synapses.variables[variable].set_value(whole)
    return Written({f"{s.name}.{variable}": len(v) for (_, variable), (s, v, _) in merged.items()})


def _check(variables: Mapping[str, str], ways: list[Way]) -> None:
    known = {way.provenance.synapses.name: way.provenance.synapses for way in ways}
    for name, variable in variables.items():
        if name not in known:
            raise RecipeError(f"write_back: variables.{name}: {nearest(name, known)}")
        own = known[name].equations.parameter_names
        if variable not in own:
            raise RecipeError(
                f"write_back: variables.{name} = {variable!r}: {nearest(variable, own)}"
            )


def _changes(way: Way, weight: Array, scale: float, variables: Mapping[str, str]) -> list[_Change]:
    """Return the new values of a way's synapses, none if it has not learned."""
    changed = (weight != way.weights / scale) & way.mask
    if not changed.any():
        return []
    origin = way.provenance
    chosen = changed[origin.post, origin.pre]
    pairs = np.stack([origin.post, origin.pre], 1)[chosen]
    if len(np.unique(pairs, axis=0)) < len(pairs):
        raise CapabilityError(
            f"{origin.where}: some pairs of neurons have several synapses, which the circuit "
            "trained as one weight: connect each pair once to write it back"
        )
    members, variable = origin.members[chosen], _variable(origin, variables)
    offset, factor = (part[members] for part in _line(origin, variable))
    if not factor.all():
        raise CapabilityError(
            f"{origin.where}: {variable} has no effect on {int((factor == 0).sum())} of the "
            "synapses that learned: its factor is zero"
        )
    wanted = scale * weight[pairs[:, 0], pairs[:, 1]]
    return [_Change(origin.synapses, variable, members, (wanted - offset) / factor, way.variable)]


def _variable(origin: Provenance, variables: Mapping[str, str]) -> str:
    """Return the variable of the synapses that holds the weight."""
    synapses, where = origin.synapses, origin.where
    line = brief(origin.statements[0][2])
    names = {
        part.id
        for _, node, _ in origin.statements
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and part.id in synapses.equations.parameter_names
    }
    given = variables.get(synapses.name)
    if given is not None and given not in names:
        raise CapabilityError(f"{where}: on_pre {line!r} does not use {given!r}")
    if not names:
        raise CapabilityError(
            f"{where}: on_pre {line!r} has no variable of the synapses that could hold a weight: "
            "give them one, 'w : 1', and on_pre='X_post += w'"
        )
    if given is None and len(names) > 1:
        raise CapabilityError(
            f"{where}: on_pre {line!r}: which of {', '.join(sorted(names))} is the weight? Give "
            f"write_back({{{synapses.name!r}: ...}})"
        )
    name = given or names.pop()
    variable = synapses.variables[name]
    if variable.scalar:
        raise CapabilityError(f"{where}: {name} is shared by all synapses: let each have its own")
    if np.dtype(variable.dtype).kind != "f":
        raise CapabilityError(f"{where}: {name} is {np.dtype(variable.dtype)}, no real number")
    return name


def _line(origin: Provenance, variable: str) -> tuple[Array, Array]:
    """Return what a spike adds for a variable of 0, and for 1 more."""
    with np.errstate(all="ignore"):
        zero, one, two = (origin.value(**{variable: np.asarray(x)}) for x in (0.0, 1.0, 2.0))
        straight = np.isfinite(zero) & np.isclose(two - one, one - zero, rtol=TOLERANCE, atol=0)
    if not straight.all():
        raise CapabilityError(
            f"{origin.where}: on_pre {brief(origin.statements[0][2])!r}: what a spike adds is not "
            f"proportional to {variable}: the learned weight cannot be written into it"
        )
    return zero, one - zero


def _merged(changes: list[_Change]) -> dict[tuple[str, str], tuple[Any, dict[int, float], str]]:
    """Return new values by synapses and variable; refuse two for the same."""
    merged: dict[tuple[str, str], tuple[Any, dict[int, float], str]] = {}
    for one in changes:
        key = one.synapses.name, one.variable
        _, values, target = merged.setdefault(key, (one.synapses, {}, one.target))
        for member, value in zip(one.members.tolist(), one.values.tolist(), strict=True):
            if abs(values.get(member, value) - value) > TOLERANCE * abs(value):
                raise CapabilityError(
                    f"synapses {one.synapses.name!r}: {one.variable} acts on {target} and on "
                    f"{one.target}, which were trained apart: give each a variable of its own"
                )
            values[member] = value
    return merged
