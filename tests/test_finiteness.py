"""Values that are not finite are refused, and named, before a comparison swallows them."""

from __future__ import annotations

import pytest
import snntorch
import torch
from networks_for_tests import cannot, spiking
from torch import Tensor, nn

import biograd
from biograd.errors import BiogradError
from biograd.estimators import ESTIMATORS, make

NAN, INFINITE = float("nan"), float("inf")
SIMULATORS = ("torch", "snntorch", "brian2")
INDEX = torch.arange(6)
Y = INDEX % 3


def inputs() -> Tensor:
    return 3 * torch.rand(6, 6, generator=torch.Generator().manual_seed(0))


class Looped(nn.Module):
    """snnTorch's usual loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.cell = snntorch.Leaky(beta=0.9, threshold=0.3, learn_threshold=True)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, total = self.cell.init_leaky(), torch.zeros(())
        for _ in range(3):
            spikes, state = self.cell(self.first(x), state)
            total = total + self.last(spikes)
        return total


def take(engine: biograd.Engine, x: Tensor, y: Tensor = Y) -> float:
    """Take one whole step and return its loss."""
    optimiser = torch.optim.SGD(engine.network.parameters(), lr=0.01)
    result = engine(x, y, INDEX)
    result.backward()
    optimiser.step()
    optimiser.zero_grad()
    engine.update()
    return float(result.loss)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("rule", ESTIMATORS)
@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_lost_weight_is_named(rule: str, simulator: str, value: float) -> None:
    if cannot(simulator, rule):
        pytest.skip("the rule cannot")
    x = inputs()
    engine = biograd.attach(spiking(simulator), make(rule))
    x = x.double()
    take(engine, x)  # a healthy step passes
    with torch.no_grad():
        next(engine.network.parameters())[1, 2] = value
    with pytest.raises(BiogradError, match=r"step 2: blocks\.0\.synapse\.weight: 1 of") as found:
        take(engine, x)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first.bias", r"first\.bias: 1 of 7"),
        ("cell.beta", r"cell\.beta: 1 of 1"),
        ("cell.threshold", r"cell\.threshold: 1 of 1"),
        ("last.weight", r"last\.weight: 1 of 21"),
    ],
)
def test_constants_behind_a_threshold_are_named(name: str, message: str) -> None:
    engine = biograd.attach(Looped(), biograd.Backpropagation())
    assert take(engine, inputs()) > 0
    values = {**dict(engine.network.named_parameters()), **dict(engine.network.named_buffers())}
    with torch.no_grad():
        values[name].view(-1)[0] = NAN
    with pytest.raises(BiogradError, match=message):
        take(engine, inputs())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("value", [NAN, INFINITE])
@pytest.mark.parametrize("network", [*SIMULATORS, "poisson", "own"])
def test_input_is_named_by_its_example(network: str, value: float, first: bool) -> None:
    made = Looped() if network == "own" else biograd.build("spiking", inputs=6, classes=3)
    if network in SIMULATORS:
        made = spiking(network)
    engine = biograd.attach(made, biograd.Backpropagation())
    x = inputs().to(next(made.parameters()).dtype)
    if not first:
        take(engine, x)
    x[4, 1] = value
    with pytest.raises(BiogradError, match=r"the input of example 4 of the batch \(1 of 6\)"):
        take(engine, x)


def test_target_is_named_by_its_example() -> None:
    network = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))
    engine = biograd.attach(network, biograd.Backpropagation(), loss="squared_error")
    y = torch.rand(6)
    take(engine, inputs(), y)
    y[3] = NAN
    with pytest.raises(BiogradError, match=r"the target of example 3 of the batch \(1 of 6\)"):
        take(engine, inputs(), y)


def test_missing_targets_of_a_task_are_no_fault() -> None:
    network = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 2))
    task = biograd.tasks.make("regression", 2, {}, "task")
    engine = biograd.attach(network, biograd.Backpropagation(), task=task)
    y = torch.rand(6, 2)
    y[3, 1] = NAN
    assert take(engine, inputs(), y) > 0


@pytest.mark.parametrize("rate", [NAN, INFINITE])
def test_learning_rate_is_found_out(rate: float) -> None:
    engine = biograd.attach(spiking("torch"), biograd.Backpropagation())
    optimiser = torch.optim.SGD(engine.network.parameters(), lr=0.1)
    optimiser.param_groups[0]["lr"] = rate
    engine(inputs().double(), Y).backward()
    optimiser.step()
    with pytest.raises(BiogradError, match=r"step 2: .*weight: .* not finite: lower the learning"):
        engine(inputs().double(), Y)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_state_is_named_with_its_population(simulator: str) -> None:
    network = spiking(simulator)
    with torch.no_grad():
        network.get_parameter("blocks.0.synapse.weight").fill_(1e308)
    with pytest.raises(BiogradError, match=r"blocks\.0\.(activity|synapse)"):
        take(biograd.attach(network, biograd.Backpropagation()), 100 * inputs().double())


def test_large_values_are_finite() -> None:
    """The sum of what is finite may be infinite."""
    network = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    with torch.no_grad():
        network.get_parameter("0.weight").mul_(1e-38)
    engine = biograd.attach(network, biograd.FrozenHidden())
    assert take(engine, 1e38 * inputs()) > 0


def test_masks_of_infinity_are_no_fault() -> None:
    network = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    network.register_buffer("mask", torch.full((3, 3), -INFINITE))
    assert take(biograd.attach(network, biograd.Backpropagation()), inputs()) > 0
