"""Exact spike times and their derivatives, against the equations, differences and EventProp."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import (
    CLASSES,
    TrueCredit,
    autograd,
    batch,
    check_equal,
    check_one_over_b,
    check_silent_copies,
    gradients,
    record,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

import biograd
from biograd import experiment
from biograd.contracts import Objective, Plan, Transport
from biograd.decorrelation import Decorrelation
from biograd.engine import attach
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.events.spike_times import EventMembrane, arrivals, divided, respond
from biograd.networks import EventNetwork
from biograd.neurons import EventDriven, Leaky
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.tasks.classes import cross_entropy

Array = NDArray[np.float64]
TRIAL = 30.0
CONSTANTS = {"membrane slower": (10.0, 4.0), "synapse slower": (5.0, 12.0), "close": (10.0, 9.8)}
MEMBRANES = {
    name: EventMembrane(tau, synaptic, 1.6, 1.0, TRIAL)
    for name, (tau, synaptic) in CONSTANTS.items()
}
DRIVES = (-0.5, 0.0, 0.5, 2.0)
"""Constant currents; the threshold is reached without input above 1/1.6."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def inputs(rows: int = 3, units: int = 5, most: int = 2) -> Tensor:
    """Return input spike times; some fall behind the trial."""
    draw = torch.rand(rows, units, most, generator=generator(1, "times"), dtype=torch.float64)
    return 1.3 * TRIAL * draw


def answer(
    membrane: EventMembrane, times: Tensor, weight: Tensor, bias: Tensor, layer: Any = None
) -> Tensor:
    """Return the output spike times of a layer."""
    received, events = arrivals(membrane, times)
    currents = nn.functional.linear(received, weight, bias)
    return respond(membrane, *divided(currents, events), events)


def layer(drive: float, units: int = 6, fan_in: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return weights, of which some excite and some inhibit, and equal biases."""
    weight = 0.8 * normal(units, fan_in, seed=seed) + 0.8
    return weight, torch.full((units,), drive, dtype=torch.float64)


class Slow:
    """One neuron by superposition, written out: currents, potential and its slope at any time."""

    def __init__(
        self, membrane: EventMembrane, drive: float, arrivals: Array, weights: Array, spikes: Array
    ) -> None:
        self.membrane, self.drive = membrane, drive
        self.arrivals, self.weights, self.spikes = arrivals, weights, spikes

    def current(self, time: float) -> float:
        tau = self.membrane.synaptic
        past = self.arrivals < time
        constant = self.drive * (1 - math.exp(-time / tau))
        return constant + float(self.weights[past] @ np.exp(-(time - self.arrivals[past]) / tau))

    def potential(self, time: float) -> float:
        """The response to a current ``exp(-t / tau_s)`` is a difference of exponentials."""
        tau, synaptic = self.membrane.time_constant, self.membrane.synaptic

        def kernel(age: Array) -> Array:
            difference = np.exp(-age / tau) - np.exp(-age / synaptic)
            return self.membrane.resistance * synaptic / (tau - synaptic) * difference

        past = self.arrivals < time
        total = self.weights[past] @ kernel(time - self.arrivals[past])
        constant = self.membrane.resistance * (1 - math.exp(-time / tau))
        total += self.drive * (constant - kernel(np.array(time)))
        total -= (
            self.membrane.threshold * np.exp(-(time - self.spikes[self.spikes < time]) / tau).sum()
        )
        return float(total)

    def slope(self, time: float) -> float:
        """From the equation of the potential itself."""
        drive = self.membrane.resistance * self.current(time)
        return (drive - self.potential(time)) / self.membrane.time_constant


def check_spikes(neuron: Slow) -> None:
    """Every spike is a crossing from below, and there is no other crossing in the trial."""
    threshold = neuron.membrane.threshold
    assert (np.diff(neuron.spikes) > 0).all()
    for spike in neuron.spikes:
        assert abs(neuron.potential(spike) - threshold) < 1e-9
        assert neuron.slope(spike) > 0
    edges = np.concatenate([neuron.spikes, neuron.arrivals, [0.0, TRIAL]])
    grid = np.unique(np.concatenate([np.linspace(0, TRIAL, 1500), edges, edges - 1e-9]))
    for time in grid[grid >= 0]:
        assert neuron.potential(time) < threshold + 1e-7


def neurons(membrane: EventMembrane, drive: float) -> list[Slow]:
    """Return all neurons of a layer, with the spikes that were found."""
    times, (weight, bias) = inputs(), layer(drive)
    found = answer(membrane, times, weight, bias).numpy()
    made = []
    for row, unit in np.ndindex(found.shape[:2]):
        flat = times[row].flatten().numpy()
        weights = weight[unit].repeat_interleave(times.shape[2]).numpy()
        within = flat < TRIAL
        spikes = found[row, unit][found[row, unit] < TRIAL]
        made.append(Slow(membrane, drive, flat[within], weights[within], spikes))
    return made


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("name", MEMBRANES)
def test_all_crossings_are_spikes_and_no_others(name: str, drive: float) -> None:
    made = neurons(MEMBRANES[name], drive)
    assert sum(len(neuron.spikes) for neuron in made) > 5
    for neuron in made:
        check_spikes(neuron)


def test_a_missing_and_an_invented_spike_are_noticed() -> None:
    neuron = max(neurons(MEMBRANES["membrane slower"], 0.5), key=lambda made: len(made.spikes))
    whole = neuron.spikes
    for spikes in (whole[:-1], whole[1:], np.sort(np.append(whole, 0.7 * whole[0]))):
        neuron.spikes = spikes
        with pytest.raises(AssertionError):
            check_spikes(neuron)


def test_a_neuron_without_input_spikes_regularly() -> None:
    """Intervals are ``tau log(RI / (RI - threshold))`` once the current is up."""
    membrane = EventMembrane(10.0, 2.0, 8.0, 1.0, 200.0)
    blank = torch.zeros(1, 1, 0, dtype=torch.float64)
    drive = torch.tensor([[[0.3]]], dtype=torch.float64)
    times = respond(membrane, drive, blank, blank, blank[0])[0, 0]
    interval = 10 * math.log(2.4 / 1.4)
    late = times[times > 80]
    assert len(late) == 22 and (late.diff() - interval).abs().max() < 1e-10


@pytest.mark.parametrize("name", MEMBRANES)
def test_it_is_the_limit_of_short_steps(name: str) -> None:
    """The stepped neuron's spikes approach the exact ones as its steps get shorter."""
    tau, synaptic = CONSTANTS[name]
    times, (weight, bias) = inputs(rows=2, most=1), layer(0.5)
    errors = []
    for dt in (0.04, 0.01):
        neuron = Leaky(time_constant_ms=tau, synaptic_time_constant_ms=synaptic, resistance=1.6)
        steps = round(TRIAL / dt)
        # a spike of one step shall bring its whole weight, whatever the length of the step
        spikes = torch.zeros(2, steps + 1, 5, dtype=torch.float64)
        spikes.scatter_(1, (times.mT / dt).long().clamp(max=steps), 1)
        share = 1 - math.exp(-dt / synaptic)
        current = spikes[:, :steps] @ weight.T / share + bias
        stepped, _ = record(neuron, current, steps, dt)
        exact = answer(MEMBRANES[name], times, weight, bias)
        counts = (exact < TRIAL - 1).sum(-1)
        assert counts.sum() > 5
        error = 0.0
        for row, unit in itertools.product(range(2), range(6)):
            ends = (stepped[row, :, unit].nonzero().squeeze(1) + 1) * dt
            count = int(counts[row, unit])
            gap = (ends[:count] - exact[row, unit, :count]).abs()
            error = max(error, float(gap.max()) if count else 0.0)
        errors.append(error)
    assert errors[0] < 40 * 0.04
    assert errors[1] < 0.4 * errors[0]


def jacobian(function: Any, values: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, values)


def differences(function: Any, values: Tensor, step: float = 1e-5) -> Tensor:
    """Return central differences of fourth order."""
    columns = []
    for place in range(values.numel()):
        moved = []
        for size in (-2, -1, 1, 2):
            other = values.clone()
            other.view(-1)[place] += size * step
            moved.append(function(other))
        columns.append((moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step))
    return torch.stack(columns, -1).view(*columns[0].shape, *values.shape)


@pytest.mark.parametrize("drive", [0.0, 1.0])
@pytest.mark.parametrize("name", MEMBRANES)
def test_derivatives_are_those_of_the_spike_times(name: str, drive: float) -> None:
    """By weights, by the constant current and by the input spikes: to 1e-6 of differences."""
    membrane, times, (weight, bias) = MEMBRANES[name], inputs(rows=1), layer(drive, units=3)
    assert (answer(membrane, times, weight, bias) < TRIAL).sum() > 5
    functions = {
        "weight": (lambda values: answer(membrane, times, values, bias), weight),
        "bias": (lambda values: answer(membrane, times, weight, values), bias),
        "times": (lambda values: answer(membrane, values, weight, bias), times),
    }
    for function, values in functions.values():
        expected, found = differences(function, values), jacobian(function, values)
        assert found.abs().max() > 0.1
        assert ((found - expected).abs() / (1 + expected.abs())).max() < 1e-6


def test_two_layers_differentiate_as_one_function() -> None:
    membrane, times = MEMBRANES["membrane slower"], inputs(rows=2)
    (weight, bias), (above, offset) = layer(0.5), layer(0.25, units=3, fan_in=6, seed=4)

    def both(values: Tensor) -> Tensor:
        return answer(membrane, answer(membrane, times, values, bias), above, offset)

    assert (both(weight) < TRIAL).sum() > 5
    expected, found = differences(both, weight), jacobian(both, weight)
    assert ((found - expected).abs() / (1 + expected.abs())).max() < 1e-6


class Adjoint:
    """EventProp's adjoint variables of one layer, integrated backward from event to event.

    Written from the equations (Wunderlich & Pehle 2021), with a resistance and a constant current::

        tau dlv/dt' = -lv          tau_s dli/dt' = -li + R lv          (t' runs backward)
        at a spike:  lv <- lv + (threshold lv + W'(R lv - li, of the layer above) + dl/dt)
                              / (tau v')
        dL/dw = -tau_s li at the input spike      dL/dI = -integral of li
    """

    def __init__(self, membrane: EventMembrane, units: int) -> None:
        self.membrane, self.time = membrane, TRIAL
        self.potential, self.current, self.drive = (np.zeros(units) for _ in range(3))

    def back_to(self, time: float) -> None:
        tau, synaptic = self.membrane.time_constant, self.membrane.synaptic
        past = self.time - time
        slow, fast = math.exp(-past / tau), math.exp(-past / synaptic)
        share = self.membrane.resistance * tau / (tau - synaptic) * self.potential
        self.drive -= (self.current - share) * synaptic * (1 - fast) + share * tau * (1 - slow)
        self.current = (self.current - share) * fast + share * slow
        self.potential = self.potential * slow
        self.time = time

    def jump(self, unit: int, slope: float, arriving: float) -> None:
        """A spike of the layer itself; ``arriving``: the derivative of the loss by its time."""
        own = self.membrane.threshold * self.potential[unit]
        self.potential[unit] += (own + arriving) / (self.membrane.time_constant * slope)

    def by_weights(self) -> Array:
        return -self.membrane.synaptic * self.current

    def by_time(self, weights: Array) -> float:
        """The derivative of the loss by the time of an input spike."""
        difference = self.membrane.resistance * self.potential - self.current
        return float(weights @ difference)


def event_prop(
    membrane: EventMembrane, times: Array, layers: list[tuple[Array, float]], cotangent: Array
) -> tuple[list[Array], list[Array], Array]:
    """Return the gradients of ``sum(cotangent * output times)`` by weights, drives and inputs."""
    trains = [times]
    for weight, drive in layers:
        bias = torch.full((len(weight),), drive, dtype=torch.float64)
        now = torch.from_numpy(trains[-1])[None]
        trains.append(answer(membrane, now, torch.from_numpy(weight), bias)[0].numpy())
    events = [
        (time, depth, unit, place)
        for depth, train in enumerate(trains)
        for (unit, place), time in np.ndenumerate(train)
        if time < TRIAL
    ]
    adjoints = [Adjoint(membrane, len(weight)) for weight, _ in layers]
    by_weight = [np.zeros_like(weight) for weight, _ in layers]
    by_input = np.zeros_like(times)
    for time, depth, unit, place in sorted(events, reverse=True):
        for adjoint in adjoints:
            adjoint.back_to(time)
        arriving = cotangent[unit, place] if depth == len(layers) else 0.0
        if depth < len(layers):
            arriving = adjoints[depth].by_time(layers[depth][0][:, unit])
            by_weight[depth][:, unit] += adjoints[depth].by_weights()
        if not depth:
            by_input[unit, place] = arriving
            continue
        before, (weight, drive) = trains[depth - 1], layers[depth - 1]
        there = before < TRIAL
        weights = np.broadcast_to(weight[unit][:, None], before.shape)[there]
        spikes = trains[depth][unit]
        neuron = Slow(membrane, drive, before[there], weights, spikes[spikes < TRIAL])
        adjoints[depth - 1].jump(unit, neuron.slope(time), arriving)
    for adjoint in adjoints:
        adjoint.back_to(0.0)
    return by_weight, [adjoint.drive for adjoint in adjoints], by_input


def check_event_prop(membrane: EventMembrane) -> None:
    """Credit through two layers equals EventProp's."""
    times = inputs(rows=1)
    parts = [layer(0.5), layer(0.25, units=3, fan_in=6, seed=4)]
    leaves = [tensor.requires_grad_() for part in (*parts, (times,)) for tensor in part]
    found = times
    for weight, bias in parts:
        found = answer(membrane, found, weight, bias)
    cotangent = normal(*found.shape, seed=7)
    assert (found < TRIAL).sum() > 4 and found.shape[2] > 2
    credit = torch.autograd.grad((found * cotangent).sum(), leaves)
    layers = [(weight.detach().numpy(), float(bias[0].detach())) for weight, bias in parts]
    expected = event_prop(membrane, times[0].detach().numpy(), layers, cotangent[0].numpy())
    by_weight, by_drive, by_input = expected
    pairs = zip(
        credit, (by_weight[0], by_drive[0], by_weight[1], by_drive[1], by_input[None]), strict=True
    )
    for own, theirs in pairs:
        assert np.abs(theirs).max() > 1e-3
        assert np.abs(own.numpy() - theirs).max() < 1e-10 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize("name", MEMBRANES)
def test_credit_is_that_of_event_prop(name: str) -> None:
    check_event_prop(MEMBRANES[name])


@pytest.mark.parametrize("broken", ["reset", "slope", "delay"])
def test_a_broken_adjoint_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def jump(self: Adjoint, unit: int, slope: float, arriving: float) -> None:
        own = 0 if broken == "reset" else self.membrane.threshold * self.potential[unit]
        slope = abs(slope) + 0.01 if broken == "slope" else slope
        self.potential[unit] += (own + arriving) / (self.membrane.time_constant * slope)

    if broken == "delay":
        monkeypatch.setattr(Adjoint, "by_time", lambda self, weights: 0.0)
    else:
        monkeypatch.setattr(Adjoint, "jump", jump)
    with pytest.raises(AssertionError):
        check_event_prop(MEMBRANES["membrane slower"])


@pytest.mark.parametrize("name", MEMBRANES)
def test_forward_and_backward_derivatives_are_transposed(name: str) -> None:
    membrane, times, (weight, bias) = MEMBRANES[name], inputs(), layer(0.5)
    leaves = [part.requires_grad_() for part in (times, weight, bias)]
    found = answer(membrane, *leaves)
    cotangent, tangents = normal(*found.shape, seed=7), [normal(*v.shape, seed=8) for v in leaves]
    credit = torch.autograd.grad((found * cotangent).sum(), leaves)
    backward = sum((one * other).sum() for one, other in zip(credit, tangents, strict=True))
    with forward_ad.dual_level(), torch.no_grad():
        pairs = zip(leaves, tangents, strict=True)
        dual = answer(membrane, *(forward_ad.make_dual(v.detach(), t) for v, t in pairs))
        forward = (forward_ad.unpack_dual(dual).tangent * cotangent).sum()
    assert abs(float(forward - backward)) < 1e-11 * abs(float(backward))


def recipe(**changes: Any) -> ModelRecipe:
    """Return the recipe of a small event-driven network in double precision."""
    network = {"hidden": (5, 4), "kind": "spiking", "dtype": "float64", "gain": 2.0}
    neuron = {"synaptic_time_constant_ms": 4.0, "resistance": 4.0}
    encoding = {"kind": "latency", "duration_ms": 20.0}
    return ModelRecipe(
        network=NetworkRecipe(**network | changes.get("network", {})),  # type: ignore[arg-type]
        neuron=EventDriven(**neuron | changes.get("neuron", {})),  # type: ignore[arg-type]
        encoding=EncodingRecipe(**encoding | changes.get("encoding", {})),  # type: ignore[arg-type]
    )


def build(**changes: Any) -> EventNetwork:
    """Return a network that spikes often in all layers; weights are mostly positive."""
    network = biograd.build(recipe(**changes), 6, CLASSES)
    assert isinstance(network, EventNetwork)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.1 if name.endswith("bias") else 0.3)
    return network


ENCODINGS: dict[str, dict[str, float]] = {
    "latency": {},
    "current": {"gain": 0.3},
    "poisson": {"max_rate_hz": 80.0},
}


def encoding(kind: str) -> dict[str, Any]:
    return {"encoding": {"kind": kind, **ENCODINGS[kind]}}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_layer_spikes_and_all_parameters_learn(kind: str) -> None:
    network, (values, targets) = build(**encoding(kind)), batch()
    for times in network.spike_times(values).values():
        assert times.isfinite().any(-1).float().mean() > 0.4
    for name, gradient in autograd(network, values, targets).items():
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_gradient_of_a_network_is_that_of_differences(kind: str) -> None:
    network, (values, targets) = build(**encoding(kind)), batch()
    expected = autograd(network, values, targets)
    for name, parameter in network.named_parameters():
        direction = normal(*parameter.shape, seed=3)

        def loss(
            along: Tensor, name: str = name, at: Tensor = parameter, way: Tensor = direction
        ) -> Tensor:
            moved = {name: at.detach() + along * way}
            outputs = torch.func.functional_call(network, moved, (values,))
            return nn.functional.cross_entropy(outputs, targets)

        with torch.no_grad():
            found = differences(loss, torch.zeros(1, dtype=torch.float64), 1e-6)
        slope = (expected[name] * direction).sum()
        assert abs(float(found - slope)) < 1e-6 * max(1.0, abs(float(slope)))


def test_poisson_spikes_come_where_their_steps_begin() -> None:
    network, (values, _) = build(**encoding("poisson")), batch()
    assert network.encoding is not None
    spikes = network.encoding(values, generator(3))
    times = network.encode(values, generator(3))
    for row, unit in itertools.product(range(8), range(6)):
        expected = spikes[row, :, unit].nonzero().squeeze(1) * 1.0
        found = times[row, unit]
        assert torch.equal(found[found < 20], expected.double())


def test_the_readout_is_the_limit_of_the_stepped_one() -> None:
    network = build()
    given = recipe(encoding={"dt_ms": 0.01})
    stepped = biograd.build(dataclasses.replace(given, neuron=Leaky()), 6, CLASSES)
    weights = stepped.filtered.get_buffer("weights")
    times = torch.arange(0, 20, 0.01, dtype=torch.float64)
    found = network.filtered(times.view(-1, 1, 1)).squeeze(1)
    assert (found - weights).abs().max() < 1e-2
    assert float(network.filtered(torch.full((1, 1, 3), 20.0, dtype=torch.float64))) == 0


def test_silent_networks_have_finite_outputs_and_train_their_readout() -> None:
    network, (values, targets) = build(), batch()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for name, gradient in autograd(network, values, targets).items():
        assert gradient.isfinite().all()
        assert gradient.any() == (name == "readout.bias")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_true_credit_at_the_cuts_is_back_propagation(kind: str) -> None:
    network, (values, targets) = build(**encoding(kind)), batch()
    engine = attach(network, TrueCredit())
    expected = gradients(attach(copy.deepcopy(network), make("backprop")), values, targets)
    check_equal(gradients(engine, values, targets), expected, 1e-10)


def test_an_offset_of_the_current_does_what_its_credit_says() -> None:
    """The losses of noisy copies against the credit of a site, summed over its rows."""
    network, (values, targets) = build(), batch()
    substrate = attach(network, make("backprop")).substrate
    encoded = substrate.encode(values, generator(0))
    trace = substrate.run(Plan(), encoded, targets, Objective(cross_entropy))
    for name in ("blocks.0.synapse", "blocks.1.synapse"):
        (visits,) = trace.sites[name].visits
        (credit,) = torch.autograd.grad(trace.loss, visits.outputs, retain_graph=True)
        step = 1e-6
        units = trace.sites[name].shape.units[0]
        moves = step * torch.cat([torch.eye(units), -torch.eye(units)]).double()
        noise = moves.view(-1, 1, 1, units).expand(-1, len(values), 1, units)
        losses = substrate.run(
            Plan(noise={name: noise}, graph=False), encoded, targets, Objective(cross_entropy)
        ).losses[1:]
        found = (losses[:units] - losses[units:]).T / (2 * step) / len(values)
        assert (found - credit.sum(1)).abs().max() < 1e-6 * credit.abs().max()
        assert credit.sum(1).abs().max() > 1e-3


def test_silent_units_are_aroused_and_others_left_alone() -> None:
    """The gradient of a silent unit's current is ``-arousal``; without it, zero."""
    values, targets = batch()
    network = build()
    with torch.no_grad():
        network.get_parameter("blocks.0.synapse.weight")[2] = -1.0
        network.get_parameter("blocks.0.synapse.bias")[2] = -0.1
    exact = gradients(attach(copy.deepcopy(network), make("backprop")), values, targets)
    engine = attach(network, make("backprop", {"arousal": 0.3}))
    found = gradients(engine, values, targets)
    times = network.spike_times(values)
    for index, train in enumerate(times.values()):
        silent = ~train.isfinite().any(-1).any(0)
        name = f"blocks.{index}.synapse"
        if not index:
            assert silent[2] and not silent.all()
        gap = {key: found[f"{name}.{key}"] - exact[f"{name}.{key}"] for key in ("weight", "bias")}
        assert (gap["bias"] + 0.3 * silent.double()).abs().max() < 1e-12
        assert not exact[f"{name}.bias"][silent].any()
        assert (gap["weight"][silent] <= 0).all() and not gap["weight"][~silent].any()
        assert gap["weight"][silent].any() == silent.any()


def test_arousal_wakes_a_silent_network() -> None:
    values, targets = batch()
    for arousal in (0.0, 0.1):
        network = build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.1)
        assert not any(times.isfinite().any() for times in network.spike_times(values).values())
        engine = attach(network, make("backprop", {"arousal": arousal}))
        optimiser = torch.optim.Adam(engine.parameters(), lr=0.02)
        for _ in range(40):
            optimiser.zero_grad()
            engine(values, targets).backward()
            optimiser.step()
        awake = [bool(times.isfinite().any()) for times in network.spike_times(values).values()]
        assert awake == [bool(arousal)] * 2


WORK = (
    "backprop",
    "feedback_alignment",
    "forward_gradient_activity",
    "forward_gradient_weight",
    "frozen_hidden",
    "node_perturbation",
    "weak",
    "weight_perturbation",
)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_estimators_work_or_are_refused_in_one_line(name: str) -> None:
    values, targets = batch()
    network = build()
    try:
        engine = attach(network, make(name))
        found = gradients(engine, values, targets)
    except CapabilityError as error:
        assert name not in WORK and "\n" not in str(error)
        return
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["readout.weight"].any()
    if name in ("weak", "node_perturbation"):
        check_silent_copies(engine, values, targets)


def test_a_batch_and_its_double_have_one_mean_gradient() -> None:
    check_one_over_b(attach(build(), make("backprop")), *batch(), draws=3)


def test_another_derivative_of_spikes_is_refused() -> None:
    substrate, (values, targets) = attach(build(), make("backprop")).substrate, batch()
    plan = Plan(transport=Transport(derivative=torch.ones_like))
    encoded = substrate.encode(values, generator(0))
    with pytest.raises(CapabilityError, match="exact spike times have no surrogate"):
        substrate.run(plan, encoded, targets, Objective(cross_entropy))


def test_boundaries_between_blocks_are_refused() -> None:
    substrate, (values, targets) = attach(build(), make("backprop")).substrate, batch()
    encoded = substrate.encode(values, generator(0))
    plan = Plan(boundaries=frozenset({"blocks.0.synapse"}))
    with pytest.raises(CapabilityError, match="an event-driven block passes on lists"):
        substrate.run(plan, encoded, targets, Objective(cross_entropy))


def test_feedback_that_equals_the_weights_is_back_propagation() -> None:
    values, targets = batch()
    network = build()
    expected = autograd(network, values, targets)
    engine = attach(network, make("feedback_alignment"))
    engine.prepare(values, targets)
    random = gradients(engine, values, targets)
    found = {n: p for n, p in network.named_parameters() if n.endswith("weight")}
    feedback = {layer: found[f"{layer}.weight"] for layer in ("blocks.1.synapse", "readout")}
    plan = Plan(transport=Transport(feedback=feedback))
    encoded = engine.substrate.encode(values, generator(0))
    network.zero_grad()
    engine.substrate.run(plan, encoded, targets, Objective(cross_entropy)).loss.backward()
    lowest = network.get_parameter("blocks.0.synapse.weight").grad
    assert lowest is not None
    assert (lowest - expected["blocks.0.synapse.weight"]).abs().max() < 1e-10
    assert (random["blocks.0.synapse.weight"] - lowest).abs().max() > 1e-3


def test_the_length_of_a_step_does_not_matter() -> None:
    values, _ = batch()
    found = [build(encoding={"dt_ms": dt})(values) for dt in (1.0, 0.1)]
    assert torch.equal(*found)


def test_noise_in_time_bins_is_refused() -> None:
    engine = attach(build(), make("weak", {"time_bin": 5}))
    with pytest.raises(CapabilityError, match="time_bin: an event-driven network"):
        engine(*batch())


@pytest.mark.parametrize("centre", [False, True])
def test_decorrelation_starts_as_identity_learns_and_folds(centre: bool) -> None:
    values, targets = batch()
    network = build()
    engine = attach(network, make("backprop"), Decorrelation(rate=0.1, centre=centre))
    expected = autograd(build(), values, targets)
    check_equal(gradients(engine, values, targets), expected, 1e-10)
    engine.update()
    before = network(values)
    matrices = engine.decorrelate.matrices.values()  # type: ignore[union-attr]
    assert all(bool((m != torch.eye(m.shape[-1])).any()) for m in matrices)
    engine.decorrelate.fold()  # type: ignore[union-attr]
    assert (engine.detach()(values) - before).abs().max() < 1e-9


def test_single_precision_is_close_to_double() -> None:
    values, targets = batch()
    network = build()
    expected = autograd(network, values, targets)
    found = autograd(copy.deepcopy(network).float(), values.float(), targets)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).abs().max() < 1e-3 * max(1.0, float(gradient.abs().max()))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network": {"recurrent": True}}, "network.recurrent"),
    ({"network": {"substrate": "snntorch"}}, "neuron.kind = 'event_driven'"),
    ({"network": {"substrate": "brian2"}}, "neuron.kind = 'event_driven'"),
    ({"network": {"kind": "rate"}}, "neuron.kind = 'event_driven': needs"),
    ({"network": {"kind": "rate", "recurrent": True}}, "neuron.kind = 'event_driven': needs"),
    ({"network": {"channels": (4,)}}, "network.channels"),
    ({"network": {"residual": True}}, "network.residual"),
    ({"network": {"dropout": 0.5}}, "network.dropout"),
    ({"network": {"normalisation": "batch"}}, "network.normalisation"),
    ({"network": {"readout": "rate"}}, "network.readout"),
    (
        {"neuron": {"synaptic_time_constant_ms": 0.0}},
        "synaptic_time_constant_ms = 0.0: must be > 0",
    ),
    ({"neuron": {"synaptic_time_constant_ms": 10.0}}, "differs from neuron.time_constant_ms"),
    ({"neuron": {"synaptic_time_constant_ms": 0.01}}, "encoding.duration_ms = 20"),
    ({"network": {"dtype": "float32"}, "encoding": {"duration_ms": 400.0}}, "in float32"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_has_no_exact_spike_times_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(**changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_rows_as_a_varying_current_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"encoding\.kind = 'rows'"):
        biograd.build(recipe(encoding={"kind": "rows"}), (1, 4, 4), CLASSES)


def test_endless_spiking_is_stopped_in_one_line() -> None:
    network, (values, _) = build(neuron={"resistance": 1e5}), batch()
    with pytest.raises(BiogradError, match="spikes more than 1000 times"):
        network(values)


def test_rasters_hold_the_spikes_in_their_steps() -> None:
    network, (values, _) = build(), batch()
    times, found = network.spike_times(values), network.activity(values)
    assert list(found) == ["blocks.0.raster", "blocks.1.raster"]
    for index, spikes in enumerate(found.values()):
        expected = torch.zeros(8, 20, spikes.shape[2], dtype=torch.float64)
        for row, unit, time in (
            (row, unit, time)
            for row, train in enumerate(times[f"blocks.{index}.activity"].tolist())
            for unit, train_of_unit in enumerate(train)
            for time in train_of_unit
            if time < math.inf
        ):
            expected[row, int(time), unit] = 1
        assert torch.equal(spikes, expected) and spikes.any()


def test_a_run_is_trained_written_and_resumed(tmp_path: Path) -> None:
    request = experiment.TrainingRequest(
        model="event",
        dataset="yin_yang",
        epochs=1,
        out=tmp_path / "run.h5",
        device="cpu",
        assignments=("dataset.settings.train_rows=60", "dataset.settings.test_rows=30"),
    )
    summary = experiment.execute(request)
    assert math.isfinite(summary["test_loss"])
    run = biograd.resume(tmp_path / "run.h5", epochs=2)
    assert "spikes/blocks.0.raster/timestamps" in [entry.name for entry in run.tree()]
    assert run.attributes["model_kind"] == "snn"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dataset", "seed", "floor", "gap"), [("yin_yang", 1, 0.96, 0.03), ("digits", 0, 0.90, 0.05)]
)
def test_hidden_spike_times_learn(
    tmp_path: Path, dataset: str, seed: int, floor: float, gap: float
) -> None:
    """Beside the control that trains the readout alone."""
    out = tmp_path / "run.h5"
    summary = experiment.execute(
        experiment.TrainingRequest(
            model="event", dataset=dataset, seed=seed, out=out, device="cpu", control=True
        )
    )
    assert summary["test_accuracy"] >= floor
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= gap


@dataclasses.dataclass(frozen=True)
class _Widened(EventDriven):
    width: float = 2.0


def test_fields_that_exact_spike_times_do_not_read_are_refused() -> None:
    made = dataclasses.replace(recipe(), neuron=_Widened(synaptic_time_constant_ms=5.0))
    with pytest.raises(RecipeError, match=r"neuron.width = 2.0: the event-driven network reads"):
        biograd.build(made, (1, 4, 4), CLASSES)
