"""What a training step costs: a model of time, memory and traffic.

::

    time   = sum over kinds of work of (constant of the machine) x (amount of work)
    memory = 4 bytes x (3 N + what a step holds at its peak)
    step on R ranks = time of a rank's share + latency and bytes of what the ranks exchange

The constants are measured (``scale.py``); the amounts follow from the shape of the network, the
rule, the number of copies and the batch, and are counted here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

Kind = Literal["rate", "spiking", "brian2"]
Way = Literal["examples", "copies", "sums"]
"""What is divided among the ranks: a batch's rows; copies, of which losses are exchanged and every
rank makes the whole gradient; or copies, of whose gradient every rank makes a part (not built)."""

RULES = ("backprop", "direct_feedback", "weak", "weight_perturbation")
PERTURBING = ("weak", "weight_perturbation")
FIGURES = 8 * 7
"""Bytes of the table of figures that the ranks exchange in every step."""
REPLAYED = 30
"""Floats that a Brian2 population's derivative takes for a neuron's step: measured, 28 to 32."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step: a rule on a network of dense layers.

    Attributes:
        copies: ``S``, the clean one included; 1 for rules without noise.
        batch: ``B``.
        hidden: units of each hidden layer, all together ``U``.
        steps: ``T``, time steps of a trial; 1 for a rate network.
    """

    rule: str = "backprop"
    kind: Kind = "rate"
    copies: int = 1
    batch: int = 32
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 1
    inputs: int = 64
    classes: int = 10

    @property
    def noisy(self) -> int:
        """``m = S - 1``."""
        return self.copies - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units from the input to the output."""
        return (self.inputs, *self.hidden, self.classes)

    @property
    def layers(self) -> int:
        """Number of synaptic layers, the readout included."""
        return len(self.hidden) + 1

    @property
    def parameters(self) -> int:
        """``N``."""
        return sum((before + 1) * after for before, after in pairwise(self.sizes))

    @property
    def units(self) -> int:
        """``U``: hidden units."""
        return sum(self.hidden)

    @property
    def passes(self) -> int:
        """Forward passes of examples in a step, ``S B``."""
        return self.copies * self.batch

    @property
    def name(self) -> str:
        """The network in short."""
        return "-".join(map(str, self.sizes))


def multiply_accumulates(case: Case) -> tuple[int, int]:
    """Return those of one example: of the first layer, and of all others.

    A constant current is computed once for a trial, and the readout acts on filtered spikes once.
    """
    inner = case.steps * sum(before * after for before, after in pairwise(case.hidden))
    return case.inputs * case.hidden[0], inner + case.hidden[-1] * case.classes


def work(
    case: Case, rows: int | None = None, own: int | None = None, drawn: float | None = None
) -> dict[str, float]:
    """Return the amount of each kind of work in a step.

    Args:
        rows: of the batch that this process computes; None: all.
        own: noisy copies that it runs; None: all.
        drawn: pairs of copies whose noise it draws again for the gradient; None: all.
    """
    batch, copies = case.batch, case.noisy
    rows, own = batch if rows is None else rows, copies if own is None else own
    first, rest = multiply_accumulates(case)
    found: dict[str, float] = {
        "step": 1,
        f"layer, {case.rule}": case.layers,
        "parameter": case.parameters,
    }
    runs = [(rows, 1)]  # rows and number of forward passes
    products = rows * (first + rest)
    if case.rule == "backprop":
        products += rows * (first + 2 * rest)
    elif case.rule == "direct_feedback":
        products += rows * (first + rest + case.classes * case.units)
    elif case.rule == "weak":
        products += rows * (first + rest) + rows * first + own * rows * rest
        runs.append((own * rows, 1))
        small, large = sorted((case.copies, case.units))
        found |= {
            "number drawn": copies * batch * case.units,  # on every rank, for the whole batch
            "site's noise": own * rows * case.units,
            "regression": rows * small * small * large,
            "equation": rows * small * small,
        }
    elif case.rule == "weight_perturbation":
        products += own * rows * (first + rest)
        runs.append((rows, own))
        again = copies / 2 if drawn is None else drawn
        found |= {
            "layer of a copy": own * case.layers,
            "number drawn": (own + again) * case.parameters,
        }
    found["multiply-accumulate"] = products
    return found | _activity(case, rows, runs)


def _activity(case: Case, rows: int, runs: list[tuple[int, int]]) -> dict[str, float]:
    """Return the work of units and neurons, forward, and backward where there is a derivative."""
    through = case.steps * case.units
    forward = sum(count * size for size, count in runs) * through
    derivative = rows * through if case.rule not in PERTURBING else 0
    if case.kind == "rate":
        return {"unit": forward, "unit's derivative": derivative}
    calls = len(case.hidden) * sum(count for _, count in runs)
    prefix = "Brian2: " if case.kind == "brian2" else ""
    backward = len(case.hidden) * case.steps if derivative else 0
    return {
        f"{prefix}population": calls,
        f"{prefix}population's step": calls * case.steps,
        f"{prefix}neuron's step": forward,
        f"{prefix}population's step back": backward,
        f"{prefix}neuron's step back": derivative,
    }


def seconds(constants: Mapping[str, float], amounts: Mapping[str, float]) -> float:
    """Return the time of an amount of work; constants in nanoseconds."""
    return 1e-9 * sum(constants[name] * amount for name, amount in amounts.items() if amount)


# Memory -----------------------------------------------------------------------------------------


def resting(case: Case) -> int:
    """Return the floats that are there between two steps: parameters and Adam's two moments."""
    return 3 * case.parameters


MOST_KEPT = 256 * 2**20 // 4
"""Floats of noise that are kept for their second use."""


def peak(case: Case) -> float:
    """Return the floats that a step holds at its peak, beside those that are always there.

    The largest of four moments: noisy copies forward, the regression, the way back, the optimiser.
    All are counted from the code, but for ``REPLAYED``.
    """
    rows, copies, through = case.batch, case.noisy, case.steps
    largest = max(before * after for before, after in pairwise(case.sizes))
    ends = rows * (2 * case.classes + 3)
    kept = rows * _kept(case) + ends
    moments = [case.parameters + 2 * largest + kept]  # the optimiser
    if case.rule == "weak":
        noise = case.units
        width = case.inputs + noise + _forward(case) + (2 * case.hidden[0] if through > 1 else 0)
        small = min(case.copies, case.units)
        regression = max(4 * copies * noise, 3 * copies * noise + 3 * small * small)
        moments += [kept + copies * rows * width, kept + rows * regression]
    elif case.rule == "weight_perturbation":
        drawn = max(min(case.noisy // 2, MOST_KEPT // case.parameters), 1)
        moments += [
            (1 + drawn) * case.parameters + kept,
            2 * case.parameters + largest + kept,
            case.parameters + largest + kept + rows * _forward(case),
        ]
    elif case.kind == "brian2":
        moments.append(REPLAYED * rows * through * case.units)
    else:
        moments.append(kept + rows * _back(case) + case.parameters)
    return max(moments)


def _kept(case: Case) -> int:
    """Return the floats of an example that the clean copy leaves: currents and activities."""
    if case.kind == "rate":
        return 2 * case.units
    currents = case.hidden[0] + case.steps * sum(case.hidden[1:])
    last = case.rule != "weight_perturbation"
    return currents + case.steps * sum(case.hidden if last else case.hidden[:-1])


def _forward(case: Case) -> int:
    """Return the most floats of a row that a pass without a graph holds at a time."""
    if case.kind == "rate":
        return 3 * max(case.hidden)
    layers = [
        before + 2 * after + (before if place and case.rule == "weak" else 0)
        for place, (before, after) in enumerate(pairwise(case.hidden))
    ]
    return case.steps * max([*layers, 2 * case.hidden[-1]])


def _back(case: Case) -> int:
    """Return the floats of an example that the way back holds beside what is kept."""
    widest = max(case.hidden)
    if case.kind == "rate":
        return 2 * widest if case.rule == "backprop" else 2 * (widest + case.units)
    slopes = case.steps * (case.units + 3 * widest)
    if case.rule == "backprop":
        return slopes
    last = max(place for place, units in enumerate(case.hidden) if units == widest)
    return slopes + case.steps * (sum(case.hidden[:-1]) + sum(case.hidden[:last]))


# Ranks ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects the ranks.

    Attributes:
        latency: seconds until a message arrives, however short it is.
        bandwidth: bytes a second.
    """

    name: str
    latency: float
    bandwidth: float

    def reduce(self, size: float, ranks: int) -> float:
        """Return the time of a sum over all ranks, left on all of them.

        ``2 ceil(log2 R) latency + 2 (R - 1)/R bytes / bandwidth``: halving and doubling
        (Thakur, Rabenseifner & Gropp 2005, doi:10.1177/1094342005051521).
        """
        if ranks == 1:
            return 0.0
        return 2 * math.ceil(math.log2(ranks)) * self.latency + wire(size, ranks) / self.bandwidth

    def gather(self, size: float, ranks: int) -> float:
        """Return the time in which every rank hears ``size`` bytes of each other one."""
        if ranks == 1:
            return 0.0
        return math.ceil(math.log2(ranks)) * self.latency + (ranks - 1) * size / self.bandwidth


def wire(size: float, ranks: int) -> float:
    """Return the bytes that each rank sends for a sum of ``size`` bytes over all ranks."""
    return 2 * (ranks - 1) / ranks * size


def traffic(case: Case, way: Way, ranks: int) -> dict[str, int]:
    """Return the bytes that a rank hands over in a step, by what they are; none if it is alone."""
    if ranks == 1:
        return {}
    if way == "copies":
        return {"losses": 4 * case.noisy, "figures": FIGURES}
    tensors = 2 * case.layers  # for each, whether it has a gradient
    found = {"gradient": 4 * (case.parameters + tensors), "figures": FIGURES}
    if way == "sums":
        return found | {"losses": 4 * case.noisy}
    return found | {"scales": 4 * case.layers}


def share(case: Case, way: Way, ranks: int) -> dict[str, float]:
    """Return the work of the busiest of several ranks.

    More ranks than rows, or than copies, leave the busiest with one.
    """
    if way == "examples":
        return work(case, rows=math.ceil(case.batch / ranks))
    own = math.ceil(case.noisy / ranks)
    return work(case, own=own, drawn=None if way == "copies" else own / 2)


def exchange(case: Case, way: Way, ranks: int, link: Link) -> float:
    """Return the seconds of a step in which ranks exchange."""
    parts = traffic(case, way, ranks)
    return sum(
        link.gather(size, ranks) if name == "figures" else link.reduce(size, ranks)
        for name, size in parts.items()
    )


def step(
    constants: Mapping[str, float], case: Case, way: Way, ranks: int, link: Link, faster: float = 1
) -> float:
    """Return the seconds of a step on several ranks; nothing is done while they exchange.

    Args:
        constants: of one rank, in nanoseconds.
        faster: how many times faster a rank is than the constants say.
    """
    return seconds(constants, share(case, way, ranks)) / faster + exchange(case, way, ranks, link)


# How good an estimate is ------------------------------------------------------------------------


def cosine(case: Case) -> float:
    """Return the expected cosine of an estimate with the true gradient.

    Weight perturbation with ``n = m / 2`` pairs has the mean square error ``(N + 1) / n`` of the
    squared gradient, hence ``cos = 1 / sqrt(1 + (N + 1) / n)``; a regression of each example's
    ``D = U`` unknowns finds the part in the span of its ``m < D`` directions,
    ``cos = sqrt(m / D)``.
    """
    if case.rule == "weight_perturbation":
        return 1 / math.sqrt(1 + (case.parameters + 1) / (case.noisy / 2))
    return math.sqrt(min(1.0, case.noisy / case.units))


def copies_for(case: Case, wanted: float) -> int:
    """Return the number of copies ``S`` at which ``cosine`` is as wanted (below 1)."""
    if case.rule == "weight_perturbation":
        pairs = math.ceil((case.parameters + 1) * wanted**2 / (1 - wanted**2))
        return 2 * pairs + 1
    return 1 + math.ceil(case.units * wanted**2 - 1e-9)  # rounding adds no copy
