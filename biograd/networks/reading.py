"""Brian2 groups and synapses, read as recipes, values and weights; nothing of them is changed.

Texts are read by a walk over their syntax tree, and what is not understood is refused by name.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.errors import CapabilityError
from biograd.networks.import_brian2 import import_brian2
from biograd.networks.neuron_model import Details, Regular
from biograd.networks.quantities import BINARY
from biograd.recipes import PopulationRecipe

Array = NDArray[np.float64]
NUMBERED = ("i", "N")
"""Variables by which the copies of a neuron would differ."""
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


@dataclasses.dataclass(frozen=True)
class Way:
    """Synapses of one delay onto one variable.

    Attributes:
        weights: what a spike adds, in SI units, ``[target units, source units]``.
        mask: where there are synapses.
        steps: of the delay.
    """

    name: str
    source: Any
    target: Any
    variable: str
    weights: Array
    mask: NDArray[np.bool_]
    steps: int


def read_group(group: Any, dt: float, namespace: Mapping[str, Any]) -> Group:
    """Return what a ``NeuronGroup`` is.

    Args:
        dt: length of a step in seconds, which must be its own.
        namespace: of the run, beside the group's own.

    Raises:
        CapabilityError: something that a population cannot have.
    """
    where = f"group {group.name!r}"
    check_clock(group, dt, where)
    for event in set(group.events) - {"spike"}:
        raise CapabilityError(f"{where}: event {event!r}: only spikes can be wrapped: remove it")
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
    codes = (
        recipe.equations,
        recipe.threshold,
        recipe.reset,
        recipe.refractory,
        *(one.code for one in regular),
    )
    own = set(group.equations.names)
    used = {name for code in codes for name in re.findall(r"\b[A-Za-z_]\w*", code)}
    known = {**_own(namespace), **(group.namespace or {})}
    constants = {n: known[n] for n in sorted(used - own - {*NUMBERED}) if n in known}
    _check_names(group, codes, set(constants), where)
    names = group.equations.diff_eq_names | group.equations.parameter_names
    initial = {
        name: np.array(group.variables[name].get_value())
        for name in names
        if name not in ("lastspike", "not_refractory")
    }
    details = Details(initial=initial, regular=regular)
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


def check_clock(part: Any, dt: float, where: str) -> None:
    """Refuse another time step than that of the encoding."""
    own = float(part.clock.dt_)
    if abs(own - dt) > 1e-9 * dt:
        raise CapabilityError(
            f"{where} has steps of {1e3 * own:g} ms, the encoding of {1e3 * dt:g} ms: give all "
            "parts of the network, and encoding.dt_ms, the same"
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
    from brian2.groups.neurongroup import Resetter, StateUpdater, SubexpressionUpdater, Thresholder

    slots = ("start", "groups", "thresholds")
    early = {f"{turn}{slot}" for slot in slots for turn in ("before_", "", "after_")}
    for part in group.contained_objects:
        if isinstance(part, (StateUpdater, SubexpressionUpdater, Thresholder, Resetter)):
            continue
        said = f"{where}: run_regularly {brief(getattr(part, 'abstract_code', part))!r}"
        if not isinstance(part, CodeRunner):  # synapses that run something regularly are here, too
            raise CapabilityError(
                f"{where}: what {type(part).__name__} {part.name!r} runs in it cannot be wrapped: "
                "remove it"
            )
        check_clock(part, dt, said)
        if part.when not in early - {"thresholds", "after_thresholds"}:
            raise CapabilityError(
                f"{said} runs in {part.when!r}: run it before the threshold, when='start'"
            )
        yield Regular(part.abstract_code, part.when, part.order)


def _check_names(group: Any, codes: tuple[str, ...], constants: set[str], where: str) -> None:
    """Refuse names that nobody knows, and those that copies of a neuron do not share."""
    from brian2.equations.equations import Equations

    used = {name for code in codes[1:] for name in _identifiers(code)}
    used |= {name for text in Equations(codes[0]).values() for name in text.identifiers}
    own = set(group.equations.names)
    for name in sorted(used - own - constants):
        if name in RANDOM:
            raise CapabilityError(
                f"{where} draws {name}(), by which copies would differ: take noise xi instead"
            )
        if name in NUMBERED:
            raise CapabilityError(
                f"{where} uses {name!r}, by which copies of a neuron would differ: make it a "
                "parameter"
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


def _own(namespace: Mapping[str, Any]) -> dict[str, Any]:
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


def read_synapses(synapses: Any, dt: float, namespace: Mapping[str, Any]) -> list[Way]:
    """Return what a ``Synapses`` object adds to whom, one way for each variable and delay.

    Raises:
        CapabilityError: they do something else than ``X_post += w``.
    """
    where = f"synapses {synapses.name!r}"
    _check_synapses(synapses, where)
    ways = []
    several = sum(pathway.prepost == "pre" for pathway in synapses._pathways) > 1
    for pathway in synapses._pathways:
        check_clock(pathway, dt, where)
        if pathway.prepost == "post":
            raise CapabilityError(f"{where}: on_post: plasticity cannot be wrapped: remove it")
        if pathway.event != "spike" or pathway.when != "synapses":
            raise CapabilityError(
                f"{where}: {pathway.objname!r} must act on spikes, in the slot 'synapses'"
            )
        steps, added = _steps(pathway, dt, where), _added(pathway, synapses, namespace, where)
        name = f"{synapses.name}_{pathway.objname}" if several else synapses.name
        for variable, values in added.items():
            for delay in np.unique(steps):
                way = _way(synapses, variable, values, steps == delay, int(delay))
                ways.append(dataclasses.replace(way, name=name))
    return ways


def _added(
    pathway: Any, synapses: Any, namespace: Mapping[str, Any], where: str
) -> dict[str, Array]:
    """Return what a spike adds to each variable, in SI units, for every synapse."""
    found: dict[str, Array] = {}
    for node, line in _statements(pathway.code, where):
        variable, sign = _target(node, line, synapses, where)
        values = sign * _Value(synapses, namespace, where, line).of(node.value)
        found[variable] = found.get(variable, np.zeros(())) + values
    return found


def end_of(side: Any) -> tuple[Any, int]:
    """Return the whole group to which synapses lead, and where their part of it begins."""
    parent = getattr(side, "source", None)
    if type(side).__name__ == "Subgroup" and parent is not None:
        return parent, int(side.start)
    return side, 0


def _check_synapses(synapses: Any, where: str) -> None:
    from brian2.synapses.synapses import SynapticPathway

    changing = sorted(synapses.equations.diff_eq_names)
    if synapses.event_driven:
        changing += sorted(synapses.event_driven.diff_eq_names)
    if changing:
        raise CapabilityError(
            f"{where}: {', '.join(changing)} changes in time: synapses with equations cannot be "
            "wrapped: let them add to a variable of the neurons"
        )
    if synapses.summed_updaters:
        raise CapabilityError(
            f"{where}: summed variables cannot be wrapped: let spikes add to a variable of the "
            "neurons, on_pre='g_post += w'"
        )
    for part in synapses.contained_objects:
        if not isinstance(part, SynapticPathway):
            raise CapabilityError(f"{where}: {part.name} cannot be wrapped: remove it")
    if not getattr(synapses, "_connect_called", True) or not len(synapses):
        raise CapabilityError(f"{where}: there are none yet: call connect() first")


def _steps(pathway: Any, dt: float, where: str) -> NDArray[np.int64]:
    """Return the delay of every synapse in steps."""
    delays = np.asarray(pathway.variables["delay"].get_value(), dtype=float)
    steps = np.rint(delays / dt).astype(int)
    apart = np.abs(delays - steps * dt) > 1e-6 * dt
    if apart.any():
        raise CapabilityError(
            f"{where}: a delay of {1e3 * delays[apart][0]:g} ms is no number of steps of "
            f"{1e3 * dt:g} ms: round it"
        )
    return np.broadcast_to(steps, len(pathway.synapses))


def _statements(code: str, where: str) -> Iterator[tuple[ast.AugAssign, str]]:
    """Yield the statements ``X += value`` and ``X -= value`` of a text."""
    try:
        nodes = ast.parse(code).body
    except SyntaxError:
        raise CapabilityError(f"{where}: on_pre {brief(code)!r} cannot be read") from None
    for node in nodes:
        line = ast.unparse(node)
        simple = isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Add, ast.Sub))
        if not (simple and isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)):
            raise CapabilityError(
                f"{where}: on_pre {brief(line)!r}: only 'X_post += w' can be wrapped, with X a "
                "variable of the neurons and w one of the synapses"
            )
        yield node, line


def _target(node: ast.AugAssign, line: str, synapses: Any, where: str) -> tuple[str, int]:
    """Return the variable of the neurons to which a statement adds, and the sign."""
    assert isinstance(node.target, ast.Name)
    name, sign = node.target.id, -1 if isinstance(node.op, ast.Sub) else 1
    group, _ = end_of(synapses.target)
    variable = name.removesuffix("_post")
    if name in synapses.equations.names or name.endswith("_pre"):
        raise CapabilityError(
            f"{where}: on_pre {brief(line)!r} changes {name!r}: only what adds to the neurons "
            "behind can be wrapped"
        )
    equations = getattr(group, "equations", None)
    if equations is None or variable not in equations.diff_eq_names:
        raise CapabilityError(
            f"{where}: on_pre {brief(line)!r}: {variable!r} has no differential equation in group "
            f"{group.name!r}: give it one, such as 'd{variable}/dt = 0*{variable}/second'"
        )
    return variable, sign


@dataclasses.dataclass(frozen=True)
class _Value:
    """What the right side of a statement is for every synapse, in SI units."""

    synapses: Any
    namespace: Mapping[str, Any]
    where: str
    line: str

    def of(self, node: ast.expr) -> Array:
        """Return the value of an expression, ``[synapses]`` or a number."""
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return np.asarray(float(value))
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.of(operand)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
                return np.asarray(BINARY[type(sign)](self.of(left), self.of(right)))
        raise CapabilityError(
            f"{self.where}: on_pre {brief(self.line)!r}: {brief(ast.unparse(node))!r} is no "
            "product of numbers, constants and variables of the synapses"
        )

    def _name(self, name: str) -> Array:
        from brian2.core.namespace import DEFAULT_UNITS

        if name in self.synapses.equations.parameter_names:
            return np.asarray(self.synapses.variables[name].get_value(), dtype=float)
        known = {**DEFAULT_UNITS, **_own(self.namespace), **(self.synapses.namespace or {})}
        if name in self.synapses.variables or name not in known:
            hint = "changes in time" if name in self.synapses.variables else "is in no namespace"
            raise CapabilityError(
                f"{self.where}: on_pre {brief(self.line)!r}: {name!r} {hint}: only constants and "
                "variables of the synapses can be wrapped as weights"
            )
        return np.asarray(known[name], dtype=float)


def _way(synapses: Any, variable: str, values: Array, chosen: NDArray[np.bool_], steps: int) -> Way:
    (source, first), (target, begin) = end_of(synapses.source), end_of(synapses.target)
    pre = np.asarray(synapses.i[:])[chosen] + first
    post = np.asarray(synapses.j[:])[chosen] + begin
    weights = np.zeros((len(target), len(source)))
    np.add.at(weights, (post, pre), np.broadcast_to(values, chosen.shape)[chosen])
    mask = np.zeros(weights.shape, bool)
    mask[post, pre] = True
    return Way(synapses.name, source, target, variable, weights, mask, steps)


def brief(code: object) -> str:
    """Return the beginning of a text, in one line."""
    text = " ".join(str(code).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
