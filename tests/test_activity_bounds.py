"""Bounds of hidden activity: their cost, its gradient by every rule, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import biograd
from biograd.contracts import ActivityBounds
from biograd.contracts.activity_bounds import Priced
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.recipes import load_model

INPUTS = torch.rand(24, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(24) % 10
TARGET = ActivityBounds(weight=30.0, lower=0.2, upper=0.2)
BLOCKS = ("blocks.0", "blocks.1")


def built(model: str = "spiking", *settings: str, seed: int = 0) -> Any:
    recipe = load_model(model, assignments=("network.hidden=[20,15]", *settings))
    return biograd.build(recipe, 64, 10, seed=seed).double()


def no_loss(outputs: Tensor, _targets: Tensor) -> Tensor:
    return 0 * outputs.sum(1)


@pytest.mark.parametrize("per", ["neuron", "layer", "network"])
@pytest.mark.parametrize(("lower", "upper"), [(0.1, None), (0.0, 0.15), (0.1, 0.2), (0.15, 0.15)])
def test_the_cost_is_that_of_its_definition(per: Any, lower: float, upper: float | None) -> None:
    stream = np.random.default_rng(0)
    first, second = stream.uniform(0, 0.4, (4, 3)), stream.uniform(0, 0.4, 7)
    held = {"neuron": [first, second], "layer": [first.mean(), second.mean()]}
    held["network"] = [np.concatenate([first.ravel(), second]).mean()]
    expected = 0.0
    for rates in map(np.asarray, held[per]):
        over = 0.0 if upper is None else np.maximum(rates - upper, 0) ** 2
        expected += np.mean(np.maximum(lower - rates, 0) ** 2 + over)
    bounds = ActivityBounds(3.0, lower, upper, per)
    found = bounds.cost({"a": torch.tensor(first), "b": torch.tensor(second)})
    assert float(found) == pytest.approx(3.0 * expected, abs=1e-14)


def test_the_parts_of_rows_and_steps_add_up_to_the_cost() -> None:
    activity = {"a": torch.rand(6, 5, 4, 3), "b": torch.rand(6, 1, 7)}
    price = Priced.of(TARGET, activity)
    for count in (1, 5):
        parts = price.steps(activity, count)
        assert parts.shape == (6, count)
        assert float(parts.sum(1).mean()) == pytest.approx(price.cost, rel=1e-5)


def by_hand(network: Any, loss: Any, populations: tuple[str, ...]) -> list[Tensor]:
    """The gradient of loss and cost, of autograd alone."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out)
        )
        for name in populations
    ]
    outputs = network(INPUTS)
    for handle in handles:
        handle.remove()
    rates = [v.mean((0, 1)) if v.dim() == 3 else v.mean(0) for v in seen.values()]
    cost = sum(30.0 * (rate - 0.2).square().mean() for rate in rates)
    total = loss(outputs, TARGETS).mean() + cost
    return list(torch.autograd.grad(total, list(network.parameters())))


@pytest.mark.parametrize("model", ["spiking", "ann", "brian2"])
def test_back_propagation_has_the_gradient_of_autograd(model: str) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    network = built(model)
    network.train()
    expected = by_hand(network, loss, network.populations)
    engine = biograd.attach(network, biograd.Backpropagation(), activity=TARGET)
    engine(INPUTS, TARGETS).backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(64, 20), nn.Linear(20, 10)
        self.neurons = snn.Leaky(0.9)
        self.spikes: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        potential, self.spikes = inputs.new_zeros(len(inputs), 20), []
        for _ in range(8):
            spikes, potential = self.neurons(self.first(inputs), potential)
            self.spikes.append(spikes)
        return self.readout(torch.stack(self.spikes).mean(0))


def test_a_loop_of_ones_own_is_bounded_alike() -> None:
    torch.manual_seed(0)
    network, inputs = Loop(), INPUTS.float()
    network(inputs)
    rate = torch.stack(network.spikes).mean((0, 1))
    cost = 30.0 * (rate - 0.2).square().mean()
    expected = torch.autograd.grad(cost, network.first.weight)[0]
    network.spikes = []
    engine = biograd.attach(network, biograd.Backpropagation(), loss=no_loss, activity=TARGET)
    result = engine(inputs, TARGETS)
    result.backward()
    assert float(result.loss) == pytest.approx(float(cost.detach()), rel=1e-5)
    torch.testing.assert_close(network.first.weight.grad, expected)


def test_a_task_in_time_has_its_share_in_every_step() -> None:
    recipe = load_model("spiking", assignments=("network.hidden=[20]", "encoding.duration_ms=10"))
    network = biograd.build(recipe, 64, 10, seed=0, timed=True).double()
    course = torch.zeros(24, network.steps, 10, dtype=torch.float64)

    def step_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * (outputs - targets).sum(2)

    engine = biograd.attach(network, biograd.Backpropagation(), loss=step_loss, activity=TARGET)
    found = engine(INPUTS, course)
    found.backward()
    (rates,) = network.activity(INPUTS).values()
    expected = 30.0 * (rates.mean((0, 1)) - 0.2).square().mean()
    assert float(found.loss) == pytest.approx(float(expected))
    assert network.blocks[0].synapse.weight.grad.any()


REFUSED = {"gain", "predictive_coding", "forward_forward", "frozen_hidden"}
COPIES = {"weight_perturbation": 200, "forward_gradient_weight": 200, "three_factor": 200}


@pytest.mark.parametrize("rule", [name for name in ESTIMATORS if name not in REFUSED])
def test_every_rule_descends_the_cost_or_says_why_not(rule: str) -> None:
    model = "ann" if rule == "decoupling" else "spiking"
    expected = credit("backprop", model, 1, TARGET) - credit("backprop", model, 1, None)
    count = COPIES.get(rule, 12)
    found = credit(rule, model, count, TARGET) - credit(rule, model, count, None)
    cosine = nn.functional.cosine_similarity(found, expected, 0)
    assert float(cosine) > 0.15, float(cosine)


def credit(rule: str, model: str, count: int, bounds: ActivityBounds | None) -> Tensor:
    """Return the credit of all hidden weights, the mean of several steps."""
    network = built(model)
    engine = biograd.attach(network, make(rule, {}, "test"), loss=tiny, activity=bounds)
    for _ in range(count):
        engine(INPUTS, TARGETS, torch.arange(24)).backward()
    gradients = [network.get_submodule(f"{block}.synapse").weight.grad for block in BLOCKS]
    return torch.cat([gradient.flatten() for gradient in gradients]) / count


def tiny(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1e-2 * nn.functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("rule", sorted(REFUSED))
def test_rules_that_it_would_not_reach_refuse_it(rule: str) -> None:
    with pytest.raises(CapabilityError, match="their cost would reach no hidden layer"):
        biograd.attach(built(), make(rule, {}, "test"), activity=TARGET)
    biograd.attach(built(), make(rule, {}, "test"), activity=ActivityBounds()).detach()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight": 1.0}, "weight = 1 of no bound"),
        ({"weight": 1.0, "lower": 0.3, "upper": 0.2}, "lower = 0.3 lies above upper = 0.2"),
        ({"weight": -1.0, "lower": 0.3}, "weight"),
        ({"weight": 1.0, "lower": 0.3, "per": "unit"}, "neuron"),
    ],
)
def test_bounds_that_hold_nothing_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=words):
        ActivityBounds(**given)


def test_a_site_that_is_not_there_is_refused() -> None:
    bounds = ActivityBounds(weight=1.0, lower=0.1, sites=("block",))
    with pytest.raises(CapabilityError, match="no hidden site 'block'"):
        biograd.attach(built(), biograd.Backpropagation(), activity=bounds)
    events = biograd.build("event", 64, 10)
    bounds = ActivityBounds(weight=1.0, lower=0.1)
    with pytest.raises(CapabilityError, match="spike times"):
        biograd.attach(events, biograd.Backpropagation(), activity=bounds).prepare(
            INPUTS.float(), TARGETS
        )


def rates_after(path: Path, seed: int, *settings: str, **given: Any) -> tuple[float, list[float]]:
    run = biograd.train("spiking", "digits", seed=seed, path=path, settings=list(settings), **given)
    network, _ = biograd.trained(run)
    from biograd import data
    from biograd.recipes import load_dataset

    rows = data.load(load_dataset("digits"), name="digits").test.take(torch.arange(200)).inputs
    found = [float(spikes.mean()) for spikes in network.activity(rows).values()]
    return float(run.summary["test_accuracy"]), found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", ["backprop", "eprop"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rates_come_to_their_target_at_no_cost(rule: str, seed: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {"estimator": rule, "epochs": 12}
    free, _ = rates_after(tmp_path / "free.h5", seed, **given)
    held = ("activity.weight=100", "activity.lower=0.1", "activity.upper=0.1", "activity.per=layer")
    bounded, rates = rates_after(tmp_path / "held.h5", seed, *held, **given)
    assert rates == pytest.approx([0.1, 0.1], rel=0.1)
    assert bounded > free - 0.01
