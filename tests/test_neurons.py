"""Neurons: every one in the registry is the same on every simulator, and every field counts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.contracts import Transport
from biograd.engine import Outside
from biograd.errors import CapabilityError, CheckFailed, RecipeError
from biograd.estimators import make
from biograd.neurons import (
    NEURONS,
    AdaptiveCurrent,
    AdaptiveThreshold,
    AlphaSynapse,
    Leaky,
    LeakyIntegrator,
    Neuron,
    Rate,
)
from biograd.neurons import neuron as neurons
from biograd.neurons.coefficients import coefficients
from biograd.neurons.neuron import State, constants_of
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe, construct
from biograd.simulators.population import Population, Simulator
from biograd.testing import check_neuron
from biograd.testing import neurons as checks

SIMULATORS: tuple[Simulator, ...] = ("torch", "snntorch", "brian2")
STEPPED = [name for name in NEURONS if name != "event_driven"]
VARIANTS: dict[str, Neuron] = {name: NEURONS[name]() for name in STEPPED} | {
    "leaky, zero": Leaky(reset="zero"),
    "leaky, filtered": Leaky(synaptic_time_constant_ms=4.0),
    "leaky, filtered, zero": Leaky(synaptic_time_constant_ms=4.0, reset="zero"),
    "leaky, refractory": Leaky(refractory_ms=3.0),
    "alpha, refractory, zero": AlphaSynapse(refractory_ms=3.0, reset="zero"),
    "adaptive_threshold, filtered": AdaptiveThreshold(synaptic_time_constant_ms=4.0),
    "adaptive_threshold, refractory": AdaptiveThreshold(refractory_ms=2.0),
    "adaptive_current, subtract": AdaptiveCurrent(reset="subtract"),
    "integrator, filtered": LeakyIntegrator(synaptic_time_constant_ms=4.0),
    "rate, tanh, slow": Rate("tanh", 5.0),
    "rate, sigmoid": Rate("sigmoid"),
    "rate, gelu, slow": Rate("gelu", 5.0),
}
"""Each neuron with its defaults, and the ways in which its equations branch."""


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling."""
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


def draw(*shape: int, name: str = "draw") -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


# Every neuron -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_simulators_are_the_loop(name: str) -> None:
    """Spikes, and gradients by currents and by every field that is learned; dtypes, copies."""
    neuron = VARIANTS[name]
    into = checks.drive(neuron)
    assert into is not None
    assert not [*checks.described(neuron), *checks.simulated(neuron, into)]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_field_is_obeyed_or_refused(name: str, simulator: Simulator) -> None:
    """As one value, as a list, as a draw and as what is learned."""
    neuron = VARIANTS[name]
    tried = {*checks.other_values(neuron), "kind"}
    if not any(getattr(neuron, field) for field in checks.per_neuron(neuron)):
        tried.add("trainable")
    assert tried == {field.name for field in dataclasses.fields(neuron)}
    assert not [*checks.fields(neuron, checks.drive(neuron), (simulator,))]


@pytest.mark.parametrize("name", VARIANTS)
def test_copies_states_and_dtypes(name: str) -> None:
    assert not [*checks.kept(VARIANTS[name], checks.drive(VARIANTS[name]))]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED)
def test_the_public_check_passes(name: str) -> None:
    check_neuron(NEURONS[name])


REFUSED = {
    ("leaky, filtered, zero", "snntorch"): "Synaptic also resets",
    ("leaky, refractory", "snntorch"): r"neuron\.refractory_ms",
    ("alpha", "snntorch"): "AlphaSynapse: snnTorch has no such neuron",
    ("alpha, refractory, zero", "snntorch"): "AlphaSynapse: snnTorch has no such neuron",
    ("adaptive_threshold, refractory", "snntorch"): r"neuron\.refractory_ms",
    ("adaptive_current", "snntorch"): "AdaptiveCurrent: snnTorch has no such neuron",
    ("adaptive_current, subtract", "snntorch"): "AdaptiveCurrent: snnTorch has no such neuron",
    ("rate", "snntorch"): "Rate: snnTorch has no such neuron",
    ("rate, tanh, slow", "snntorch"): "Rate: snnTorch has no such neuron",
    ("rate, sigmoid", "snntorch"): "Rate: snnTorch has no such neuron",
    ("rate, gelu, slow", "snntorch"): "Rate: snnTorch has no such neuron",
    ("rate, gelu, slow", "brian2"): "Brian2 has no error function",
}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_simulator_lacks_is_known(name: str, simulator: Simulator) -> None:
    """So that a neuron is not refused by mistake."""
    if (name, simulator) not in REFUSED:
        assert isinstance(checks.attempt(VARIANTS[name], simulator), Population)
        return
    with pytest.raises(CapabilityError, match=REFUSED[name, simulator]) as refused:
        Population(VARIANTS[name], 3, 10, 1.0, simulator)
    assert "\n" not in str(refused.value)


def test_event_driven_neurons_have_no_steps() -> None:
    for simulator in SIMULATORS:
        with pytest.raises(CapabilityError, match=r"neuron\.kind = 'event_driven'"):
            Population(NEURONS["event_driven"](), 3, 10, 1.0, simulator)


EVENTS = {
    "time_constant_ms": 7.0,
    "synaptic_time_constant_ms": 3.0,
    "resistance": 7.0,
    "threshold": 0.8,
}


def test_every_field_of_event_driven_neurons_is_obeyed_or_refused() -> None:
    fields = {field.name for field in dataclasses.fields(NEURONS["event_driven"])}
    assert fields == {*EVENTS, "kind", "trainable"}
    inputs, found = torch.rand(4, 6, generator=generator(0)).double(), []
    for changes in ({}, *({name: value} for name, value in EVENTS.items())):
        table = {
            "network": {"kind": "spiking", "hidden": [8], "dtype": "float64", "gain": 2.0},
            "neuron": {"kind": "event_driven", "resistance": 8.0, **changes},
            "encoding": {"kind": "latency"},
        }
        network = biograd.build(construct(ModelRecipe, table, "test"), 6, 3)
        found.append(network(inputs))
        assert network.activity(inputs)["blocks.0.raster"].any()
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(one, other)
    table["neuron"] = {"kind": "event_driven", "trainable": {"threshold": [0.5, 2.0]}}
    with pytest.raises(RecipeError, match=r"neuron\.trainable"):
        biograd.build(construct(ModelRecipe, table, "test"), 6, 3)


# What is wrong is noticed -------------------------------------------------------------------------


class Deaf(Leaky):
    """A constant is dropped: the resistance does nothing."""

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        found = super().constants(p, dt, f)
        return found | {"gain": 1 - found["beta"]}


class Other(Leaky):
    """Brian2 and torch simulate it; snnTorch with another decay."""

    def snntorch(self, c: Any, derivative: Any) -> Any:
        step = super().snntorch(c, derivative)
        return lambda x, s, i, c: step(x, s, i, SimpleNamespace(**vars(c) | {"beta": 0.9}))


class Curved(Leaky):
    """Linear where linearity is tested, and nowhere else: below 1."""

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        new = super().advance(x, fired, held, into, c, f)
        if isinstance(new.v, Tensor):
            return new._replace(v=torch.where(new.v > 0.5, new.v * new.v + 0.25, new.v))
        return new


class Silent(Leaky):
    """It never spikes."""

    def passed(self, x: State, c: Any, f: Any) -> Any:
        return x.v * 0 - c.threshold


class Hungry(Leaky):
    """It takes from the current that it is given."""

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        if isinstance(into.I, Tensor):
            into.I.mul_(0.9)
        return super().advance(x, fired, held, into, c, f)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Hungry, "changes what it is given in place"),
        (Deaf, "torch ignores resistance = 1.7"),
        (Other, "snntorch: .* values differ"),
        (Curved, "torch: .* values differ"),
        (Silent, "no current makes it"),
    ],
)
def test_a_broken_neuron_is_named(broken: type[Neuron], words: str) -> None:
    with pytest.raises(CheckFailed, match=f"{broken.__name__}: {words}") as refused:
        check_neuron(broken)
    assert "\n" not in str(refused.value)


# Neurons of one's own -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Echo(Neuron):
    """A graded neuron that receives what it passed on: its own loop."""

    leak: neurons.PerNeuron = 0.5
    echo: neurons.PerNeuron = 0.25

    name: ClassVar[str] = "echo"
    spiking: ClassVar[bool] = False

    @property
    def variables(self) -> tuple[str, ...]:
        return ("h",)

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        return {"leak": p.leak, "echo": p.echo}

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        return x._replace(h=c.leak * x.h + c.echo * fired + into.I)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        return x.h


@dataclasses.dataclass(frozen=True)
class Quadratic(Leaky):
    """``v`` grows by its square: not linear, and a power in Brian2."""

    name: ClassVar[str] = "quadratic"
    snntorch = Neuron.snntorch

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        new = super().advance(x, fired, held, into, c, f)
        return new._replace(v=new.v + 0.05 * x.v**2)


@dataclasses.dataclass(frozen=True)
class TwoPorts(Leaky):
    """A leaky neuron with a port whose current is divided by two."""

    name: ClassVar[str] = "two_ports"
    ports: ClassVar[tuple[str, ...]] = ("I", "half")
    snntorch = Neuron.snntorch

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        one = SimpleNamespace(I=into.I + into.half / 2)
        return super().advance(x, fired, held, one, c, f)


@pytest.mark.parametrize("kind", [Echo, Quadratic, TwoPorts])
def test_a_neuron_of_ones_own_passes(kind: type[Neuron]) -> None:
    """One class, with a module's name before its types, a power, a loop, two ports."""
    made = kind()
    into = checks.drive(made)
    assert not [*checks.described(made), *checks.simulated(made, into)]
    assert not [*checks.fields(made, into), *checks.kept(made, into)]
    assert (coefficients(made, constants_of(made, 1.0, {})) is None) is (kind is not TwoPorts)


class Rectified(Leaky):
    """Its potential has a floor: linear in pieces, without any function."""

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        new = super().advance(x, fired, held, into, c, f)
        return new._replace(v=new.v * (new.v > -20))


def test_what_is_linear_in_pieces_is_not_linear() -> None:
    neuron = Rectified()
    assert coefficients(neuron, constants_of(neuron, 1.0, {})) is None
    drive = torch.full((1, 1, 3), -1e3, dtype=torch.float64, requires_grad=True)
    assert not Population(neuron, 3, 40, 1.0)(drive).any()


def test_a_kind_that_it_is_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="Leaky: kind = 'alpha': it is 'leaky'"):
        Leaky(kind="alpha")
    assert Leaky(kind="leaky") == Leaky() and AlphaSynapse().kind == "alpha"


# What differs between neurons, and what is learned ------------------------------------------------


def learned(neuron: Neuron, bounds: tuple[float, float] = (0.2, 5.0)) -> Neuron:
    names = checks.learning(neuron).trainable
    return dataclasses.replace(neuron, trainable=dict.fromkeys(names, bounds))


LEARNS = [name for name in VARIANTS if checks.learning(VARIANTS[name]).trainable]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", LEARNS)
def test_what_is_frozen_at_its_start_is_what_is_fixed(name: str, simulator: Simulator) -> None:
    """Bit for bit where the initial factor gives the value itself; bounds are respected."""
    neuron = VARIANTS[name]
    if (name, simulator) in REFUSED:
        return
    into = checks.drive(neuron)
    fixed = Population(neuron, 6, 40, 1.0, simulator).double()
    cells = Population(learned(neuron, (0.3, 4.5)), 6, 40, 1.0, simulator).double()
    with torch.no_grad():
        assert torch.equal(cells(into["I"]), fixed(into["I"]))
        for field, factors in cells.factors.items():
            start = getattr(neuron, field)
            assert torch.equal(cells.learned()[field], torch.full((6,), start, dtype=torch.float64))
            for end, value in ((-1e3, 0.3 * start), (1e3, 4.5 * start)):
                factors.fill_(end)
                assert (cells.learned()[field] - value).abs().max() < 1e-12 * value


STARTS = {"v": 1.0, "u": 1.0, "g": 1.0, "h": 1.0, "w": 1.0}


@pytest.mark.parametrize("name", [name for name in LEARNS if "refractory" not in name])
def test_learned_fields_have_the_gradient_of_finite_differences(name: str) -> None:
    """Of a smooth reading of all variables, in neurons that do not spike."""
    neuron = learned(VARIANTS[name])
    if neuron.spiking:
        neuron = dataclasses.replace(neuron, threshold=1e9)  # type: ignore[call-arg]
    cells = Population(neuron, 5, 20, 1.0).double()
    current, weights = 2 * draw(3, 20, 5, name="I"), draw(20, 5, name="weights")

    def reading() -> Tensor:
        state, total = cells.begin(current), torch.zeros((), dtype=torch.float64)
        for step in range(20):
            state, _ = cells.advance(state, current[:, step], None, True)
            variables = state[: len(neuron.variables)]
            total = total + sum((weights[step] * torch.sin(x)).sum() for x in variables)
        cells.end()
        return total

    found = torch.autograd.grad(reading(), [*cells.factors.values()], allow_unused=True)
    seen = 0
    for factors, gradient in zip(cells.factors.values(), found, strict=True):
        for place in range(5) if gradient is not None else ():
            ends = []
            for move in (1e-5, -1e-5):
                with torch.no_grad():
                    factors[place] += move
                    ends.append(float(reading()))
                    factors[place] -= move
            expected = (ends[0] - ends[1]) / 2e-5
            seen += abs(expected) > 1e-3
            assert abs(float(gradient[place]) - expected) < 1e-7 * max(1, abs(expected))
    assert seen >= 5


@pytest.mark.parametrize("text", ["uniform(5, 20)", "normal(10, 1)", "gamma(9, 1)"])
def test_draws_are_those_of_their_distribution_and_repeat(text: str) -> None:
    one, again, other = (
        Population(Leaky(time_constant_ms=text), 4000, 5, 1.0, stream=stream)
        for stream in ("a", "a", "b")
    )
    first, same, third = (cells.values()["time_constant_ms"] for cells in (one, again, other))
    assert torch.equal(first, same) and not torch.equal(first, third)
    mean = {"u": 12.5, "n": 10.0, "g": 9.0}[text[0]]
    deviation = {"u": 15 / math.sqrt(12), "n": 1.0, "g": 3.0}[text[0]]
    assert abs(float(first.mean()) - mean) < 4 * deviation / math.sqrt(4000)
    assert abs(float(first.std()) - deviation) < 0.1 * deviation


BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"time_constant_ms": [5.0, 6.0]}, r"neuron\.time_constant_ms: 2 values for 5 neurons"),
    ({"time_constant_ms": [5.0] * 4 + [-1.0]}, r"neuron\.time_constant_ms.*must be > 0"),
    ({"time_constant_ms": 0.0}, r"neuron\.time_constant_ms = 0\.0: must be > 0"),
    ({"time_constant_ms": "uniform(5)"}, r"neuron\.time_constant_ms = 'uniform\(5\)': a number"),
    ({"time_constant_ms": "beta(1, 2)"}, r"neuron\.time_constant_ms = 'beta\(1, 2\)': a number"),
    ({"time_constant_ms": "normal(a, 2)"}, r"'normal\(a, 2\)': its arguments must be"),
    ({"time_constant_ms": "normal(-9, 1)"}, r"'normal\(-9, 1\)': it draws -.*out of range"),
    ({"time_constant_ms": "uniform(9, 5)"}, r"uniform\(9, 5\) is no distribution"),
    ({"time_constant_ms": "gamma(-1, 5)"}, r"gamma\(-1, 5\) is no distribution"),
    ({"time_constant_ms": "uniform(nan, 5)"}, r"neuron\.time_constant_ms"),
    ({"trainable": {"tau": [0.5, 2.0]}}, r"neuron\.trainable\.tau: cannot be learned"),
    ({"trainable": {"reset": [0.5, 2.0]}}, r"neuron\.trainable\.reset: cannot be learned"),
    ({"trainable": {"refractory_ms": [0.5, 2.0]}}, r"refractory_ms: cannot be learned"),
    ({"trainable": {"threshold": [2.0, 3.0]}}, r"neuron\.trainable\.threshold = \[2\.0, 3\.0\]"),
    ({"trainable": {"threshold": [0.5]}}, r"neuron\.trainable\.threshold = \[0\.5\]: two"),
    ({"trainable": {"threshold": [1e-9, 1e9]}}, r"neuron\.trainable\.threshold.*apart"),
    ({"trainable": {"synaptic_time_constant_ms": [0.5, 2.0]}}, "zero stays zero"),
    ({"surrogate": "gausian"}, r"neuron\.surrogate = 'gausian': did you mean 'gaussian'"),
    ({"kind": "leeky"}, r"neuron\.kind = 'leeky': did you mean 'leaky'"),
    ({"coupling": 1.0}, r"unknown key neuron\.coupling"),
]


@pytest.mark.parametrize(("table", "words"), BAD, ids=[str(one[0]) for one in BAD])
def test_what_no_neuron_has_is_refused(table: Mapping[str, Any], words: str) -> None:
    network = {"kind": "spiking", "hidden": [5]}
    with pytest.raises(RecipeError, match=words) as refused:
        biograd.build(construct(ModelRecipe, {"network": network, "neuron": table}, "recipe"), 4, 3)
    assert "\n" not in str(refused.value)


# Equations ----------------------------------------------------------------------------------------


def course(neuron: Neuron, current: Tensor) -> dict[str, Tensor]:
    """Return every variable ``[rows, T, U]``, step by step."""
    _, steps, units = current.shape
    cells = Population(neuron, units, steps, 1.0).double()
    state, found = cells.begin(current), []
    for step in range(steps):
        state, passed = cells.advance(state, current[:, step], None, True)
        found.append(torch.stack((*state[: len(neuron.variables)], passed)))
    cells.end()
    return dict(zip((*neuron.variables, "passed"), torch.stack(found, 2), strict=True))


def impulse(steps: int) -> Tensor:
    current = torch.zeros(1, steps, 1, dtype=torch.float64)
    current[0, 0] = 1.0
    return current


def test_the_alpha_synapse_answers_an_impulse_with_an_alpha_function() -> None:
    """``(1 - r)(1 - a) (a^(n+1) - r^(n+1)) / (a - r)``, and ``(n + 1) a^n (1 - a)^2`` for one."""
    step = torch.arange(50, dtype=torch.float64)
    decay, rise = math.exp(-1 / 5), math.exp(-1 / 2)
    silent = {"threshold": 1e6}
    found = course(AlphaSynapse(rise_time_constant_ms=2.0, **silent), impulse(50))["g"]  # type: ignore[arg-type]
    unequal = (decay ** (step + 1) - rise ** (step + 1)) / (decay - rise)
    assert (found.flatten() - (1 - rise) * (1 - decay) * unequal).abs().max() < 1e-14
    found = course(AlphaSynapse(**silent), impulse(50))["g"]  # type: ignore[arg-type]
    assert (found.flatten() - (step + 1) * decay**step * (1 - decay) ** 2).abs().max() < 1e-14


def test_the_integrator_answers_an_impulse() -> None:
    step, beta = torch.arange(50, dtype=torch.float64), math.exp(-1 / 10)
    found = course(LeakyIntegrator(resistance=3.0), impulse(50))["passed"].flatten()
    assert (found - 3 * (1 - beta) * beta**step).abs().max() < 1e-14


@pytest.mark.parametrize("refractory", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("simulator", ["torch", "brian2"])
def test_the_refractory_time_counts_steps(simulator: Simulator, refractory: float) -> None:
    """A strong current: a spike, ``refractory`` steps without, and the next."""
    neuron = Leaky(resistance=1e3, reset="zero", refractory_ms=refractory)
    cells = Population(neuron, 2, 40, 1.0, simulator).double()
    times = cells(torch.ones(1, 40, 2).double())[0, :, 0].nonzero().flatten()
    assert times[0] == 0 and (times.diff() == refractory + 1).all()


def test_a_current_in_the_refractory_time_is_lost() -> None:
    neuron, current = Leaky(resistance=1e3, refractory_ms=3.0), torch.zeros(1, 8, 2).double()
    current[:, 0], current[0, 2, 1] = 0.011, 5.0
    found = course(neuron, current)
    assert found["passed"][0, 0].all() and not found["passed"][0, 1:].any()
    assert torch.equal(found["v"][..., 0], found["v"][..., 1])


def by_hand(
    neuron: AdaptiveThreshold, current: Tensor, credit: bool = True, held: bool = True
) -> tuple[Tensor, Tensor]:
    """Return spikes and the gradient of their weighted sum, written out.

    Args:
        credit: whether it passes through the spike in the adaptation.
        held: whether none passes through the reset.
    """
    beta, rho = math.exp(-1 / neuron.time_constant_ms), math.exp(-1 / 100)  # type: ignore[operator]
    rows, steps, units = current.shape
    v, a, s = torch.zeros(3, steps, rows, units, dtype=torch.float64)
    for t in range(steps):
        before = (v[t - 1], a[t - 1], s[t - 1]) if t else (v[0], a[0], s[0])
        v[t] = beta * before[0] + (1 - beta) * current[:, t] - before[2]
        a[t] = rho * before[1] + before[2]
        s[t] = (v[t] > 1 + neuron.jump * a[t]).double()
    slope = (1 + 10 * (v - 1 - neuron.jump * a).abs()) ** -2
    weights = draw(rows, steps, units, name="weights")
    by_v, by_a = torch.zeros(2, rows, units, dtype=torch.float64)
    gradient = torch.zeros_like(current)
    for t in reversed(range(steps)):
        by_s = weights[:, t] + credit * by_a - (not held) * by_v
        by_v = beta * by_v + slope[t] * by_s
        by_a = rho * by_a - neuron.jump * slope[t] * by_s
        gradient[:, t] = (1 - beta) * by_v
    return s.transpose(0, 1), gradient


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_adaptation_carries_credit_and_the_reset_none(simulator: Simulator) -> None:
    neuron, current = AdaptiveThreshold(), 3 + 6 * draw(3, 60, 5, name="I")
    cells, leaf = Population(neuron, 5, 60, 1.0, simulator).double(), current.clone()
    found = cells(leaf.requires_grad_())
    (gradient,) = torch.autograd.grad((found * draw(3, 60, 5, name="weights")).sum(), leaf)
    spikes, expected = by_hand(neuron, current)
    assert torch.equal(found, spikes) and 0.05 < spikes.mean() < 0.7
    assert (gradient - expected).abs().max() < 1e-12
    for wrong in ((False, True), (True, False)):
        assert (by_hand(neuron, current, *wrong)[1] - expected).abs().max() > 1e-3


class Swapped(AdaptiveThreshold):
    """Held and fired are swapped."""

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        return super().advance(x, held, fired, into, c, f)


def test_swapped_credit_is_noticed() -> None:
    current = (3 + 6 * draw(3, 60, 5, name="I")).requires_grad_()
    found = Population(Swapped(), 5, 60, 1.0).double()(current)
    (gradient,) = torch.autograd.grad((found * draw(3, 60, 5, name="weights")).sum(), current)
    spikes, expected = by_hand(AdaptiveThreshold(), current.detach())
    assert torch.equal(found, spikes) and (gradient - expected).abs().max() > 1e-3


OSCILLATES = {10.0: 12.87, 60.0: 31.83, 120.0: 45.13, 282.0: 69.54, 800.0: 118.97}
"""Coupling to frequency in Hz, of time constants 25 and 60 ms (semi-implicit step)."""


def ringing(coupling: float) -> AdaptiveCurrent:
    return AdaptiveCurrent(
        time_constant_ms=25.0,
        adaptation_time_constant_ms=60.0,
        threshold=1e9,
        coupling=coupling,
    )


@pytest.mark.parametrize("coupling", OSCILLATES)
def test_subthreshold_oscillations(coupling: float) -> None:
    """Decay ``sqrt(alpha beta)`` a step whatever the coupling, and the impulse's closed form.

    ``x[n] = M^n x[0]`` with trace ``tr`` and determinant ``alpha beta`` of M is
    ``u[n] = r^n (u[0] cos n phi + c sin n phi)``, ``cos phi = tr / (2 r)``.
    """
    alpha, beta, a = math.exp(-1 / 25), math.exp(-1 / 60), coupling
    found = course(ringing(coupling), impulse(120))["u"].flatten()
    radius = math.sqrt(alpha * beta)
    trace = alpha + beta - a * (1 - alpha) * (1 - beta)
    angle = math.acos(trace / (2 * radius))
    assert abs(radius - 0.9721) < 1e-4
    assert abs(1000 * angle / (2 * math.pi) - OSCILLATES[coupling]) < 0.01
    step = torch.arange(120, dtype=torch.float64)
    start, second = 1 - alpha, (alpha - a * (1 - alpha) * (1 - beta)) * (1 - alpha)
    sine = (second / radius - start * math.cos(angle)) / math.sin(angle)
    expected = radius**step * (start * torch.cos(angle * step) + sine * torch.sin(angle * step))
    assert (found - expected).abs().max() < 1e-12


def test_the_explicit_step_would_diverge() -> None:
    """The control: with the old potential in the adaptation, coupling 120 grows, as it must not."""

    class Explicit(AdaptiveCurrent):
        def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
            new = super().advance(x, fired, held, into, c, f)
            u = c.alpha * x.u + (1 - c.alpha) * (into.I - x.w)
            return new._replace(u=u)

    grown, held = (
        course(kind(**vars(ringing(120.0))), impulse(600))["u"].flatten()
        for kind in (Explicit, AdaptiveCurrent)
    )
    assert grown[-50:].abs().max() > 10 > 1e-3 > held[-50:].abs().max()


def test_no_coupling_of_the_published_ranges_diverges() -> None:
    """1000 draws: a from 0 to 120, tau from 5 to 25, tau_w from 60 to 300 ms."""
    draws = torch.rand(3, 1000, generator=generator(0, "ranges")).double()
    neuron = AdaptiveCurrent(
        time_constant_ms=tuple((5 + 20 * draws[0]).tolist()),
        adaptation_time_constant_ms=tuple((60 + 240 * draws[1]).tolist()),
        threshold=1e9,
        coupling=tuple((120 * draws[2]).tolist()),
    )
    found = course(neuron, impulse(400).expand(1, 400, 1000))["u"]
    assert found[:, -50:].abs().max() < found.abs().max() <= 1.0


def test_adaptation_makes_intervals_grow() -> None:
    for neuron in (
        AdaptiveCurrent(resistance=30.0, jump=2.0, coupling=0.0),
        AdaptiveThreshold(resistance=30.0),
    ):
        train = Population(neuron, 1, 300, 1.0).double()(torch.full((1, 300, 1), 0.2).double())
        gaps = train.flatten().nonzero().flatten().diff()
        assert gaps[-1] > gaps[0] and len(gaps) > 5


# Scans --------------------------------------------------------------------------------------------

LINEAR = [name for name in VARIANTS if "rate" not in name and "refractory" not in name]


@pytest.mark.parametrize("name", VARIANTS)
def test_coefficients_are_those_of_the_step(name: str) -> None:
    """The step at a random place, with and without a spike, is what the coefficients say."""
    neuron, count = VARIANTS[name], len(VARIANTS[name].variables)
    c = constants_of(neuron, 1.0, {})
    k = coefficients(neuron, c)
    assert (k is not None) is (name in LINEAR)
    if k is None:
        return
    x, current = draw(count, name="x").tolist(), 0.7
    for s in (0.0, 1.0):
        state = neurons.state_of(neuron.variables)(*x)
        new = neuron.advance(state, s, s, SimpleNamespace(I=current), c, None)
        for p, value in enumerate(new):
            linear = sum((k.A[p][q] + s * k.G[p][q]) * x[q] for q in range(count))
            jump = -c.threshold * s if getattr(neuron, "reset", "") == "subtract" else 0.0
            extra = value - (linear + k.J[p] * s + k.B[p][0] * current)
            drop = extra if abs(extra) > 1e-12 else 0.0  # what is held constant
            assert drop == 0.0 or (s and jump)
        silent = neuron.passed(neurons.state_of(neuron.variables)(*[0.0] * count), c, None)
        seen = neuron.passed(state, c, None) - silent
        assert abs(seen - sum(d * value for d, value in zip(k.d, x, strict=True))) < 1e-12


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("simulator", ["torch", "brian2"])
@pytest.mark.parametrize("name", STEPPED)
def test_the_forward_derivative_is_the_transpose(
    name: str, simulator: Simulator, window: int | None
) -> None:
    neuron = VARIANTS[name]
    cells = Population(learned(neuron), 6, 40, 1.0, simulator).double()
    cells.transport = Transport(window=window)
    current = checks.drive(neuron)["I"]
    leaf = current.clone().requires_grad_()
    along, weights = draw(4, 40, 6, name="along"), draw(4, 40, 6, name="weights")
    (gradient,) = torch.autograd.grad((cells(leaf) * weights).sum(), leaf)
    with forward_ad.dual_level(), torch.no_grad():
        moved = forward_ad.unpack_dual(cells(forward_ad.make_dual(current, along))).tangent
    one, other = float((gradient * along).sum()), float((moved * weights).sum())
    assert one and abs(one - other) < 1e-10 * max(1, abs(one))


@pytest.mark.parametrize("name", [name for name in STEPPED if name in LEARNS])
def test_learned_fields_have_a_forward_derivative(name: str) -> None:
    neuron = VARIANTS[name]
    cells, current = Population(learned(neuron), 6, 40, 1.0).double(), checks.drive(neuron)["I"]
    weights, alongs = draw(4, 40, 6, name="weights"), {}
    (cells(current) * weights).sum().backward()
    one = 0.0
    for field, factors in cells.factors.items():
        alongs[f"factors.{field}"] = draw(6, name=field)
        assert factors.grad is not None
        one += float((factors.grad * alongs[f"factors.{field}"]).sum())
    state = {n: p.detach() for n, p in cells.named_parameters()}
    with forward_ad.dual_level():
        dual = {n: forward_ad.make_dual(state[n], along) for n, along in alongs.items()}
        moved = forward_ad.unpack_dual(torch.func.functional_call(cells, dual, (current,))).tangent
    other = float((moved * weights).sum())
    assert one and abs(one - other) < 1e-10 * max(1, abs(one))


@pytest.mark.parametrize("window", [1, 7, 40])
@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", STEPPED)
def test_credit_is_cut_between_windows(name: str, simulator: Simulator, window: int) -> None:
    """Windows one by one, each from the detached state at the end of the one before."""
    neuron = VARIANTS[name]
    if (name, simulator) in REFUSED:
        return
    into, weights = checks.drive(neuron)["I"], draw(4, 40, 6, name="weights")
    cells = Population(learned(neuron), 6, 40, 1.0, simulator).double()
    cells.transport = Transport(window=window)
    leaf = into.clone().requires_grad_()
    leaves = [leaf, *cells.factors.values()]
    found = torch.autograd.grad((cells(leaf) * weights).sum(), leaves)
    other = Population(learned(neuron), 6, 40, 1.0).double()
    twin = into.clone().requires_grad_()
    state, train = other.begin(twin), []
    for step in range(40):
        if step and step % window == 0:
            state = tuple(values.detach() for values in state)
        state, passed = other.advance(state, twin[:, step], None, True)
        train.append(passed)
    total = (torch.stack(train, 1) * weights).sum()
    expected = torch.autograd.grad(total, [twin, *other.factors.values()])
    for one, two in zip(found, expected, strict=True):
        assert (one - two).abs().max() < 1e-10 * max(1, float(two.abs().max()))


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", STEPPED)
def test_states_are_handed_from_window_to_window(name: str, simulator: Simulator) -> None:
    """``slots``: what is passed on is the same, and what a window hands over carries credit."""
    neuron = VARIANTS[name]
    if (name, simulator) in REFUSED:
        return
    into, weights = checks.drive(neuron)["I"], draw(4, 40, 6, name="weights")
    cells = Population(neuron, 6, 40, 1.0, simulator).double()
    leaf = into.clone().requires_grad_()
    whole = cells(leaf)
    (expected,) = torch.autograd.grad((whole * weights).sum(), leaf)
    cells.transport, cells.handed = Transport(window=10, slots=True), []
    passed = cells(leaf)
    assert torch.equal(passed, whole) if neuron.spiking else (passed - whole).abs().max() < 1e-12
    assert len(cells.handed) == 3
    loss, credit = (passed * weights).sum(), torch.zeros_like(leaf)
    begun = [leaves for _, leaves in cells.handed]
    parts = torch.autograd.grad(loss, [leaf, *begun], retain_graph=True, allow_unused=True)
    credit, handed = parts[0], list(parts[1:])
    for place in (2, 1, 0):  # credit crosses the windows through what was handed over
        ended = cells.handed[place][0]
        if handed[place] is None or not ended.requires_grad:
            continue
        more = torch.autograd.grad(
            ended, [leaf, *begun[:place]], handed[place], retain_graph=True, allow_unused=True
        )
        credit = credit + more[0]
        for index, gradient in enumerate(more[1:]):
            if gradient is not None:
                handed[index] = gradient if handed[index] is None else handed[index] + gradient
    assert (credit - expected).abs().max() < 1e-10 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize("rule", ["ottt", "sltt", "eprop", "unitwise", "weak", "backprop"])
@pytest.mark.parametrize("name", STEPPED)
def test_rules_in_time_train_every_neuron(name: str, rule: str) -> None:
    """With constants that are learned; one block, so that exact rules are exact."""
    neuron = learned(VARIANTS[name])
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="spiking", hidden=(6,), gain=2.0, dtype="float64"),
        neuron=dataclasses.replace(neuron, **_strong(neuron)),
        encoding=EncodingRecipe(gain=3.0),
    )
    network = biograd.build(recipe, 6, 3)
    # weak credits sites alone and refuses learned constants that nobody credits
    outside: Outside = "freeze" if rule == "weak" else "refuse"
    engine = biograd.attach(network, make(rule), outside=outside)
    inputs = torch.rand(9, 6, generator=generator(0)).double()
    engine(inputs, torch.arange(9) % 3, torch.arange(9)).backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert found["blocks.0.synapse.weight"].any()
    if rule in ("eprop", "backprop"):
        network.zero_grad()
        nn.functional.cross_entropy(network(inputs), torch.arange(9) % 3).backward()
        for key, gradient in found.items():
            exact = network.get_parameter(key).grad
            assert exact is not None
            assert (gradient - exact).abs().max() < 1e-10 * max(1, float(exact.abs().max())), key


def _strong(neuron: Neuron) -> dict[str, Any]:
    return {"resistance": 8.0} if hasattr(neuron, "resistance") else {}
