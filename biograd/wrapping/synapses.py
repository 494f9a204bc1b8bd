"""Brian2 synapses, read as weights and delays; nothing of them is changed.

Statements are read by a walk over their syntax tree, and what is not understood is refused by name.
"""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.brian.language import BINARY
from biograd.errors import CapabilityError
from biograd.wrapping.groups import brief, own_names
from biograd.wrapping.scheduling import acting, check_clock

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The synapses of which a way was read, for whoever writes its weights back.

    Attributes:
        synapses: the user's ``Synapses``.
        members: numbers of those that are the way's.
        pre, post: neuron of the whole group before and behind each of them.
        statements: sign, right side and text of what a spike adds.
        namespace: of the run.
    """

    synapses: Any
    members: NDArray[np.int64]
    pre: NDArray[np.int64]
    post: NDArray[np.int64]
    statements: tuple[tuple[int, ast.expr, str], ...]
    namespace: Mapping[str, Any]

    @property
    def where(self) -> str:
        """What the synapses are called in messages."""
        return f"synapses {self.synapses.name!r}"

    def value(self, **parameters: Array) -> Array:
        """Return what a spike of each synapse of the object adds, in SI units.

        Args:
            parameters: variables of the synapses that have other values than now.
        """
        total = np.zeros(())
        for sign, node, line in self.statements:
            read = _Value(self.synapses, self.namespace, self.where, line, parameters)
            total = total + sign * read.of(node)
        return np.broadcast_to(total, len(self.synapses))


@dataclasses.dataclass(frozen=True)
class Way:
    """Synapses of one delay onto one variable.

    Attributes:
        weights: what a spike adds, in SI units, ``[target units, source units]``.
        mask: where there are synapses.
        steps: of the delay.
        provenance: the synapses themselves.
    """

    name: str
    source: Any
    target: Any
    variable: str
    weights: Array
    mask: NDArray[np.bool_]
    steps: int
    provenance: Provenance


def read_synapses(synapses: Any, dt: float, namespace: Mapping[str, Any]) -> list[Way]:
    """Return what a ``Synapses`` object adds to whom, one way for each variable and delay.

    Raises:
        CapabilityError: they do something else than ``X_post += w``.
    """
    where = f"synapses {synapses.name!r}"
    _check_synapses(synapses, where)
    ways = []
    pathways = acting(synapses._pathways)
    several = sum(pathway.prepost == "pre" for pathway in pathways) > 1
    for pathway in pathways:
        check_clock(pathway, dt, where)
        if pathway.prepost == "post":
            raise CapabilityError(f"{where}: on_post: plasticity cannot be wrapped: remove it")
        if pathway.event != "spike" or pathway.when != "synapses":
            raise CapabilityError(
                f"{where}: {pathway.objname!r} must act on spikes, in the slot 'synapses'"
            )
        steps = _steps(pathway, dt, where)
        name = f"{synapses.name}_{pathway.objname}" if several else synapses.name
        for variable, statements in _added(pathway, synapses, where).items():
            for delay in np.unique(steps):
                members = np.flatnonzero(steps == delay)
                origin = _provenance(synapses, members, statements, namespace)
                ways.append(_way(name, variable, int(delay), origin))
    return ways


def _added(
    pathway: Any, synapses: Any, where: str
) -> dict[str, tuple[tuple[int, ast.expr, str], ...]]:
    """Return the statements that add to each variable."""
    found: dict[str, tuple[tuple[int, ast.expr, str], ...]] = {}
    for node, line in _statements(pathway.code, where):
        variable, sign = _target(node, line, synapses, where)
        found[variable] = (*found.get(variable, ()), (sign, node.value, line))
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
    if acting(synapses.summed_updaters.values()):
        raise CapabilityError(
            f"{where}: summed variables cannot be wrapped: let spikes add to a variable of the "
            "neurons, on_pre='g_post += w'"
        )
    for part in synapses.contained_objects:
        if part.active and not isinstance(part, SynapticPathway):
            raise CapabilityError(f"{where}: {part.name} cannot be wrapped: remove it")
    if not getattr(synapses, "_connect_called", True) or not len(synapses):
        raise CapabilityError(f"{where}: there are none yet: call connect() first")


def _steps(pathway: Any, dt: float, where: str) -> NDArray[np.int64]:
    """Return the delay of every synapse in steps, rounded as Brian2 does, and say so."""
    delays = np.asarray(pathway.variables["delay"].get_value(), dtype=float)
    steps = (delays / dt + 0.5).astype(int)  # its queue: half a step is a whole one
    apart = np.abs(delays - steps * dt) > 1e-6 * dt
    if apart.any():
        first, found = 1e3 * delays[apart][0], 1e3 * dt * steps[apart][0]
        warnings.warn(
            f"{where}: a delay of {first:g} ms is no number of steps of {1e3 * dt:g} ms: "
            f"{int(apart.sum())} of {len(delays)} are rounded as Brian2 does, this to {found:g} ms",
            RuntimeWarning,
            stacklevel=2,
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
    replaced: Mapping[str, Array]

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

    def _numbers(self) -> dict[str, Any]:
        """Return the neurons' numbers before and behind each synapse, and how many there are."""
        source, target = self.synapses.source, self.synapses.target
        sizes = {"N": len(self.synapses), "N_pre": len(source), "N_post": len(target)}
        return {"i": self.synapses.i[:], "j": self.synapses.j[:], **sizes}

    def _name(self, name: str) -> Array:
        from brian2.core.namespace import DEFAULT_UNITS

        if name in self.replaced:
            return self.replaced[name]
        if name in self.synapses.equations.parameter_names:
            return np.asarray(self.synapses.variables[name].get_value(), dtype=float)
        if name in self._numbers():
            return np.asarray(self._numbers()[name], dtype=float)
        known = {**DEFAULT_UNITS, **own_names(self.namespace), **(self.synapses.namespace or {})}
        if name in self.synapses.variables or name not in known:
            hint = "changes in time" if name in self.synapses.variables else "is in no namespace"
            raise CapabilityError(
                f"{self.where}: on_pre {brief(self.line)!r}: {name!r} {hint}: only constants and "
                "variables of the synapses can be wrapped as weights"
            )
        return np.asarray(known[name], dtype=float)


def _provenance(
    synapses: Any,
    members: NDArray[np.int64],
    statements: tuple[tuple[int, ast.expr, str], ...],
    namespace: Mapping[str, Any],
) -> Provenance:
    (_, first), (_, begin) = end_of(synapses.source), end_of(synapses.target)
    pre = np.asarray(synapses.i[:])[members] + first
    post = np.asarray(synapses.j[:])[members] + begin
    return Provenance(synapses, members, pre, post, statements, namespace)


def _way(name: str, variable: str, steps: int, origin: Provenance) -> Way:
    source, target = end_of(origin.synapses.source)[0], end_of(origin.synapses.target)[0]
    weights = np.zeros((len(target), len(source)))
    np.add.at(weights, (origin.post, origin.pre), origin.value()[origin.members])
    mask = np.zeros(weights.shape, bool)
    mask[origin.post, origin.pre] = True
    return Way(name, source, target, variable, weights, mask, steps, origin)
