"""A population in the terms of NIR: its equations in continuous time, taken in steps.

NIR says nothing of time steps.  In biograd's, of length ``dt``, what flows is constant within a
step, a spike is a current of 1 for one step, and each equation is solved exactly for what flows
into it.  Source: Pedersen et al. 2024, Nature Communications 15, 8122.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from biograd.checking import construct
from biograd.neurons import Leaky, LeakyIntegrator, Neuron, Spiking
from biograd.neurons.neuron import State

Array = NDArray[Any]
PerNeuronOrNone: TypeAlias = Any
"""One value for all neurons, or one for each: a tuple, or an array."""
SAME = 1e-12
"""Relative difference of what counts as equal: rounding, no more."""


@dataclasses.dataclass(frozen=True)
class NirNeuron(Spiking):
    """The neuron that every node of NIR is; what there is not is None.

    With ``alpha = exp(-dt/tau_syn)``, ``beta = exp(-dt/tau)``, ``g = I`` without a filter::

        g[t] = alpha g[t-1] + (1 - alpha) weight I[t]
        v[t] = rest + beta (v' - rest) + (1 - beta) R g[t] - taken s[t-1]
        v[t] = v' + dt R g[t] - taken s[t-1]                (without a leak; dt in seconds)
        v'   = reset where s[t-1] = 1, else v[t-1]
        s[t] = 1 if v[t] > threshold else 0                 (without a threshold v is passed on)

    A trial begins at rest.  Between graphs and neurons the fields are arrays ``[units]``.

    Attributes:
        time_constant_ms: tau.
        synaptic_time_constant_ms: tau_syn.
        weight: on what enters the filter.
        resistance: R.
        reset: where a spike puts the potential.
        taken: by a spike, from the potential of the next step.
    """

    time_constant_ms: PerNeuronOrNone = None
    synaptic_time_constant_ms: PerNeuronOrNone = None
    weight: PerNeuronOrNone = 1.0
    resistance: PerNeuronOrNone = 1.0
    rest: PerNeuronOrNone = 0.0
    threshold: PerNeuronOrNone = None
    reset: PerNeuronOrNone = None
    taken: PerNeuronOrNone = None

    name: ClassVar[str] = "nir"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spiking", self.threshold is not None)

    @property
    def variables(self) -> tuple[str, ...]:
        """Synaptic current, and potential above its rest."""
        return ("g", "u")

    @property
    def noun(self) -> str:
        """What messages call it."""
        return "neurons with a rest, a reset or no leak of their own"

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return decays per step, gains, and potentials above the rest."""
        beta, alpha, gain = 1.0, 0.0, dt / 1000 * p.resistance
        if self.time_constant_ms is not None:
            beta = f.exp(-dt / p.time_constant_ms)
            gain = (1 - beta) * p.resistance
        if self.synaptic_time_constant_ms is not None:
            alpha = f.exp(-dt / p.synaptic_time_constant_ms)
        found = {"alpha": alpha, "beta": beta, "weight": p.weight, "gain": gain, "rest": p.rest}
        for name in ("threshold", "reset"):
            if getattr(self, name) is not None:
                found[name] = getattr(p, name) - p.rest
        return found | ({} if self.taken is None else {"taken": p.taken})

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        g, u = c.alpha * x.g + (1 - c.alpha) * c.weight * into.I, x.u
        if self.reset is not None:
            u = u * (1 - held) + c.reset * held
        u = c.beta * u + c.gain * g
        return x._replace(g=g, u=u if self.taken is None else u - c.taken * held)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the distance to the threshold, or the potential."""
        return x.u + c.rest if self.threshold is None else x.u - c.threshold

    def nir(self, p: Any) -> Mapping[str, Any]:
        """Return itself."""
        return {name: getattr(p, name) for name in FIELDS}

    def given(self) -> dict[str, Any]:
        """Return the constants that there are, by name."""
        found = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in found.items() if value is not None}

    def each(self, change: Any) -> NirNeuron:
        """Return a cell with every constant changed."""
        changed = {name: change(value) for name, value in self.given().items()}
        return dataclasses.replace(self, **changed)

    def gain(self, dt_ms: float) -> Array:
        """Return the change of the potential in a step by a current of 1."""
        if self.time_constant_ms is None:
            return np.asarray(dt_ms / 1000 * self.resistance)
        return np.asarray((1 - np.exp(-dt_ms / self.time_constant_ms)) * self.resistance)

    def takes_threshold(self) -> bool:
        """Return whether a spike takes just the threshold from the potential."""
        if self.taken is None or self.threshold is None or self.reset is not None:
            return False
        return bool(np.all(abs(self.taken - self.threshold) <= SAME * abs(self.threshold)))


LEAK = {"resistance": "r", "time_constant_ms": "tau", "rest": "v_leak"}
FILTER = LEAK | {"time_constant_ms": "tau_mem"}
FILTER |= {"synaptic_time_constant_ms": "tau_syn", "weight": "w_in"}
SPIKE = {"threshold": "v_threshold", "reset": "v_reset"}
GRADED = {"I": {"resistance": "r"}, "LI": LEAK, "CubaLI": FILTER}
KEYS = GRADED | {f"{kind}F": keys | SPIKE for kind, keys in GRADED.items()}
"""What a node calls the constants of a cell, by its kind; its times are in seconds."""
FIELDS = tuple(field.name for field in dataclasses.fields(NirNeuron))[4:]
"""Constants of a cell."""


def neuron_of(cell: NirNeuron, notes: Mapping[str, Any], where: str) -> Neuron:
    """Return the named neuron that a cell is, else the cell, with numbers where neurons agree.

    A named neuron leaks to 0, and its spikes reset to 0 or take the threshold; its resistance
    holds the weight, too.

    Args:
        notes: of the node; of them, surrogate and slope.
    """
    known = {key: notes[key] for key in ("surrogate", "slope") if key in notes}
    spike = construct(Leaky, known, where, "surrogate and slope")
    noted: dict[str, Any] = {"surrogate": spike.surrogate, "slope": spike.slope}
    drive = cell.resistance * cell.weight
    own = dataclasses.replace(cell.each(settled), **noted)
    if cell.time_constant_ms is None or np.any(cell.rest) or np.any(drive <= 0):
        return own
    values: dict[str, Any] = {
        "time_constant_ms": own.time_constant_ms,
        "synaptic_time_constant_ms": own.synaptic_time_constant_ms or 0.0,
        "resistance": settled(drive),
    }
    if cell.threshold is None:
        return LeakyIntegrator(**values)
    zero = cell.taken is None and cell.reset is not None and not np.any(cell.reset)
    if np.any(cell.threshold <= 0) or not (zero or cell.takes_threshold()):
        return own
    return Leaky(**values, **noted, threshold=own.threshold, reset="zero" if zero else "subtract")


def settled(values: Any) -> float | tuple[float, ...]:
    """Return the value that all neurons share, else one for each."""
    values = np.asarray(values, float).ravel()
    alike = bool((values == values[0]).all())
    return float(values[0]) if alike else tuple(values.tolist())


def milliseconds(seconds: float) -> float:
    """Return a time in milliseconds: the round number that someone wrote, if it is one.

    >>> milliseconds(0.0041), 1000 * 0.0041
    (4.1, 4.1000000000000005)
    """
    exact, written = 1000 * seconds, f"{seconds:.15g}"
    return float(f"{exact:.15g}") if float(written) == seconds else exact


def in_milliseconds(seconds: Array) -> Array:
    """Return times in milliseconds, see ``milliseconds``."""
    return np.array([milliseconds(value) for value in np.ravel(seconds).tolist()])
