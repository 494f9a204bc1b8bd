"""Three simulators, one network: the same spikes, potentials and gradient estimates."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from networks_for_tests import (
    SUBSTRATES,
    Gradients,
    batch,
    gradients,
    integrate_and_fire,
    record,
    spiking,
)
from torch import Tensor

from biograd.brian.neuron_model import NeuronModel
from biograd.brian.simulation import Simulation
from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.estimators import ESTIMATORS, make
from biograd.networks import Network
from biograd.neurons import Leaky
from biograd.neurons.neuron import constants_of
from biograd.randomness import generator

NEURONS: dict[str, dict[str, Any]] = {
    "subtract": {},
    "zero": {"reset": "zero"},
    "filtered": {"synaptic_time_constant_ms": 4.0},
    "filtered zero": {"reset": "zero", "synaptic_time_constant_ms": 4.0},
}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "weak": ("weak", {}),
    "weak in bins": ("weak", {"time_bin": 5}),
    "weak in uneven bins": ("weak", {"time_bin": 6}),
    "weak in steps": ("weak", {"time_bin": 1}),
    "weak, one site": ("weak", {"sites": "round_robin"}),
    "antithetic": ("weak", {"method": "antithetic"}),
    "node_perturbation": ("node_perturbation", {}),
    "measured": ("node_perturbation", {"activity": "measured"}),
    "measured in bins": ("node_perturbation", {"activity": "measured", "time_bin": 6}),
    "weight_perturbation": ("weight_perturbation", {"sigma": 0.05, "copies": 9}),
    "frozen_hidden": ("frozen_hidden", {}),
}
# decoupling cannot keep spikes; unitwise draws anew in every step where another draws once
LEFT_OUT = ("decoupling", "unitwise")
RULES |= {name: (name, {}) for name in ESTIMATORS if name not in (*RULES, *LEFT_OUT)}


def substrates(neuron: dict[str, Any]) -> list[str]:
    """snnTorch's Synaptic resets its current, too: the recipe is refused there."""
    both = neuron.get("reset") == "zero" and neuron.get("synaptic_time_constant_ms")
    return [name for name in SUBSTRATES if not (both and name == "snntorch")]


def trains(
    substrate: str,
    neuron: dict[str, Any],
    recurrent: bool,
    kind: str,
    *,
    rows: int,
    steps: int,
    hidden: tuple[int, ...],
) -> list[Tensor]:
    """Return the spikes of every population for the same recipe, weights and inputs."""
    network = spiking(
        substrate,
        {"hidden": hidden, "recurrent": recurrent},
        neuron,
        {"kind": kind, "duration_ms": float(steps)},
        inputs=20,
    )
    inputs, _ = batch(rows, features=20)
    return list(network.activity(inputs).values())


def assert_same_spikes(found: list[list[Tensor]], least: int) -> None:
    first = found[0]
    entries = sum(train.numel() for train in first)
    assert entries >= least
    for train in first:
        assert 0.01 < train.mean() < 0.9  # neither silent nor saturated
    for other in found[1:]:
        differing = sum(int((a != b).sum()) for a, b in zip(first, other, strict=True))
        assert differing == 0, f"{differing} of {entries} differ"


@pytest.mark.parametrize("kind", ["current", "poisson"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("neuron", NEURONS)
def test_the_same_spikes(neuron: str, recurrent: bool, kind: str) -> None:
    found = [
        trains(name, NEURONS[neuron], recurrent, kind, rows=16, steps=100, hidden=(40, 30))
        for name in substrates(NEURONS[neuron])
    ]
    assert len(found) >= 2
    assert_same_spikes(found, 100_000)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_million_spikes_are_the_same(recurrent: bool) -> None:
    found = [
        trains(name, {}, recurrent, "poisson", rows=32, steps=500, hidden=(40, 25))
        for name in SUBSTRATES
    ]
    assert_same_spikes(found, 1_000_000)


def test_another_time_constant_is_noticed() -> None:
    found = [
        trains(
            name,
            {"time_constant_ms": 10.0 + 0.1 * place},
            False,
            "current",
            rows=16,
            steps=100,
            hidden=(40, 30),
        )
        for place, name in enumerate(("torch", "brian2"))
    ]
    with pytest.raises(AssertionError):
        assert_same_spikes(found, 100_000)


@pytest.mark.parametrize("synaptic", [0.0, 4.0])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_the_same_potentials(reset: Any, synaptic: float) -> None:
    """One population driven by noise; snnTorch's neuron is stepped here by hand."""
    given = Leaky(reset=reset, synaptic_time_constant_ms=synaptic, resistance=3.0)
    membrane = constants_of(given, 1.0, {})
    current = 0.5 + 1.5 * torch.randn(20, 300, 10, generator=generator(0), dtype=torch.float64)
    spikes, potentials = record(given, current, 300)
    assert 0.02 < spikes.mean() < 0.5
    recipe, constants = integrate_and_fire(given, 1.0)
    simulation = Simulation(NeuronModel(recipe, 1.0, constants=constants), 20, 10)
    brian, kept = simulation.run(current.numpy().swapaxes(0, 1), 300, keep=["v"])
    assert np.array_equal(brian.swapaxes(0, 1), spikes.numpy())
    error = np.abs(kept["v"].swapaxes(0, 1) - potentials.numpy()).max()
    assert error < 1e-10
    if synaptic:
        return
    neuron = snntorch.Leaky(
        beta=torch.tensor(membrane.beta, dtype=torch.float64),
        threshold=torch.tensor(membrane.threshold, dtype=torch.float64),
        reset_mechanism=reset,
    )
    snntorch.SpikingNeuron.instances.remove(neuron)
    state = torch.zeros(20, 10, dtype=torch.float64)
    for index in range(300):
        fired, state = neuron(membrane.gain * current[:, index], state)
        assert torch.equal(fired.double(), spikes[:, index])
        assert (state - potentials[:, index]).abs().max() < 1e-10


@functools.cache
def prepared(name: str, recurrent: bool, kind: str) -> tuple[Network, dict[str, Tensor]]:
    """Return a network, built once since Brian2 prepares its simulations, and its weights."""
    gain = {"gain": 2.0} if kind == "current" else {}
    network = spiking(name, {"recurrent": recurrent}, {}, {"kind": kind, **gain})
    return network, copy.deepcopy(network.state_dict())


def descend(engine: Engine, inputs: Tensor, targets: Tensor) -> Gradients:
    """Take one step of gradient descent with all that learns by itself."""
    found = gradients(engine, inputs, targets)
    with torch.no_grad():
        for name, parameter in engine.network.named_parameters():
            parameter.sub_(found[name], alpha=0.05)
    engine.update()
    return found


@pytest.mark.parametrize(("kind", "decorrelated"), [("current", False), ("poisson", True)])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_same_gradient_estimates(
    rule: str, recurrent: bool, kind: str, decorrelated: bool
) -> None:
    """Same seed, three steps with updates: every parameter's estimate agrees to 1e-7."""
    inputs, targets = batch()
    decorrelation = Decorrelation(rate=0.05) if decorrelated else None
    estimator = make(*RULES[rule])
    found = {}
    for name in SUBSTRATES:
        network, weights = prepared(name, recurrent, kind)
        network.load_state_dict(weights)
        engine = attach(network, copy.deepcopy(estimator), copy.deepcopy(decorrelation), seed=2)
        try:
            found[name] = [descend(engine, inputs, targets) for _ in range(3)]
        finally:
            engine.detach()
    for name in SUBSTRATES[1:]:
        for turn, (one, other) in enumerate(zip(found["torch"], found[name], strict=True)):
            assert any(value.any() for value in one.values())
            for key, value in one.items():
                error = (value - other[key]).abs().max() / value.abs().max().clamp_min(1e-9)
                assert error < 1e-7, f"{name}, step {turn}, {key}: {error:.1e}"


def test_another_seed_gives_another_estimate() -> None:
    inputs, targets = batch()
    first, second = (
        gradients(attach(spiking("brian2"), make("weak"), seed=seed), inputs, targets)
        for seed in (1, 2)
    )
    assert not torch.equal(first["blocks.0.synapse.weight"], second["blocks.0.synapse.weight"])


# Memory -------------------------------------------------------------------------------------------


def test_snntorch_keeps_no_list_and_no_graph() -> None:
    before = len(snntorch.SpikingNeuron.instances)
    network = spiking("snntorch", {"recurrent": True}, {}, {"duration_ms": 8.0})
    assert len(snntorch.SpikingNeuron.instances) == before
    engine = attach(network, make("backprop"))
    inputs, targets = batch()
    outputs: list[weakref.ref[Tensor]] = []
    counts = []
    for turn in range(50):
        result = engine(inputs, targets)
        result.backward()
        engine.update()
        outputs.append(weakref.ref(result.surrogate))
        del result
        if turn % 10 == 9:
            gc.collect()
            counts.append(sum(type(thing) is Tensor for thing in gc.get_objects()))
    assert sum(reference() is not None for reference in outputs) == 0
    assert counts[-1] <= counts[1]
    alive = weakref.ref(network)
    engine.detach()
    del network, engine
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("substrate", ["torch", "snntorch", "brian2"])
def test_networks_can_be_copied(substrate: str) -> None:
    network = spiking(substrate)
    inputs, _ = batch()
    outputs = network(inputs)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(inputs), outputs) and outputs.abs().sum() > 0
    with torch.no_grad():
        twin.readout.bias.add_(1)
    assert torch.equal(network(inputs), outputs)
