"""Small float64 networks, batches and checks that several test modules share.

A check is a function that raises ``AssertionError``, so that it can be turned against a broken
estimator as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import biograd
from biograd.contracts import Plan, Round, Trace
from biograd.engine import Engine
from biograd.estimators import ESTIMATORS, Estimator
from biograd.networks import Circuit, Network
from biograd.neurons import NEURONS, Leaky
from biograd.neurons import scan as scans
from biograd.neurons.coefficients import coefficients
from biograd.neurons.neuron import constants_of
from biograd.neurons.surrogate import Derivative
from biograd.randomness import generator
from biograd.recipes import (
    EncodingRecipe,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
)

CLASSES = 3
Gradients = dict[str, Tensor]


class Residual(nn.Module):
    """A skip past a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.readout = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.readout(torch.tanh(hidden + self.inner(torch.tanh(hidden))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.readout = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class RecurrentCell(nn.Module):
    """Two layers that are called in every step of a loop and add up to one current."""

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.readout = nn.Linear(4, 3)  # named first, called last
        self.feed, self.recurrent = nn.Linear(2, 4), nn.Linear(4, 4, bias=False)
        self.activation = nn.Identity() if linear else nn.Tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 4)
        for now in inputs.view(len(inputs), 3, 2).unbind(1):
            state = self.activation(self.feed(now) + self.recurrent(state))
        return self.readout(state)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)
    )


def linear_stack() -> nn.Module:
    """No non-linearity: with a linear loss every unbiased rule is exactly unbiased."""
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3))


def grouped_convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 1, 3)),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, (1, 2), stride=(1, 2), padding=1, groups=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def convolution_1d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.Conv1d(2, 4, 2, padding=2, dilation=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.Tanh(),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4, affine=False),
        nn.Tanh(),
        nn.Linear(4, 3),
    )


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.Tanh(),
        nn.Dropout(0.4),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(6, 3),
    )


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "residual": Residual,
    "tied": Tied,
    "recurrent_cell": RecurrentCell,
    "grouped_convolution": grouped_convolution,
    "convolution_1d": convolution_1d,
}
"""Deterministic networks of 6 inputs and 3 outputs."""
RANDOM: dict[str, Callable[[], nn.Module]] = {"batch_norm": batch_norm, "dropout": dropout}
SUBSTRATES = ("torch", "snntorch", "brian2")


@torch.no_grad()
def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in float64 with all parameters drawn from ``seed``, biases too."""
    stream = generator(seed, "test weights")
    network.double()
    for parameter in network.parameters():
        scale = 1 / math.sqrt(max(1, parameter[0].numel()))
        parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64) * scale)
    return network


def build(name: str, seed: int = 0) -> nn.Module:
    return drawn((PLAIN | RANDOM)[name](), seed)


def spiking(
    substrate: str = "torch",
    network: Mapping[str, Any] | None = None,
    neuron: Mapping[str, Any] | None = None,
    encoding: Mapping[str, Any] | None = None,
    inputs: int = 6,
) -> Network:
    """Return a spiking network in float64 that spikes often; biases are drawn, too."""
    if substrate == "brian2":
        from biograd.brian.import_brian2 import import_brian2

        import_brian2().prefs.codegen.target = "numpy"  # no compiler, no cold start
    given = {"resistance": 8.0} | dict(neuron or {})
    recipe = ModelRecipe(
        network=NetworkRecipe(
            substrate=substrate,
            kind="spiking",
            dtype="float64",
            **{"hidden": (5, 4), "gain": 2.0} | dict(network or {}),
        ),
        neuron=NEURONS[given.pop("kind", "leaky")](**given),
        encoding=EncodingRecipe(**{"duration_ms": 20.0} | dict(encoding or {})),
    )
    made = biograd.build(recipe, inputs, CLASSES)
    stream = generator(0, "test biases")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(
                    0.1 * torch.rand(parameter.shape, generator=stream, dtype=torch.float64)
                )
    return made  # type: ignore[return-value]


def scan(
    neuron: Leaky,
    current: Tensor,
    steps: int,
    window: int | None = None,
    derivative: Derivative | None = None,
    dt_ms: float = 1.0,
) -> Tensor:
    """Return the spikes of a leaky population without synapses, fused over time."""
    k = coefficients(neuron, constants_of(neuron, dt_ms, {}))
    assert k is not None
    trial = scans.Trial(neuron, dt_ms, steps, {}, window=window, derivative=derivative)
    return scans.scan(trial, k, {"I": current})


def record(neuron: Leaky, current: Tensor, steps: int, dt_ms: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return spikes and potentials of a leaky population without synapses."""
    k = coefficients(neuron, constants_of(neuron, dt_ms, {}))
    assert k is not None
    spikes, _, states = scans.record(neuron, k, {"I": current}, steps, "states")
    return spikes, states[neuron.variables.index("v")]


def integrate_and_fire(neuron: Leaky, dt_ms: float) -> tuple[PopulationRecipe, dict[str, float]]:
    """Return a leaky neuron as Brian2 text that is written by hand, and its constants."""
    c = constants_of(neuron, dt_ms, {})
    filtered = "g = alpha * g + (1 - alpha) * I" if c.alpha else "g = I"
    recipe = PopulationRecipe(
        equations="v : 1\ng : 1\nI : 1",
        threshold="v > threshold",
        reset="v = 0" if neuron.reset == "zero" else "v -= threshold / beta",
        update=f"{filtered}\nv = beta * v + gain * g",
    )
    return recipe, vars(c)


def looped(network: Circuit) -> bool:
    """Return whether some of a circuit's populations are stepped together."""
    return bool(network.graph.together)


def order(network: Circuit) -> tuple[str, ...]:
    """Return the names of a circuit's populations in the order of a step."""
    return tuple(one.site for one in network.graph.blocks.values())


def opaque() -> Network:
    """Return a Brian2 network whose threshold has no distance: no derivative can be had."""
    from biograd.brian.import_brian2 import import_brian2

    import_brian2().prefs.codegen.target = "numpy"
    network = {"substrate": "brian2", "kind": "spiking", "hidden": (5, 4), "dtype": "float64"}
    recipe = ModelRecipe(
        network=NetworkRecipe(**network),  # type: ignore[arg-type]
        population=PopulationRecipe(
            equations="dv/dt = (8 * I - v) / (10 * ms) : 1\nI : 1",
            threshold="v > 1 or v < -9",
            reset="v = 0",
            method="exact",
        ),
    )
    return biograd.build(recipe, 6, CLASSES)  # type: ignore[return-value]


def batch(rows: int = 8, seed: int = 0, features: int = 6) -> tuple[Tensor, Tensor]:
    stream = generator(seed, "test batch")
    inputs = torch.rand(rows, features, generator=stream, dtype=torch.float64)
    return inputs, torch.arange(rows) % CLASSES


def linear_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is linear in the outputs and far from zero."""
    table = torch.tensor([[0.7, -1.2, 0.4], [-0.5, 0.3, 1.1], [0.9, 0.8, -0.6]])
    return (outputs * table.to(outputs)[targets]).sum(1) + 1.0


def gradients(engine: Engine, inputs: Tensor, targets: Tensor) -> Gradients:
    """Return the parameters' gradients after one step of the engine."""
    engine.network.zero_grad()
    engine(inputs, targets, torch.arange(len(inputs))).backward()
    return kept_gradients(engine.network)


def kept_gradients(network: nn.Module) -> Gradients:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in network.named_parameters()
    }


def autograd(
    network: nn.Module, inputs: Tensor, targets: Tensor, loss: Any = nn.functional.cross_entropy
) -> Gradients:
    """Return the gradients of the mean loss by plain autograd, without the engine."""
    network.zero_grad()
    loss(network(inputs), targets).mean().backward()
    return kept_gradients(network)


def cannot(name: str, rule: str) -> str:
    """Return why a rule is refused on a network of these tests, "" if it works."""
    blockwise = "local_vjp" in ESTIMATORS[rule].needs
    blockwise |= rule in ("decoupling", "predictive_coding", "gain")
    if name == "batch_norm" and not ESTIMATORS[rule].batch_norm:
        return "ties the examples of a batch together"
    if name == "residual" and blockwise and rule != "forward_forward":
        return "a connection passes by the activity of site 'first'"
    if name in SUBSTRATES and rule == "decoupling":
        return "cannot keep spikes as targets"
    return ""


class TrueCredit(Estimator):
    """Cut at the hidden sites and deliver what autograd finds there in a second, uncut pass."""

    needs = frozenset(("loss", "cut", "vjp"))
    exact = True
    reach = "parameters"

    def __init__(self, sites: tuple[str, ...] | None = None, factor: float = 1.0) -> None:
        super().__init__()
        self.sites, self.factor = sites, factor

    def plans(self, round: Round) -> Sequence[Plan]:
        return Plan(cut=frozenset(self.sites or round.hidden)), Plan()

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        cut, whole = traces
        for name in self.sites or round.hidden:
            for here, there in zip(cut.sites[name].visits, whole.sites[name].visits, strict=True):
                deltas = torch.autograd.grad(whole.loss, there.outputs, retain_graph=True)
                yield from zip(here.outputs, (self.factor * d for d in deltas), strict=True)


def check_equal(found: Gradients, expected: Gradients, tolerance: float = 1e-10) -> None:
    """Every gradient agrees, and the reference is not zero throughout."""
    assert found.keys() == expected.keys() and found
    assert any(bool(value.any()) for value in expected.values())
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= tolerance * max(1.0, value.abs().max().item()), f"{name}: {error}"


def check_unbiased(
    engine: Engine, inputs: Tensor, targets: Tensor, truth: Gradients, draws: int = 120
) -> None:
    """The mean over draws is the truth within 4 standard errors, and its slope on it is 1."""
    flat = torch.cat([value.flatten() for value in truth.values()])
    samples = torch.stack(
        [
            torch.cat([value.flatten() for value in gradients(engine, inputs, targets).values()])
            for _ in range(draws)
        ]
    )
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(draws)
    worst = ((mean - flat).abs() - 4 * error).max().item()
    assert worst <= 1e-9, f"beyond 4 standard errors by {worst}"
    slope = (mean @ flat / flat.square().sum()).item()
    assert abs(slope - 1) < 0.05, f"slope {slope}"


def check_silent_copies(engine: Engine, inputs: Tensor, targets: Tensor) -> None:
    """Copies without noise have the loss of the clean copy."""
    engine(inputs, targets)
    substrate = engine.substrate
    encoded = substrate.encode(inputs, generator(1))
    name = engine.hidden[0]
    noise = torch.zeros(3, len(inputs), 1, *engine._shapes[name].units, dtype=torch.float64)
    losses = substrate.run(
        Plan(noise={name: noise}), encoded, targets, engine.objective, generator(2)
    ).losses
    assert torch.allclose(losses[1:], losses[:1].expand(3, -1), rtol=1e-12, atol=1e-12)


def check_one_over_b(engine: Engine, inputs: Tensor, targets: Tensor, draws: int = 60) -> None:
    """A batch and the same batch twice over have the same mean gradient, within 4.5 errors."""
    means, errors = [], []
    for times in (1, 2):
        x, y = inputs.repeat(times, *[1] * (inputs.dim() - 1)), targets.repeat(times)
        samples = torch.stack(
            [
                torch.cat([value.flatten() for value in gradients(engine, x, y).values()])
                for _ in range(draws)
            ]
        )
        means.append(samples.mean(0))
        errors.append(samples.std(0) / math.sqrt(draws))
    gap = (means[0] - means[1]).abs() - 4.5 * torch.hypot(*errors)
    assert gap.max().item() <= 1e-9, f"beyond 4.5 standard errors by {gap.max().item()}"
