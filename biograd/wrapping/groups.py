"""Brian2 groups of neurons, read as recipes and values; nothing of them is changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_model import Details, Regular
from biograd.errors import CapabilityError
from biograd.recipes import PopulationRecipe
from biograd.wrapping.scheduling import EARLY, check_clock, check_numbers, check_parts, turns

Array = NDArray[np.float64]
NUMBERED = {"i": "number_in_group", "N": "units_in_group"}
"""Variables by which the copies of a neuron would differ, to parameters that stand in for them."""
RANDOM = ("rand", "randn", "poisson")
WIDTH = 60
"""Characters of a statement that a message shows."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A ``NeuronGroup`` as it was found.

    Attributes:
        constants: of the namespaces, by the names that its texts use.
        details: values of its variables, and statements that run in every step.
        impulses: variables with a differential equation.
    """

    name: str
    units: int
    recipe: PopulationRecipe
    constants: Mapping[str, Any]
    details: Details
    impulses: frozenset[str]


def read_group(group: Any, dt: float, namespace: Mapping[str, Any]) -> Group:
    """Return what a ``NeuronGroup`` is.

    Args:
        dt: length of a step in seconds, which must be its own.
        namespace: of the run, beside the group's own.

    Raises:
        CapabilityError: something that a population cannot have.
    """
    where = f"group {group.name!r}"
    for event in set(group.events) - {"spike"}:
        raise CapabilityError(f"{where}: event {event!r}: only spikes can be wrapped: remove it")
    check_clock(group, dt, where)
    check_parts(group, dt, where)
    check_numbers(group, where)
    if group._linked_variables:
        names = ", ".join(sorted(group._linked_variables))
        raise CapabilityError(
            f"{where}: {names} is linked to another group: connect them by synapses instead"
        )
    recipe = PopulationRecipe(
        equations=equations_text(group.user_equations),
        threshold=group.events.get("spike", ""),
        reset=group.event_codes.get("spike", ""),
        refractory=_refractory(group._refractory),
        method=_method(group, where),
    )
    regular = tuple(_regular(group, dt, where))
    recipe, regular, numbers = _numbered(recipe, regular, group, where)
    codes = (
        recipe.equations,
        recipe.threshold,
        recipe.reset,
        recipe.refractory,
        *(one.code for one in regular),
    )
    own = set(group.equations.names) | set(numbers)
    used = {name for code in codes for name in re.findall(r"\b[A-Za-z_]\w*", code)}
    known = {**own_names(namespace), **(group.namespace or {})}
    constants = {n: known[n] for n in sorted(used - own) if n in known}
    _check_names(codes, own | set(constants), where)
    names = group.equations.diff_eq_names | group.equations.parameter_names
    initial = {
        name: np.array(group.variables[name].get_value())
        for name in names
        if name not in ("lastspike", "not_refractory")
    }
    details = Details(initial=initial | numbers, regular=regular, found=True)
    impulses = frozenset(group.equations.diff_eq_names)
    return Group(group.name, len(group), recipe, constants, details, impulses)


BASE = ("metre", "kilogram", "second", "amp", "kelvin", "mole", "candle")
"""Brian2's base units, in the order of its dimensions."""


def equations_text(equations: Any) -> str:
    """Return equations as a text that Brian2 reads again, which its own is not."""
    lines = []
    for one in equations.values():
        flags = f" ({', '.join(one.flags)})" if one.flags else ""
        left = f"d{one.varname}/dt" if one.type == "differential equation" else one.varname
        right = "" if one.expr is None else f" = {one.expr.code}"
        lines.append(f"{left}{right} : {_unit(one)}{flags}")
    return "\n".join(lines)


def _unit(equation: Any) -> str:
    if equation.var_type != "float":
        return str(equation.var_type)
    dimensions = equation.dim
    if dimensions.is_dimensionless:
        return "1"
    name = repr(import_brian2().get_unit(dimensions))
    if name.isidentifier():
        return name
    return " * ".join(
        f"{unit}**{float(power)!r}"
        for unit, power in zip(BASE, dimensions._dims, strict=True)
        if power
    )


def _refractory(given: Any) -> str:
    if given is False:
        return ""
    return given if isinstance(given, str) else f"{float(given)!r}*second"


def _method(group: Any, where: str) -> str:
    """Return the name of the numerical method; "": Brian2 chooses, as it did for the group."""
    updater, known = group.state_updater, import_brian2().StateUpdateMethod.stateupdaters
    if updater.method_options:
        raise CapabilityError(f"{where}: method_options are not supported: remove them")
    choice = updater.method_choice
    if isinstance(choice, tuple):
        return ""
    found = [name for name, method in known.items() if choice == name or choice is method]
    if not found or found[0].startswith("gsl"):
        raise CapabilityError(f"{where}: method {choice!r:.{WIDTH}} cannot be wrapped: take 'rk4'")
    return found[0]


def _regular(group: Any, dt: float, where: str) -> Iterator[Regular]:
    """Yield the statements of ``run_regularly``; they must come before the threshold."""
    from brian2.groups.group import CodeRunner

    for part, order in turns(group):
        said = f"{where}: run_regularly {brief(getattr(part, 'abstract_code', part))!r}"
        if type(part) is not CodeRunner:
            raise CapabilityError(
                f"{where}: what {type(part).__name__} {part.name!r} runs in it cannot be wrapped: "
                "remove it"
            )
        check_clock(part, dt, said)
        if part.when not in EARLY:
            raise CapabilityError(
                f"{said} runs in {part.when!r}: run it before the threshold, when='start'"
            )
        yield Regular(part.abstract_code, part.when, order)


def _numbered(
    recipe: PopulationRecipe, regular: tuple[Regular, ...], group: Any, where: str
) -> tuple[PopulationRecipe, tuple[Regular, ...], dict[str, Array]]:
    """Put parameters in place of ``i`` and ``N``, which differ between a group and its copies."""
    keys = ("equations", "threshold", "reset", "refractory")
    texts = [getattr(recipe, key) for key in keys] + [one.code for one in regular]
    used = [name for name in NUMBERED if any(re.search(rf"\b{name}\b", text) for text in texts)]
    taken = [NUMBERED[name] for name in used if NUMBERED[name] in group.variables]
    if taken:
        raise CapabilityError(f"{where}: a variable cannot be called {taken[0]!r}: rename it")

    def put(text: str) -> str:
        for name in used:
            text = re.sub(rf"\b{name}\b", NUMBERED[name], text)
        return text

    changed: dict[str, Any] = {key: put(getattr(recipe, key)) for key in keys}
    for name in used:
        changed["equations"] += f"\n{NUMBERED[name]} : integer (constant)"
    values = {"i": np.arange(len(group)), "N": np.full(len(group), len(group))}
    again = tuple(dataclasses.replace(one, code=put(one.code)) for one in regular)
    return (
        dataclasses.replace(recipe, **changed),
        again,
        {NUMBERED[name]: values[name].astype(float) for name in used},
    )


def _check_names(codes: tuple[str, ...], known: set[str], where: str) -> None:
    """Refuse names that nobody knows, and what copies of a neuron would not share."""
    from brian2.equations.equations import Equations

    used = {name for code in codes[1:] for name in _identifiers(code)}
    used |= {name for text in Equations(codes[0]).values() for name in text.identifiers}
    for name in sorted(used - known):
        if name in RANDOM:
            raise CapabilityError(
                f"{where} draws {name}(), by which copies would differ: take noise xi instead"
            )
        if (
            name in {*_usual(), *_ASSIGNED}
            or name.startswith(("xi", "_"))
            or name in assigned("\n".join(codes[1:]))
        ):
            continue
        raise CapabilityError(
            f"{where}: {name!r} is in no namespace: give wrap(..., namespace={{{name!r}: ...}})"
        )


def own_names(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a namespace has beside Brian2's own names."""
    return {name: value for name, value in namespace.items() if name not in _usual()}


def _usual() -> set[str]:
    from brian2.core.functions import DEFAULT_CONSTANTS, DEFAULT_FUNCTIONS
    from brian2.core.namespace import DEFAULT_UNITS

    return {*DEFAULT_CONSTANTS, *DEFAULT_FUNCTIONS, *DEFAULT_UNITS}


_ASSIGNED = (
    "t",
    "dt",
    "t_in_timesteps",
    "not_refractory",
    "lastspike",
    "and",
    "or",
    "not",
    "True",
    "False",
)


def assigned(code: str) -> set[str]:
    """Return the names that statements assign."""
    return set(re.findall(r"(?:^|[;\n])\s*(\w+)\s*[-+*/]?=(?!=)", code))


def _identifiers(code: str) -> set[str]:
    from brian2.utils.stringtools import get_identifiers

    return set(get_identifiers(code))


def brief(code: object) -> str:
    """Return the beginning of a text, in one line."""
    text = " ".join(str(code).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
