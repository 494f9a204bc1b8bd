"""Brian2 as a substrate: exact credit of its layers, closed forms, prepared simulations."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import (
    TrueCredit,
    batch,
    check_equal,
    gradients,
    integrate_and_fire,
    kept_gradients,
    opaque,
    record,
    spiking,
)
from torch import Tensor

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_model import NeuronModel
from biograd.brian.simulation import KEPT, Simulation
from biograd.contracts import Objective, Plan, Round, Trace
from biograd.engine import attach
from biograd.errors import CapabilityError
from biograd.estimators import Estimator, WeakGradient, make
from biograd.neurons import Leaky
from biograd.randomness import generator


class GivenCredit(Estimator):
    """Deliver a given gradient of the mean current in every bin of every hidden site."""

    needs = frozenset(("loss", "cut", "observe"))
    may_equal = True  # what is given may be the gradient of back-propagation

    def __init__(self, given: dict[str, Tensor], time_bin: int | None = None) -> None:
        super().__init__()
        self.given, self.time_bin = given, time_bin

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(cut=frozenset(round.hidden), time_bin=self.time_bin),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        for name, gradient in self.given.items():
            yield from traces[0].sites[name].deliver(gradient)


def true_deltas(inputs: Tensor, targets: Tensor, **recipe: Any) -> dict[str, Tensor]:
    """Return the surrogate gradient by a current that is the same in every step, ``[B, 1, U]``."""
    found: dict[str, Tensor] = {}

    class Keep(TrueCredit):
        def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
            for name in round.hidden:
                output = traces[1].sites[name].visits[0].outputs[0]
                (delta,) = torch.autograd.grad(traces[1].loss, output, retain_graph=True)
                found[name] = delta.sum(1, keepdim=True)
            yield from ()

    attach(spiking("torch", **recipe), Keep())(inputs, targets)
    return found


@pytest.mark.parametrize("substrate", ["torch", "snntorch", "brian2"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", ["current", "poisson"])
def test_delivered_credit_is_the_outer_product_with_the_mean_input(
    kind: str, recurrent: bool, substrate: str
) -> None:
    """``dL/dW = sum_b delta_b x_b^T`` with the presynaptic activity's mean over the trial."""
    inputs, targets = batch()
    encoding = {"kind": kind} | ({"gain": 2.0} if kind == "current" else {})
    recipe = {"network": {"recurrent": recurrent}, "encoding": encoding}
    deltas = true_deltas(inputs, targets, **recipe)
    assert all(delta.any() for delta in deltas.values())
    network = spiking(substrate, **recipe)
    found = gradients(attach(network, GivenCredit(deltas)), inputs, targets)
    before = network.encode(inputs, generator(0, "encoding"))
    twin = spiking("torch", **recipe)
    activity = before
    expected = {}
    for index, block in enumerate(twin.blocks):
        delta = deltas[f"blocks.{index}.synapse"][:, 0]
        expected[f"blocks.{index}.synapse.weight"] = delta.T @ activity.mean(1)
        expected[f"blocks.{index}.synapse.bias"] = delta.sum(0)
        with torch.no_grad():
            current = block["synapse"](activity)
            train = block["activity"](current, block["recurrent"] if recurrent else None)
        if recurrent:
            past = torch.cat((torch.zeros_like(train[:, :1]), train[:, :-1]), 1)
            expected[f"blocks.{index}.recurrent.weight"] = delta.T @ past.mean(1)
        activity = train
    check_equal({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize("time_bin", [1, 5, 6, None])
def test_credit_in_bins_is_the_same_on_every_substrate(time_bin: int | None) -> None:
    inputs, targets = batch()
    recipe: dict[str, Any] = {"network": {"recurrent": True}, "encoding": {"kind": "poisson"}}
    count = 1 if time_bin is None else math.ceil(20 / time_bin)
    given = {
        f"blocks.{index}.synapse": torch.randn(
            8, count, width, generator=generator(index), dtype=torch.float64
        )
        for index, width in enumerate((5, 4))
    }
    found = [
        gradients(attach(spiking(name, **recipe), GivenCredit(given, time_bin)), inputs, targets)
        for name in ("torch", "snntorch", "brian2")
    ]
    check_equal(found[1], found[0])
    check_equal(found[2], found[0])


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("strength", [1.02, 1.7, 6.0])
def test_spike_times_of_a_constant_current(reset: Any, strength: float) -> None:
    neuron = Leaky(reset=reset, resistance=2.0)
    import_brian2().prefs.codegen.target = "numpy"
    recipe, constants = integrate_and_fire(neuron, 0.1)
    simulation = Simulation(NeuronModel(recipe, 0.1, constants=constants), 1, 1)
    train, _ = simulation.run(np.full((1, 1, 1), strength / 2), 800)
    times = np.flatnonzero(train)
    wait = math.ceil(-neuron.time_constant_ms * math.log(1 - 1 / strength) / 0.1)
    assert times[0] == wait - 1
    if reset == "zero":
        assert (np.diff(times) == wait).all()


def test_an_independent_brian2_model_spikes_at_the_same_steps() -> None:
    """Brian2's own exact integration of ``tau dv/dt = R I - v``, run by ``Network.run``."""
    b2 = import_brian2()
    b2.prefs.codegen.target = "numpy"
    current = torch.rand(50, 1, 1, generator=generator(0), dtype=torch.float64)
    expected, _ = record(Leaky(resistance=3.0, reset="zero"), current, 200)
    clock = b2.Clock(dt=1 * b2.ms)
    group = b2.NeuronGroup(
        50,
        "dv/dt = (3 * I - v) / (10 * ms) : 1\nI : 1",
        method="exact",
        threshold="v > 1",
        reset="v = 0",
        clock=clock,
    )
    group.I = current.flatten().numpy()
    monitor = b2.SpikeMonitor(group)
    b2.Network(group, monitor).run(200 * b2.ms, namespace={"ms": b2.ms})
    train = np.zeros((50, 200))
    train[np.asarray(monitor.i), np.rint(np.asarray(monitor.t / b2.ms)).astype(int)] = 1
    assert np.array_equal(train, expected[:, :, 0].numpy()) and train.sum() > 100


@pytest.mark.slow
def test_the_default_target_spikes_like_numpy() -> None:
    """Compiled code where there is a compiler, numpy where not."""
    b2 = import_brian2()
    network = spiking("brian2", {"recurrent": True})
    inputs, _ = batch()
    expected = network.activity(inputs)
    b2.prefs.codegen.target = "auto"
    try:
        found = spiking_again(network).activity(inputs)
    finally:
        b2.prefs.codegen.target = "numpy"
    for name, train in expected.items():
        assert torch.equal(found[name], train) and train.any()


def spiking_again(network: Any) -> Any:
    """Return a copy, which prepares its own simulations."""
    twin = copy.deepcopy(network)
    assert not any(block["activity"]._foreign for block in twin.blocks)
    return twin


def test_a_simulation_starts_from_rest_every_time() -> None:
    inputs, _ = batch()
    network = spiking("brian2", {"recurrent": True}, {"synaptic_time_constant_ms": 4.0})
    first = network.activity(inputs)
    network.activity(3 * inputs)
    again = network.activity(inputs)
    assert all(torch.equal(train, first[name]) for name, train in again.items())


def test_a_later_trial_does_not_alter_an_earlier_one() -> None:
    """Two steps before one backward pass: the first step's activity is still its own."""
    inputs, targets = batch()
    estimator = GivenCredit({"blocks.1.synapse": torch.ones(8, 20, 4).double()}, time_bin=1)
    network = spiking("brian2")
    engine = attach(network, estimator)
    first = gradients(engine, inputs, targets)
    network.zero_grad()
    result = engine(inputs, targets)
    engine(0 * inputs, targets)
    result.backward()
    check_equal(kept_gradients(network), first)


def test_only_a_few_simulations_are_kept() -> None:
    network = spiking("brian2")
    for rows in (1, 2, 3, 4, 5, 2, 6):
        network(batch(rows)[0])
    for block in network.blocks:
        kept = block["activity"].foreign().simulation.kept
        assert len(kept) == KEPT and 2 in kept and 6 in kept


def test_the_weights_of_the_moment_are_simulated() -> None:
    inputs, _ = batch()
    network, twin = spiking("brian2"), spiking("torch")
    before = network.activity(inputs)
    with torch.no_grad():
        for made in (network, twin):
            made.blocks[0]["synapse"].weight.mul_(1.5)
    after, expected = network.activity(inputs), twin.activity(inputs)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert all(torch.equal(after[name], expected[name]) for name in after)


@pytest.mark.parametrize(
    ("estimator", "missing"),
    [
        (make("backprop"), "vjp"),
        (WeakGradient(5, sites=("blocks.0.synapse",)), "vjp"),
    ],
)
def test_what_cannot_be_replayed_is_said_at_attach(estimator: Estimator, missing: str) -> None:
    message = f"needs {missing}, which .*'brian2' cannot do .it can: .*or"
    with pytest.raises(CapabilityError, match=message) as e:
        attach(opaque(), estimator)
    assert "\n" not in str(e.value)


def test_what_cannot_be_replayed_still_learns() -> None:
    inputs, targets = batch()
    found = gradients(attach(opaque(), make("weak")), inputs, targets)
    assert all(value.any() for value in found.values())


def test_noise_that_nobody_looks_at_leaves_the_clean_copy_alone() -> None:
    inputs, targets = batch()
    substrate = attach(spiking("brian2"), make("frozen_hidden")).substrate
    encoded = substrate.encode(inputs, generator(0))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    found = []
    for size in (0.0, 1.0, 100.0):
        noise = size * torch.randn(3, 8, 1, 5, generator=generator(1), dtype=torch.float64)
        plan = Plan(noise={"blocks.0.synapse": noise}, observe=True)
        found.append(substrate.run(plan, encoded, targets, Objective(loss)))
    for trace in found[1:]:
        assert torch.equal(trace.losses[0], found[0].losses[0])
        assert torch.equal(trace.outputs, found[0].outputs)
    assert torch.equal(found[0].losses[1:], found[0].losses[:1].expand(3, -1))
    assert not torch.equal(found[2].losses[1:], found[0].losses[1:])
    site = found[1].sites["blocks.0.synapse"]
    assert site.observed is not None and site.noise is not None
    assert (site.observed - site.current() - site.noise).abs().max() < 1e-12
