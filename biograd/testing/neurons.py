"""What a neuron promises, as a check that also the neurons of other packages pass.

The reference is a loop over ``neurons.neuron.step`` with autograd's graph of every step.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biograd.checking import Range
from biograd.errors import CapabilityError, CheckFailed
from biograd.neurons.neuron import Functions, Neuron, constants_of, step
from biograd.neurons.surrogate import SURROGATES
from biograd.neurons.values import per_neuron
from biograd.randomness import generator
from biograd.simulators.population import Population, Simulator

SIMULATORS: tuple[Simulator, ...] = ("torch", "snntorch", "brian2")
ROWS, STEPS, UNITS, DT_MS = 4, 40, 6, 1.0
SAME = {True: 0.0, False: 1e-12}
"""How far what is passed on may differ between simulators: spikes, and what is graded."""
CLOSE = 1e-9
"""How far gradients may differ, relative to the largest."""
Result = tuple[Tensor, dict[str, Tensor]]
"""What is passed on, and the gradients of a weighted sum of it."""


def check_neuron(neuron: Neuron | type[Neuron]) -> None:
    """See whether a neuron does what biograd needs of it, on torch, snnTorch and Brian2.

    Driven by noise it passes something on; a simulator passes on the same as a loop over its step,
    over a whole trial and fed back step by step, with the loop's gradients by currents and learned
    fields, or refuses in a line, but torch does not refuse; every field changes spikes or
    gradients, or is refused; a field that may differ between neurons takes a list and a draw; the
    dtype of a current is kept; copies, pickles and loaded states simulate the same.

    Args:
        neuron: one with the fields that shall be tried, or a class, whose defaults are.

    Raises:
        CheckFailed: the first promise that is broken, in a line.
    """
    made = neuron() if isinstance(neuron, type) else neuron
    into = drive(made)
    if into is None:
        raise CheckFailed(f"{made.noun}: no current makes it pass anything on")
    try:
        for fault in itertools.chain(
            described(made), simulated(made, into), fields(made, into), kept(made, into)
        ):
            raise CheckFailed(f"{made.noun}: {fault}")
    except RuntimeError as error:
        if "in-place" not in str(error):
            raise
        raise CheckFailed(f"{made.noun}: changes what it is given in place: {error}") from error


def drive(neuron: Neuron, rows: int = ROWS, steps: int = STEPS, units: int = UNITS) -> Any:
    """Return noisy currents ``[rows, steps, units]`` by port that make it spike, or None."""
    for strength in (1.0, 3.0, 10.0, 0.3, 30.0, 0.1, 100.0, 1e3):
        into = {
            port: strength
            * (0.6 + torch.randn(rows, steps, units, generator=generator(0, port)).double())
            for port in neuron.ports
        }
        passed = population(neuron, "torch", steps=steps, units=units)(_given(into))
        if 0.02 < passed.mean() < 0.7 if neuron.spiking else passed.std() > 1e-3:
            return into
    return None


def population(
    neuron: Neuron, simulator: Simulator, steps: int = STEPS, units: int = UNITS
) -> Population:
    """Return a population in float64 whose factors are drawn."""
    made = Population(neuron, units, steps, DT_MS, simulator).double()
    with torch.no_grad():
        for name, factors in made.factors.items():
            factors.add_(0.3 * torch.randn(units, generator=generator(0, name)).double())
    return made


def looped(cells: Population, into: Mapping[str, Tensor]) -> Tensor:
    """Return what a loop over the neuron's step passes on, with the graph of every step."""
    neuron, c, first = cells.neuron, cells.constants(), next(iter(into.values()))
    x, passed, train = neuron.begin(first[:, 0]), torch.zeros_like(first[:, 0]), []
    for index in range(cells.steps):
        now = {port: values[:, index] for port, values in into.items()}
        x, passed = step(neuron, c, x, passed, now)
        train.append(passed)
    return torch.stack(train, 1)


def result(
    cells: Population,
    into: Mapping[str, Tensor],
    recurrent: nn.Module | None = None,
    loop: bool = False,
) -> Result:
    """Return what is passed on and the gradients, by port and by learned field."""
    leaves = {port: values.clone().requires_grad_() for port, values in into.items()}
    factors = {f"trainable.{name}": values for name, values in cells.factors.items()}
    passed = looped(cells, leaves) if loop else cells(_given(leaves), recurrent)
    weights = torch.randn(passed.shape, generator=generator(0, "weights")).to(passed)
    asked = leaves | factors
    found = torch.autograd.grad((passed * weights).sum(), [*asked.values()], allow_unused=True)
    blank = {name: torch.zeros_like(values) for name, values in asked.items()}
    gradients = {n: blank[n] if g is None else g for n, g in zip(asked, found, strict=True)}
    return passed.detach(), gradients


def learning(neuron: Neuron) -> Neuron:
    """Return the neuron with every field learned that can be."""
    names = [name for name in per_neuron(neuron) if getattr(neuron, name)]
    return dataclasses.replace(neuron, trainable=dict.fromkeys(names, (0.3, 4.0)))


def described(neuron: Neuron) -> Iterator[str]:
    """Yield what the neuron says wrongly of itself."""
    kind = type(neuron)
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield "is no frozen dataclass"
    if not neuron.ports or not neuron.variables:
        yield "has no port, or no variable"
    if not neuron.spiking:
        blank = torch.zeros(1, 1, dtype=torch.float64)
        rest = neuron.passed(neuron.begin(blank), constants_of(neuron, DT_MS, {}), Functions)
        if rest.any():
            yield f"passes on {rest.item():g} at rest, where a trial begins: it must be 0"
    names = (*neuron.ports, *neuron.variables, *vars(constants_of(neuron, DT_MS, {})))
    for name in names:
        if not name.isidentifier() or names.count(name) > 1:
            yield f"{name!r} names a port, a variable and a constant, or is no name"


def simulated(neuron: Neuron, into: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield where a simulator differs from the loop."""
    for one in (neuron, learning(neuron)):
        expected = result(population(one, "torch"), into, loop=True)
        for simulator in SIMULATORS:
            cells = attempt(one, simulator)
            if isinstance(cells, Population):
                yield from compared(simulator, result(cells, into), expected, neuron.spiking)
                if len(neuron.ports) == 1:
                    yield from _fed_back(one, simulator, into)
            elif simulator == "torch" or "\n" in cells:
                yield f"{simulator} refuses it: {cells}"


def attempt(neuron: Neuron, simulator: Simulator) -> Population | str:
    """Return a population, or the line with which a simulator refuses it."""
    try:
        return population(neuron, simulator)
    except CapabilityError as error:
        return str(error)


def compared(where: str, found: Result, expected: Result, spiking: bool) -> Iterator[str]:
    """Yield the differences between two simulations."""
    gap = float((found[0] - expected[0]).abs().max())
    if gap > SAME[spiking]:
        count = int((found[0] != expected[0]).sum())
        yield f"{where}: {count} of {found[0].numel()} values differ, by up to {gap:.1e}"
    for name, gradient in expected[1].items():
        error = float((found[1][name] - gradient).abs().max())
        if error > CLOSE * max(1.0, float(gradient.abs().max())):
            yield f"{where}: the gradient by {name} is off by {error:.1e}"


def _fed_back(neuron: Neuron, simulator: Simulator, into: Mapping[str, Tensor]) -> Iterator[str]:
    loop = nn.Linear(UNITS, UNITS, bias=False).double()
    with torch.no_grad():
        loop.weight.copy_(torch.randn(UNITS, UNITS, generator=generator(0, "loop")).double())
        loop.weight.mul_(0.3 * next(iter(into.values())).std())
    found, expected = (
        result(population(neuron, name), into, loop) for name in (simulator, SIMULATORS[0])
    )
    yield from compared(f"{simulator}, recurrent", found, expected, neuron.spiking)


def other_values(neuron: Neuron) -> dict[str, Any]:
    """Return another legal value for each field; ``kind`` is not data."""
    hints = typing.get_type_hints(type(neuron), include_extras=True)
    found = {
        field.name: _other(field.name, hints[field.name], getattr(neuron, field.name))
        for field in dataclasses.fields(neuron)
        if field.name not in ("kind", "trainable")
    }
    learned = learning(neuron).trainable
    return found | ({"trainable": learned} if learned else {})


def _other(name: str, hint: Any, now: Any) -> Any:
    """Return another value of a field."""
    if name == "surrogate":
        return next(word for word in SURROGATES if word != now)
    if typing.get_origin(hint) is Literal:
        return next(word for word in typing.get_args(hint) if word != now)
    if isinstance(now, bool):
        return not now
    if isinstance(now, float | int):
        most = [
            limit.high for limit in getattr(hint, "__metadata__", ()) if isinstance(limit, Range)
        ]
        kind: type[int | float] = int if isinstance(now, int) else float
        return kind(min([1.7 * now if now else 4 * DT_MS, *most]))
    raise CheckFailed(f"field {name}: no other value is known for {now!r}")


def fields(
    neuron: Neuron, into: Mapping[str, Tensor], simulators: Sequence[Simulator] = SIMULATORS
) -> Iterator[str]:
    """Yield the fields that a simulator ignores."""
    for simulator in simulators:
        cells = attempt(neuron, simulator)
        if not isinstance(cells, Population):
            continue
        before = result(cells, into)
        for name, value in other_values(neuron).items():
            changed = attempt(dataclasses.replace(neuron, **{name: value}), simulator)
            if isinstance(changed, str):
                if name not in changed:
                    yield f"{simulator} refuses {name} = {value!r} without its name: {changed}"
            elif _alike(before, result(changed, into)):
                yield f"{simulator} ignores {name} = {value!r}"
        yield from _spread(neuron, simulator, before, into)


def _alike(one: Result, other: Result) -> bool:
    same = one[1].keys() == other[1].keys() and torch.equal(one[0], other[0])
    return same and all(torch.equal(values, other[1][name]) for name, values in one[1].items())


def _spread(
    neuron: Neuron, simulator: Simulator, before: Result, into: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yield the fields whose list, or draw, is not what each of the neurons has."""
    for name in per_neuron(neuron):
        now = getattr(neuron, name)
        if not isinstance(now, float):
            continue
        other = other_values(neuron)[name]
        each = tuple(now if unit % 2 else other for unit in range(UNITS))
        tried: tuple[Any, ...] = (each, f"uniform({other}, {other * 1.5})")
        for given in tried:
            cells = attempt(dataclasses.replace(neuron, **{name: given}), simulator)
            if isinstance(cells, str):
                if name not in cells:
                    yield f"{simulator} refuses {name} = {given!r} without its name: {cells}"
                continue
            found = result(cells, into)
            yield from compared(
                f"{simulator}, {name} = {given!r}",
                found,
                result(cells, into, loop=True),
                neuron.spiking,
            )
            if _alike(before, found):
                yield f"{simulator} ignores {name} = {given!r}"


def kept(neuron: Neuron, into: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what a copy, a pickle, a saved state or another dtype changes."""
    cells = population(learning(neuron), "torch")
    expected, twin = cells(_given(into)), Population(learning(neuron), UNITS, STEPS, DT_MS).double()
    twin.load_state_dict(cells.state_dict())
    copies = {"a copy": copy.deepcopy(cells), "a pickle": pickle.loads(pickle.dumps(cells))}
    for name, other in (copies | {"a loaded state": twin}).items():
        if not torch.equal(other(_given(into)), expected):
            yield f"{name} simulates something else"
    single = {port: values.float().requires_grad_() for port, values in into.items()}
    passed = cells.float()(_given(single))
    passed.sum().backward()
    if passed.dtype != torch.float32 or not passed.isfinite().all():
        yield f"a current in float32 becomes {passed.dtype}, or is not finite"


def _given(into: Mapping[str, Tensor]) -> Any:
    return next(iter(into.values())) if len(into) == 1 else into
