"""Networks: spikes against closed forms and autograd, modules of one's own, memory."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from networks_for_tests import batch, check_equal, drawn, gradients, record, scan, spiking
from torch import Tensor, nn

import biograd
from biograd.circuit.sugar import ACTIVATIONS
from biograd.engine import attach
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS, WeakGradient, make
from biograd.estimators.loss_regression import METHODS
from biograd.neurons import Leaky
from biograd.neurons.neuron import constants_of, step
from biograd.neurons.surrogate import SURROGATES, spike
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.simulators.population import Population
from biograd.tasks.classes import LOSSES

INTEGRALS = {
    "fast_sigmoid": lambda u, k: u / (1 + k * u.abs()),
    "arctan": lambda u, k: torch.atan(k * u) / k,
    "gaussian": lambda u, k: math.sqrt(math.pi / 2) / k * torch.erf(k * u / math.sqrt(2)),
}
MEMBRANES = {
    f"{reset}{' filtered' if synaptic else ''}": Leaky(
        reset=reset, synaptic_time_constant_ms=synaptic, resistance=2.0
    )  # type: ignore[arg-type]
    for reset in ("subtract", "zero")
    for synaptic in (0.0, 4.0)
}


def currents(rows: int = 3, steps: int = 40, units: int = 5, seed: int = 0) -> Tensor:
    draw = torch.randn(rows, steps, units, generator=generator(seed, "I"), dtype=torch.float64)
    return (1.0 + 2.0 * draw).requires_grad_()


def membrane(neuron: Leaky, surrogate: str = "fast_sigmoid") -> Leaky:
    return dataclasses.replace(neuron, surrogate=surrogate, slope=3.0)


def stepped(neuron: Leaky, current: Tensor, steps: int) -> Tensor:
    current, c = current.expand(-1, steps, -1), constants_of(neuron, 1.0, {})
    state, spikes, train = neuron.begin(current[:, 0]), torch.zeros_like(current[:, 0]), []
    for index in range(steps):
        state, spikes = step(neuron, c, state, spikes, {"I": current[:, index]})
        train.append(spikes)
    return torch.stack(train, 1)


# Spikes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_derivatives_with_maximum_one(name: str) -> None:
    assert SURROGATES and set(INTEGRALS) == set(SURROGATES)
    distance = torch.linspace(-2.05, 2, 60, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(INTEGRALS[name](distance, 3.0).sum(), distance)
    assert (SURROGATES[name](distance, 3.0) - slope).abs().max() < 1e-12
    assert SURROGATES[name](torch.zeros(()), 3.0) == 1
    values = distance.detach()[:20].requires_grad_()
    assert torch.autograd.gradcheck(lambda u: SURROGATES[name](u, 3.0), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_spikes_keep_the_dtype(dtype: torch.dtype) -> None:
    distance = torch.tensor([-1.0, 0.0, 0.5], dtype=dtype, requires_grad=True)
    spikes = spike(distance)
    assert spikes.dtype == dtype and spikes.tolist() == [0.0, 0.0, 1.0]  # strictly above
    spikes.sum().backward()
    assert distance.grad is not None and distance.grad.dtype == dtype


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", MEMBRANES)
def test_fused_scan_steps_and_snntorch_have_one_gradient(
    name: str, surrogate: str, constant: bool
) -> None:
    neuron = membrane(MEMBRANES[name], surrogate)
    current = currents(steps=1 if constant else 40)
    weights = torch.randn(3, 40, 5, generator=generator(1), dtype=torch.float64)
    ways = [scan(neuron, current, 40), stepped(neuron, current, 40)]
    if name != "zero filtered":  # Synaptic also resets its current
        ways.append(Population(neuron, 5, 40, 1.0, "snntorch")(current))
    found = [torch.autograd.grad((train * weights).sum(), current)[0] for train in ways]
    for train, gradient in zip(ways, found, strict=True):
        assert torch.equal(train, ways[0]) and 20 < train.sum() < train.numel()
        assert (gradient - found[0]).abs().max() < 1e-10 < found[0].abs().max()


@pytest.mark.parametrize("name", [name for name in MEMBRANES if "filtered" not in name])
@pytest.mark.parametrize("strength", [1.02, 1.7, 6.0])
def test_spike_times_of_a_constant_current(name: str, strength: float) -> None:
    """First spike in the step that holds ``t = -tau ln(1 - threshold / (R I))``."""
    neuron = MEMBRANES[name]
    current = torch.full((1, 1, 1), strength / neuron.resistance, dtype=torch.float64)
    spikes, potentials = record(neuron, current, 2000, dt_ms=0.1)
    times = spikes.flatten().nonzero().flatten()
    wait = math.ceil(-neuron.time_constant_ms * math.log(1 - 1 / strength) / 0.1)
    assert times[0].item() == wait - 1
    if neuron.reset == "zero":
        assert (times.diff() == wait).all() and len(times) == 2000 // wait
    before = torch.arange(1, wait + 1, dtype=torch.float64)
    exact = strength * (1 - torch.exp(-0.1 * before / neuron.time_constant_ms))
    assert (potentials.flatten()[:wait] - exact).abs().max() < 1e-12


def test_no_spike_below_threshold() -> None:
    neuron = Leaky(resistance=2.0)
    current = torch.full((1, 1, 4), 0.5, dtype=torch.float64, requires_grad=True)
    spikes = scan(neuron, current, 300)
    assert not spikes.any()
    (gradient,) = torch.autograd.grad(spikes.sum(), current)
    assert gradient.isfinite().all() and (gradient > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_silent_populations_give_no_credit_and_no_nan(method: str) -> None:
    network = spiking()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    copies = {"antithetic": 9, "central_difference": 9, "quadratic": 21}.get(method, 8)
    engine = attach(network, WeakGradient(copies, sigma=1e-3, method=method))
    found = gradients(engine, *batch())
    if method != "score":  # the score function sees the losses themselves
        assert not any(v.any() for name, v in found.items() if not name.startswith("readout"))
    assert all(value.isfinite().all() for value in found.values())


# Recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [(), (4, 6)])
def test_rate_networks(activation: str, normalisation: str, channels: tuple[int, ...]) -> None:
    recipe = ModelRecipe(
        network=NetworkRecipe(
            hidden=(7,),
            channels=channels,
            activation=activation,
            normalisation=normalisation,  # type: ignore[arg-type]
            dropout=0.2,
            dtype="float64",
        )
    )
    network = biograd.build(recipe, (2, 5, 6), 3)
    inputs = batch(9, features=60)[0].view(9, 2, 5, 6)
    engine = attach(
        network, WeakGradient(5), outside="refuse" if normalisation == "none" else "freeze"
    )
    assert engine(inputs, torch.arange(9) % 3).outputs.shape == (9, 3)
    assert engine.account is not None
    assert all("normalise" in entry.name for entry in engine.account.of("outside"))
    assert len(engine.hidden) == len(channels) + 1
    assert {name: len(a) for name, a in network.activity(inputs).items()} == dict.fromkeys(
        network.populations, 9
    )


@pytest.mark.parametrize(
    ("network", "neuron", "words"),
    [
        ({"substrate": "brian2"}, {}, "runs on 'torch'"),
        ({"kind": "spiking", "channels": (4,)}, {}, "network.channels"),
        ({"channels": (4,)}, {}, "network.channels"),
        ({"kind": "spiking", "activation": "tanh"}, {}, "network.activation: has no effect"),
        ({"hidden": (10**12,)}, {}, "too large for this machine's memory"),
        (
            {"kind": "spiking", "substrate": "snntorch"},
            {"reset": "zero", "synaptic_time_constant_ms": 3.0},
            "Synaptic also resets",
        ),
    ],
)
def test_parts_that_do_not_fit(network: dict[str, Any], neuron: dict[str, Any], words: str) -> None:
    recipe = ModelRecipe(
        network=NetworkRecipe(**network), neuron=Leaky(**neuron), encoding=EncodingRecipe()
    )
    with pytest.raises(RecipeError, match=words):
        biograd.build(recipe, 6, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": -1}, "build: inputs = -1: must be >= 1"),
        ({"inputs": (1, 8.5)}, "build: inputs = .*must be a whole number"),
        ({"classes": 0}, "build: classes = 0: must be >= 1"),
        ({"seed": "a"}, "build: seed = 'a': must be a whole number"),
        ({"inputs": 10**12}, "too large for this machine's memory: lower network.hidden or"),
    ],
)
def test_sizes_that_are_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        biograd.build("ann", **{"inputs": 6, "classes": 3, **changes})
    assert "\n" not in str(refused.value)


# Modules of one's own -----------------------------------------------------------------------------


class Own(nn.Module):
    """Convolution and dense layers, one of them never called; the readout is defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.readout, self.unused = nn.Linear(10, 3), nn.Linear(4, 4)
        self.convolution, self.dense = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(48, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu_(self.convolution(inputs)).flatten(1)
        return self.readout(torch.relu_(self.dense(hidden)))


def own_data() -> tuple[Tensor, Tensor]:
    targets = torch.arange(48) % 3
    images = torch.randn(48, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    return images + (targets.double() - 1).view(-1, 1, 1, 1), targets


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_layer_that_is_never_called_is_no_site(estimator: str) -> None:
    inputs, targets = own_data()
    engine = attach(drawn(Own()), make(estimator))
    found = gradients(engine, inputs, targets)
    assert engine.hidden == ("convolution", "dense")
    everything = ("weight_perturbation", "forward_gradient_weight")
    assert estimator in everything or not found["unused.weight"].any()
    if estimator not in ("frozen_hidden", "synthetic_gradient"):  # the latter starts from zero
        assert found["convolution.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["weak", "backprop"])
def test_a_module_of_ones_own_learns(estimator: str, dtype: torch.dtype) -> None:
    inputs, targets = own_data()
    network = drawn(Own()).to(dtype)
    del network.unused
    engine = attach(network, make(estimator))
    optimiser = torch.optim.Adam(engine.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        result = engine(inputs.to(dtype), targets)
        result.backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
        losses.append(result.loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.dtype == dtype for parameter in network.parameters())


def test_operations_in_place_do_not_alter_what_a_site_recorded() -> None:
    inputs, targets = own_data()
    plain = drawn(Own())
    del plain.unused
    other = copy.deepcopy(plain)
    other.forward = lambda x: other.readout(
        torch.relu(
            other.dense(  # type: ignore[method-assign]
                torch.relu(other.convolution(x)).flatten(1)
            )
        )
    )
    for estimator in ("weak", "node_perturbation"):
        settings = {"activity": "measured"} if estimator == "node_perturbation" else {}
        found, expected = (
            gradients(attach(made, make(estimator, settings)), inputs, targets)
            for made in (plain, other)
        )
        check_equal(found, expected, 1e-12)
        for made in (plain, other):
            for layer in made.modules():
                layer._forward_hooks.clear()


# Losses ------------------------------------------------------------------------------------------


def test_losses_by_name_and_by_hand() -> None:
    outputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(5) % 3
    expected = [
        -torch.log(torch.softmax(row, 0)[label])
        for row, label in zip(outputs, targets, strict=True)
    ]
    assert torch.allclose(LOSSES["cross_entropy"](outputs, targets), torch.stack(expected))
    hot = torch.eye(3, dtype=torch.float64)[targets]
    assert torch.allclose(
        LOSSES["squared_error"](outputs, targets), ((outputs - hot) ** 2).sum(1) / 2
    )
    assert torch.equal(
        LOSSES["squared_error"](outputs, hot), LOSSES["squared_error"](outputs, targets)
    )
    for loss in LOSSES.values():
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, targets), (outputs,))
