"""A population in the terms of NIR: its equations in continuous time, its constants by neuron.

NIR says nothing of time steps.  In biograd's steps of length ``dt`` what flows is constant within a
step, a spike is a current of 1 for one step, and each equation is solved exactly for what flows
into it; with ``alpha = exp(-dt/tau_syn)``, ``beta = exp(-dt/tau)``::

    g[t] = alpha g[t-1] + (1 - alpha) w_in I[t]            (g = I without a synaptic filter)
    v[t] = v_leak + beta (u - v_leak) + (1 - beta) r g[t] - taken s[t-1]
    v[t] = u + dt r g[t] - taken s[t-1]                    (without a leak; dt in seconds)
    u    = v_reset where s[t-1] = 1, else v[t-1]
    s[t] = 1 if v[t] > threshold else 0

A trial begins at rest, ``v = v_leak`` and ``g = 0``; NIR has no initial state either.
Source: Pedersen et al. 2024, Nature Communications 15, 8122.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.errors import CapabilityError

Array = NDArray[Any]
NEIGHBOURS = 64
"""Numbers on either side of a time constant among which the one is sought that fits a decay."""
SAME = 1e-12
"""Relative difference of what counts as equal: rounding, no more."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """The constants of a population, each ``[units]``, times in seconds.

    Attributes:
        shape: in which the neurons lie.
        r: resistance.
        tau: time constant of the membrane; None: it does not leak.
        v_leak: where it leaks to; None: it does not leak.
        tau_syn: time constant of the synaptic filter; None: there is none.
        w_in: factor on what enters the filter.
        threshold: of a spike; None: the population passes on its potential.
        v_reset: where a spike puts the potential; None: nowhere.
        taken: what a spike takes from the potential one step later; None: nothing.
        trains: what was learned by every neuron, as text; for the reader only.
    """

    shape: tuple[int, ...]
    r: Array
    tau: Array | None = None
    v_leak: Array | None = None
    tau_syn: Array | None = None
    w_in: Array | None = None
    threshold: Array | None = None
    v_reset: Array | None = None
    taken: Array | None = None
    trains: str = ""

    @property
    def units(self) -> int:
        """The number of neurons."""
        return math.prod(self.shape)

    def gain(self, dt_ms: float) -> Array:
        """Return the change of the potential in a step by a current of 1."""
        if self.tau is None:
            return dt_ms / 1000 * self.r
        return (1 - decays(self.tau, dt_ms)) * self.r

    def takes_threshold(self) -> bool:
        """Return whether a spike takes just the threshold from the potential."""
        if self.taken is None or self.threshold is None or self.v_reset is not None:
            return False
        return bool(np.all(abs(self.taken - self.threshold) <= SAME * abs(self.threshold)))

    def spread(self, shape: tuple[int, ...]) -> Cell:
        """Return as many neurons as ``shape`` has, all like the only one of this cell."""
        values: dict[str, Any] = {
            name: np.full(math.prod(shape), value) for name, value in self.values().items()
        }
        return dataclasses.replace(self, shape=shape, **values)

    def values(self) -> dict[str, Array]:
        """Return the constants that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def common(values: Array) -> float | None:
    """Return the value that all neurons share; None: they differ."""
    first = values.flat[0]
    return float(first) if bool((values == first).all()) else None


def milliseconds(seconds: float) -> float:
    """Return a time in milliseconds: the round number that someone wrote, if it is one.

    >>> milliseconds(0.0041), 1000 * 0.0041
    (4.1, 4.1000000000000005)
    """
    exact, written = 1000 * seconds, f"{seconds:.15g}"
    return float(f"{exact:.15g}") if float(written) == seconds else exact


def decay(tau: float, dt_ms: float) -> float:
    """Return ``exp(-dt/tau)`` for a time constant in seconds."""
    return math.exp(-dt_ms / milliseconds(tau))


def decays(tau: Array, dt_ms: float) -> Array:
    """Return the decay of every neuron in a step."""
    distinct, places = np.unique(tau, return_inverse=True)
    return np.array([decay(float(value), dt_ms) for value in distinct])[places]


def time_constant(left: float, dt_ms: float) -> float:
    """Return the time constant in seconds, the roundest, that decays to ``left`` in a step.

    >>> time_constant(math.exp(-1 / 10), 1.0)
    0.01
    """
    if left >= 1:
        raise CapabilityError(f"a decay by {left} in a step has no time constant")
    exact = -dt_ms / math.log(left) if left > 0 else dt_ms / 1000
    for digits in range(1, 18):
        seconds = float(f"{exact / 1000:.{digits}g}")
        if decay(seconds, dt_ms) == left:
            return seconds
    below = above = exact / 1000
    for _ in range(NEIGHBOURS):
        below, above = math.nextafter(below, 0), math.nextafter(above, math.inf)
        for seconds in (below, above):
            if decay(seconds, dt_ms) == left:
                return seconds
    return exact / 1000


def resistance(gain: float, beta: float) -> float:
    """Return the resistance, the roundest, whose gain in a step is ``gain = (1 - beta) R``."""
    exact = gain / (1 - beta)
    for digits in range(1, 18):
        value = float(f"{exact:.{digits}g}")
        if (1 - beta) * value == gain:
            return value
    return exact
