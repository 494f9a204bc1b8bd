"""What decides when, and whether, Brian2's objects act: obeyed, or refused by name.

Brian2 runs what is active, by slots of a schedule, ``order`` and name.  What is switched off beside
the neurons is left out; neurons that are switched off, or whose parts run in other slots than
Brian2's own, cannot be populations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_checks import SCHEDULE
from biograd.errors import CapabilityError

EARLY = {f"{turn}{slot}" for slot in SCHEDULE[:2] for turn in ("before_", "", "after_")}
"""Slots before the threshold."""


def check_schedule(network: Any) -> None:
    """Refuse another order of slots than Brian2's own, be it the network's or a preference."""
    if list(network.schedule) != list(SCHEDULE):
        raise CapabilityError(
            f"wrap: the network's schedule is {', '.join(network.schedule)}, its own or that of "
            f"Brian2's preference core.network.default_schedule: take {', '.join(SCHEDULE)}"
        )


def check_active(part: Any, where: str) -> None:
    """Refuse what is switched off."""
    if not part.active:
        raise CapabilityError(f"{where} is switched off: set {part.name}.active = True")


def check_clock(part: Any, dt: float, where: str) -> None:
    """Refuse another time step than that of the encoding."""
    own = float(part.clock.dt_)
    if abs(own - dt) > 1e-9 * dt:
        raise CapabilityError(
            f"{where} has steps of {1e3 * own:g} ms, the encoding of {1e3 * dt:g} ms: give all "
            "parts of the network, and encoding.dt_ms, the same"
        )


def own_parts(group: Any) -> dict[int, tuple[Any, str]]:
    """Return what simulates the neurons of a group, by identity, each with its slot."""
    found = [(part, "resets") for part in group.resetter.values()]
    found += [(part, "thresholds") for part in group.thresholder.values()]
    found += [(group.state_updater, "groups"), (group.subexpression_updater, "before_start")]
    return {id(part): (part, slot) for part, slot in found if part is not None}


def check_parts(group: Any, dt: float, where: str) -> None:
    """Refuse a group that is switched off, or of which a part is, or runs at another time."""
    check_active(group, where)
    for part, slot in own_parts(group).values():
        said = f"{where}: {part.name} ({type(part).__name__})"
        check_active(part, said)
        check_clock(part, dt, said)
        if part.when != slot:
            raise CapabilityError(f"{said} runs in {part.when!r}: it must run in {slot!r}")


def turns(group: Any) -> Iterator[tuple[Any, int]]:
    """Yield the active parts beside a group's own, and their ``order`` where the own have 0.

    Ties of ``order`` Brian2 resolves by names, which populations do not keep.
    """
    own, slots = own_parts(group), dict[str, list[Any]]()
    for part in sorted(group.contained_objects, key=lambda part: (part.order, part.name)):
        slots.setdefault(part.when, []).append(part)
    for parts in slots.values():
        first = next((k for k, part in enumerate(parts) if id(part) in own), 0)
        for place, part in enumerate(parts):
            if id(part) not in own and part.active:
                yield part, place - first


def acting(parts: Iterable[Any]) -> list[Any]:
    """Return the parts that are not switched off."""
    return [part for part in parts if part.active]


def check_numbers(group: Any, where: str) -> None:
    """Refuse variables of another floating-point type than that in which populations compute."""
    kind = np.dtype(import_brian2().prefs.core.default_float_dtype)
    names = group.equations.diff_eq_names | group.equations.parameter_names
    for name in sorted(names):
        found = np.dtype(group.variables[name].dtype)
        if found.kind == "f" and found != kind:
            raise CapabilityError(
                f"{where}: {name} is {found}, populations compute in {kind}: give no dtype"
            )
