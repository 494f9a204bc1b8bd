"""Measured gain: slopes by noise, transport by the weights, against back-propagation and theory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import (
    CLASSES,
    Gradients,
    autograd,
    batch,
    build,
    check_equal,
    check_unbiased,
    drawn,
    gradients,
    linear_loss,
    spiking,
)
from torch import Tensor, nn

import biograd
from biograd import LocalLosses, Site, experiment
from biograd.contracts import Plan, Round, Trace
from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError
from biograd.estimators import Estimator, make
from biograd.estimators.gain import MeasuredGain, balanced
from biograd.neurons import EventDriven
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, NetworkRecipe
from biograd.simulators.population import Population

NORMALISED = [
    Site("0", ("0",), (False,), current="1"),
    Site("3", ("3",), (False,), current="4"),
    Site("6", ("6",), (False,)),
]
"""The sites of the network "batch_norm" behind its normalisations."""


def rate(**network: Any) -> nn.Module:
    recipe = NetworkRecipe(kind="rate", activation="tanh", dtype="float64", **network)
    return drawn(biograd.build(ModelRecipe(network=recipe), 6, CLASSES))


def residual() -> nn.Module:
    return rate(hidden=(8, 8, 8), residual=True)


SMOOTH: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **{
        name: (lambda name=name: build(name), None)  # type: ignore[misc]
        for name in ("mlp", "tied", "grouped_convolution", "convolution_1d", "dropout")
    },
    "residual": (residual, None),
    "batch_norm": (lambda: build("batch_norm"), NORMALISED),
}


def flat(found: Gradients, hidden: bool = False) -> Tensor:
    """Return all gradients in one vector, without those of the readout if ``hidden``."""
    return torch.cat([v.flatten() for n, v in found.items() if not hidden or "readout" not in n])


def cosine(first: Tensor, second: Tensor) -> float:
    return torch.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


def error(engine: Engine, expected: Gradients) -> float:
    """Return the relative distance of an engine's gradients to what is expected."""
    truth = flat(expected)
    return float((flat(gradients(engine, *batch())) - truth).norm() / truth.norm())


class SlopeOfOne(MeasuredGain):
    """Pass the error by every neuron as if it were linear."""

    def passed(self, trace: Trace, name: str, arrived: Tensor, round: Round) -> Tensor:
        return arrived.reshape(len(arrived), 1, *trace.sites[name].shape.units)


class InjectedAlone(MeasuredGain):
    """Forget what the noise below does to a current."""

    def passed(self, trace: Trace, name: str, arrived: Tensor, round: Round) -> Tensor:
        site = trace.sites[name]
        assert site.noise is not None
        site.observed = site.current() + site.noise
        return super().passed(trace, name, arrived, round)


class SkipCounted(MeasuredGain):
    """Take what a skip brings for the work of the neuron."""

    def passed(self, trace: Trace, name: str, arrived: Tensor, round: Round) -> Tensor:
        kept = trace.sites[name].activity
        assert kept is not None
        trace.sites[name].activity = kept.detach()
        try:
            return super().passed(trace, name, arrived, round)
        finally:
            trace.sites[name].activity = kept


# Smooth units -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_small_noise_is_back_propagation(name: str) -> None:
    """The error is of the order of sigma: the neurons' curvature is all that is left."""
    network, sites = SMOOTH[name]
    expected = gradients(attach(network(), make("backprop"), sites=sites), *batch())
    found = {}
    for sigma in (1e-3, 1e-6):
        engine = attach(network(), MeasuredGain(5, sigma, ridge=0.0), sites=sites)
        found[sigma] = error(engine, expected)
    assert found[1e-6] < 1e-6 and found[1e-3] < 2e-3
    assert found[1e-6] < found[1e-3] / 300


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (SlopeOfOne, "mlp"),
        (SlopeOfOne, "convolution_1d"),
        (InjectedAlone, "mlp"),
        (InjectedAlone, "grouped_convolution"),
        (SkipCounted, "residual"),
    ],
)
def test_what_is_not_measured_is_missed(broken: type[MeasuredGain], name: str) -> None:
    network, sites = SMOOTH[name]
    expected = gradients(attach(network(), make("backprop"), sites=sites), *batch())
    assert error(attach(network(), broken(5, 1e-6, ridge=0.0), sites=sites), expected) > 0.01


def test_batch_normalisation_counts_as_constant() -> None:
    """In evaluation nothing is missing; in training the gradient by the statistics is."""

    def network(train: bool) -> nn.Module:
        made = build("batch_norm")
        made(batch()[0])
        return made.train(train)

    for train in (False, True):
        expected = gradients(attach(network(train), make("backprop")), *batch())
        found = error(attach(network(train), MeasuredGain(5, 1e-6, ridge=0.0)), expected)
        assert found > 0.01 if train else found < 1e-6


def test_decorrelated_inputs_are_passed_as_they_are() -> None:
    inputs, targets = batch()
    engines = [
        attach(build("mlp"), rule, Decorrelation("kappa", rate=0.1, kappa=0.1))
        for rule in (make("backprop"), MeasuredGain(5, 1e-6, ridge=0.0))
    ]
    for _ in range(5):
        engines[0](inputs, targets)
        engines[0].update()
    engines[1].prepare(inputs, targets)
    engines[1].load_state(engines[0].state())
    expected = gradients(engines[0], inputs, targets)
    assert error(engines[1], expected) < 1e-6
    plain = gradients(attach(build("mlp"), make("backprop")), inputs, targets)
    assert (flat(plain) - flat(expected)).norm() / flat(expected).norm() > 0.01


@pytest.mark.parametrize("network", [residual, lambda: rate(hidden=(8, 8))])
def test_local_losses_train_their_own_blocks(network: Callable[[], nn.Module]) -> None:
    def engine(rule: Estimator, sites: Any) -> Engine:
        return attach(network(), rule, local=LocalLosses(sites=sites))

    for sites in ("all", ("blocks.0.synapse",)):
        expected = gradients(engine(make("backprop"), sites), *batch())
        assert error(engine(MeasuredGain(5, 1e-6, ridge=0.0), sites), expected) < 1e-6
    assert error(engine(MeasuredGain(5, 1e-6, ridge=0.0), "all"), expected) > 0.01


# What noise of a finite size measures -------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 3, 8])
def test_balanced_noise(copies: int) -> None:
    noise = balanced(copies, (400, 3), generator(0), torch.float64)
    assert noise.shape == (copies, 400, 3)
    assert torch.allclose(noise.square().mean(0), torch.ones(400, 3, dtype=torch.float64))
    if copies == 1:
        assert abs(noise.mean()) < 0.1
        return
    assert noise.sum(0).abs().max() < 1e-12
    assert torch.equal(noise.sort(0).values[:, :1, :1].expand_as(noise), noise.sort(0).values)
    assert noise.mean((1, 2)).abs().max() < 0.15  # no copy has an order of its own
    first, second = noise[..., 0], noise[..., 1]
    assert abs((first * second).mean()) < 0.15  # nor have neurons one in common


def one_layer() -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)))


def single(copies: int, sigma: float, ridge: float) -> Gradients:
    """Return the gradient of the hidden weights of ``one_layer``."""
    engine = attach(one_layer(), MeasuredGain(copies, sigma, ridge))
    return {"0.weight": gradients(engine, *batch())["0.weight"]}


def by_slopes(slopes: Callable[[Tensor, float], Tensor], sigma: float) -> Gradients:
    """Return the same for given slopes of currents behind noise of a given size."""
    network, (inputs, targets) = one_layer(), batch()
    current, outputs = network[0](inputs), network(inputs)  # type: ignore[index]
    loss = nn.functional.cross_entropy(outputs, targets)
    (delta,) = torch.autograd.grad(loss, outputs)
    size = sigma * float(current.detach().square().mean().sqrt())
    credit = delta @ network[2].weight  # type: ignore[index]
    return {"0.weight": ((slopes(current, size) * credit).T @ inputs).detach()}


@pytest.mark.parametrize(("copies", "ridge"), [(3, 0.0), (5, 0.3), (17, 1.0)])
def test_slopes_of_one_layer_in_closed_form(copies: int, ridge: float) -> None:
    """Where only a neuron's own noise acts, its slope is the same in whatever order it came."""
    scores = balanced(copies - 1, (1, 1), generator(1), torch.float64)

    def slopes(current: Tensor, size: float) -> Tensor:
        change = torch.tanh(current + size * scores) - torch.tanh(current)
        return (scores * change).sum(0) / (size * (copies - 1 + ridge))

    check_equal(single(copies, 0.5, ridge), by_slopes(slopes, 0.5), 1e-12)
    with pytest.raises(AssertionError):
        check_equal(single(copies, 0.5, ridge + 0.1), by_slopes(slopes, 0.5), 1e-3)


def test_many_copies_measure_the_smoothed_network() -> None:
    """The slope becomes that of the activity averaged over normal noise (Gauss-Hermite)."""
    points, weights = (torch.tensor(values) for values in np.polynomial.hermite_e.hermegauss(80))

    def slopes(current: Tensor, size: float) -> Tensor:
        slope = 1 - torch.tanh(current + size * points.view(-1, 1, 1)).square()
        return torch.einsum("n,nbu->bu", weights / weights.sum(), slope)

    (expected,) = by_slopes(slopes, 2.0).values()
    gaps = [
        float((single(copies, 2.0, 0.0)["0.weight"] - expected).abs().max() / expected.abs().max())
        for copies in (5, 65, 1025)
    ]
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2]
    assert gaps[2] < 2e-3


# Spikes -------------------------------------------------------------------------------------------


class NumpyPopulation(nn.Module):
    """The neurons of ``Population`` in NumPy, of which torch can differentiate nothing."""

    forward_only = "its neurons are written in NumPy"

    def __init__(self, membrane: Any, steps: int) -> None:
        super().__init__()
        self.membrane, self.steps = membrane, steps

    def forward(self, current: Tensor, recurrent: None = None) -> Tensor:
        given = current.detach().expand(-1, self.steps, -1).numpy()
        potential, spikes, train = np.zeros_like(given[:, 0]), np.zeros_like(given[:, 0]), []
        m = self.membrane
        for step in range(self.steps):
            potential = m.beta * potential + m.gain * given[:, step] - m.threshold * spikes
            spikes = (potential > m.threshold).astype(given.dtype)
            train.append(spikes)
        return torch.from_numpy(np.stack(train, 1))


class LinearMemory(nn.Module):
    """``h[t] = h[t-1] k + z[t]``: a population with a memory and no threshold."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, current: Tensor, recurrent: None = None) -> Tensor:
        state, course = torch.zeros_like(current[:, 0]), []
        for now in current.expand(-1, self.steps, -1).unbind(1):
            state = 0.8 * state + now
            course.append(state)
        return torch.stack(course, 1)


def replaced(make_population: Callable[[Population], nn.Module], **settings: Any) -> nn.Module:
    """Return a spiking network with other populations."""
    network = spiking(**settings)
    for block in network.blocks:  # type: ignore[union-attr]
        block["activity"] = make_population(block["activity"])
    return network


def reference(
    network: nn.Module, sigma: float, seed: int, copies: int = 256, rounds: int = 10
) -> dict[str, Tensor]:
    """Return the gradient by the trial's mean current of the network smoothed at all its sites.

    Correlation of the loss with antithetic noise, over many copies.
    """
    engine, (inputs, targets) = attach(network, make("frozen_hidden")), batch()
    engine.prepare(inputs, targets)
    encoded, stream = engine.substrate.encode(inputs, generator(0)), generator(seed)
    found = {name: torch.zeros(()) for name in engine.hidden}
    for _ in range(rounds):
        noise = {}
        for name in engine.hidden:
            units = engine._shapes[name].units
            half = torch.randn(copies // 2, 8, 1, *units, generator=stream, dtype=torch.float64)
            noise[name] = torch.cat((half, -half)) * sigma * engine.scales[name]
        trace = engine.substrate.run(Plan(noise=noise), encoded, targets, engine.objective, stream)
        losses = trace.losses[1:] - trace.losses[:1]
        for name, values in noise.items():
            slope = torch.einsum("mb,mb...->b...", losses, values)
            found[name] = found[name] + slope / (sigma * engine.scales[name]) ** 2
    engine.detach()
    return {name: total / (copies * rounds * len(inputs)) for name, total in found.items()}


def site_gradients(engine: Engine) -> dict[str, Tensor]:
    """Return the credit of each site's mean current that one step delivers."""
    inputs, targets = batch()
    engine.prepare(inputs, targets)
    encoded = engine.substrate.encode(inputs, generator(0))
    round = engine._round(encoded, targets, None, engine.streams["noise"])
    (plan,) = engine.estimator.plans(round)
    trace = engine.substrate.run(plan, encoded, targets, engine.objective)
    credit = {id(tensor): delta for tensor, delta in engine.estimator.credit([trace], round)}
    currents = {name: trace.sites[name].visits[0].outputs[0] for name in engine.hidden}
    return {name: credit[id(now)].sum(1, keepdim=True) for name, now in currents.items()}


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_few_copies_see_the_smoothed_gradient(substrate: str, recurrent: bool) -> None:
    """With four noisy copies the cosine is far above that of node perturbation with four."""

    def network() -> nn.Module:
        return spiking(substrate, {"hidden": (20, 20), "recurrent": recurrent})

    truth, again = (reference(network(), 0.3, seed) for seed in (1, 2))
    means: dict[str, dict[str, float]] = {}
    for rule in ("gain", "node_perturbation"):
        engine = attach(network(), make(rule, {"copies": 5, "sigma": 0.3}))
        found = [site_gradients(engine) for _ in range(12)]
        means[rule] = {n: sum(cosine(one[n], truth[n]) for one in found) / 12 for n in truth}
    for name in truth:
        assert cosine(again[name], truth[name]) > 0.9
        assert means["gain"][name] > (0.6 if recurrent else 0.9)
        assert means["gain"][name] > 0.3 + means["node_perturbation"][name]


@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_the_gradient_of_the_readout_is_exact(substrate: str) -> None:
    expected = gradients(attach(spiking(substrate), make("backprop")), *batch())
    found = gradients(attach(spiking(substrate), make("gain")), *batch())
    for name, value in expected.items():
        gap = float((found[name] - value).abs().max() / value.abs().max())
        assert (gap < 1e-12) is name.startswith("readout")


def test_neurons_that_nobody_can_differentiate() -> None:
    network = replaced(lambda old: NumpyPopulation(old.constants(), old.steps))
    with pytest.raises(CapabilityError, match=r"cannot do .*: its neurons are written in NumPy"):
        attach(network, make("backprop"))
    for settings in ({}, {"time_bin": 5}):
        rule = make("gain", settings)
        found = gradients(attach(network, rule), *batch())
        check_equal(found, gradients(attach(spiking(), make("gain", settings)), *batch()), 1e-12)
        assert all(value.any() for value in found.values())


def test_a_memory_is_measured_to_the_end_of_the_trial() -> None:
    """A linear population that is held at an offset throughout: what follows is known exactly."""

    def network() -> nn.Module:
        return replaced(lambda old: LinearMemory(old.steps), network={"hidden": (5,)})

    inputs, targets = batch()
    expected = autograd(network(), inputs, targets, linear_loss)
    engine = attach(network(), MeasuredGain(3, ridge=0.0), loss=linear_loss)
    check_equal(gradients(engine, inputs, targets), expected)
    shrunk = attach(network(), MeasuredGain(3, ridge=1.0), loss=linear_loss)
    with pytest.raises(AssertionError):
        check_equal(gradients(shrunk, inputs, targets), expected)


def test_time_bins_are_told_apart() -> None:
    """The input varies: with a bin for each step the mean over draws is the true gradient."""

    def network() -> nn.Module:
        return replaced(
            lambda old: LinearMemory(old.steps),
            network={"hidden": (5,)},
            encoding={"kind": "latency", "duration_ms": 6.0},
        )

    inputs, targets = batch()
    expected = autograd(network(), inputs, targets, linear_loss)
    for time_bin, right in ((1, True), (None, False)):
        rule = MeasuredGain(9, ridge=0.0, time_bin=time_bin)
        engine = attach(network(), rule, loss=linear_loss)
        if right:
            check_unbiased(engine, inputs, targets, expected)
            continue
        with pytest.raises(AssertionError):
            check_unbiased(engine, inputs, targets, expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_spiking_digits(tmp_path: Path) -> None:
    request = experiment.TrainingRequest(
        model="spiking", estimator="gain", out=tmp_path / "run.h5", device="cpu", control=True
    )
    summary = experiment.execute(request)
    assert summary["test_accuracy"] >= 0.95
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= 0.10


# What it cannot serve -----------------------------------------------------------------------------


class Pooling(nn.Module):
    """Convolution, neurons, pooling, readout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neurons = nn.Conv1d(2, 4, 2, padding=1), nn.Tanh()
        self.pool, self.readout = nn.AvgPool1d(2), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        activity = self.neurons(self.layer(inputs.unflatten(1, (2, 3))))
        return self.readout(self.pool(activity).flatten(1))


def test_pooled_activity_is_refused_until_the_neurons_are_named() -> None:
    inputs, targets = batch()
    engine = attach(drawn(Pooling()), make("gain"))
    with pytest.raises(CapabilityError, match="do not match one to one: name the module") as caught:
        engine(inputs, targets)
    assert "\n" not in str(caught.value)
    sites = [
        Site("layer", ("layer",), (False,), activity="neurons"),
        Site("readout", ("readout",), (False,)),
    ]
    expected = gradients(attach(drawn(Pooling()), make("backprop")), inputs, targets)
    named = attach(drawn(Pooling()), MeasuredGain(5, 1e-6, ridge=0.0), sites=sites)
    assert error(named, expected) < 1e-6


def test_an_event_driven_network_is_refused() -> None:
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="spiking"),
        neuron=EventDriven(),
    )
    with pytest.raises(CapabilityError, match="an event-driven block passes on lists"):
        attach(biograd.build(recipe, 6, CLASSES), make("gain"))(*batch())


def test_the_activities_of_noisy_copies_are_returned_when_asked_for() -> None:
    engine, (inputs, targets) = attach(one_layer(), make("frozen_hidden")), batch()
    engine.prepare(inputs, targets)
    noise = torch.randn(3, 8, 1, 5, generator=generator(0), dtype=torch.float64)
    for asked in (True, False):
        plan = Plan(noise={"0": noise}, observe_activity=asked)
        site = engine.substrate.run(plan, inputs, targets, engine.objective).sites["0"]
        if not asked:
            assert site.observed_activity is None
            continue
        current = engine.network[0](inputs)  # type: ignore[index]
        found = site.observed_activity
        assert found is not None and not found.requires_grad
        assert torch.allclose(found, torch.tanh(current + noise[:, :, 0]), atol=1e-12)
