"""Block coordinate descent: every update is the minimum of its block, and no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from networks_for_tests import Residual, batch, drawn
from torch import Tensor, nn

import biograd
from biograd import data
from biograd.errors import CapabilityError, RecipeError
from biograd.local.block_coordinate import (
    BlockCoordinate,
    Penalties,
    chain,
    hidden_activity,
    hidden_current,
    output_activity,
    output_current,
    solved,
)
from biograd.randomness import generator
from biograd.recipes import load_dataset, load_model

BY = Penalties(0.7, 1.3, 0.4)
ROWS = 30


def draw(*shape: int, seed: int = 0) -> Tensor:
    stream = generator(seed, "block coordinate", *shape)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return drawn(nn.Linear(inputs, outputs, bias))  # type: ignore[return-value]


def squared(values: Tensor) -> Tensor:
    return values.square().sum() / 2


Case = tuple[Callable[[Tensor], Tensor], Tensor, Tensor]
"""A block's objective, its exact minimum, and what an almost right formula gives."""


def output_activity_case() -> Case:
    y, u, old = draw(ROWS, 3), draw(ROWS, 3, seed=1), draw(ROWS, 3, seed=2)

    def objective(v: Tensor) -> Tensor:
        return squared(v - y) + BY.activation * squared(v - u) + BY.inertia * squared(v - old)

    wrong = (y + BY.activation * u) / (1 + BY.activation)
    return objective, output_activity(y, u, old, BY), wrong


def output_current_case() -> Case:
    v, response = draw(ROWS, 3), draw(ROWS, 3, seed=1)

    def objective(u: Tensor) -> Tensor:
        return BY.activation * squared(v - u) + BY.current * squared(u - response)

    return objective, output_current(v, response, BY), (v + response) / 2


def hidden_activity_case() -> Case:
    above, u, here = layer(5, 4), draw(ROWS, 5), draw(ROWS, 4)

    def objective(v: Tensor) -> Tensor:
        reached = BY.current * squared(here - above(v))
        return BY.activation * squared(v - u.relu()) + reached

    linear = copy.deepcopy(above)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        return (
            objective,
            hidden_activity(u, here, above, BY),
            hidden_activity(u, here, linear, BY),
        )


def weight_case() -> Case:
    made, v, u = layer(5, 4), draw(ROWS, 5), draw(ROWS, 4)
    old = torch.cat((made.weight, made.bias[:, None]), 1).detach()
    ones = torch.cat((v, torch.ones(ROWS, 1, dtype=torch.float64)), 1)

    def objective(both: Tensor) -> Tensor:
        return BY.current * squared(u - ones @ both.T) + BY.inertia * squared(both - old)

    with torch.no_grad():
        weight, bias = solved(made, v, u, BY)
        assert bias is not None
        other = solved(made, v, u, Penalties(BY.activation, BY.current, 2 * BY.inertia))
    assert other[1] is not None
    found = [torch.cat((w, b[:, None]), 1) for w, b in ((weight, bias), (other[0], other[1]))]
    return objective, found[0], found[1]


CASES = {
    "output activity": output_activity_case,
    "output current": output_current_case,
    "hidden activity": hidden_activity_case,
    "weight": weight_case,
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_where_the_gradient_vanishes(name: str) -> None:
    objective, found, wrong = CASES[name]()
    sizes = []
    for values in (found, wrong):
        values = values.detach().clone().requires_grad_()
        sizes.append(torch.autograd.grad(objective(values), values)[0].abs().max())
    assert sizes[0] < 1e-8 and sizes[1] > 1e-3


def test_a_layer_without_bias() -> None:
    made, v, u = layer(5, 4, bias=False), draw(ROWS, 5), draw(ROWS, 4)
    weight, bias = solved(made, v, u, BY)
    gradient = BY.current * (weight @ v.T - u.T) @ v + BY.inertia * (weight - made.weight)
    assert bias is None and gradient.abs().max() < 1e-8


def test_hidden_currents_against_brute_force() -> None:
    """On a grid no current is better; the branch above zero alone would not do."""
    values = torch.linspace(-2, 2, 9, dtype=torch.float64)
    v, response, old = (part.flatten() for part in torch.meshgrid(*[values] * 3, indexing="ij"))

    def cost(u: Tensor) -> Tensor:
        apart = BY.activation * (v - u.relu()).square()
        return apart + BY.current * (u - response).square() + BY.inertia * (u - old).square()

    best = torch.stack([cost(u) for u in torch.linspace(-4, 4, 8001, dtype=torch.float64)]).min(0)[
        0
    ]
    found = cost(hidden_current(v, response, old, BY))
    assert (found <= best + 1e-12).all() and (found >= best - 1e-5).all()
    centre = (BY.current * response + BY.inertia * old) / (BY.current + BY.inertia)
    for wrong in (centre, centre.relu(), centre.clamp(max=0)):
        assert (cost(wrong) > best + 1e-3).any()


def network(bias: bool = True) -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Linear(6, 7, bias),
            nn.ReLU(inplace=True),
            nn.Linear(7, 5, bias),
            nn.ReLU(),
            nn.Linear(5, 3, bias),
        )
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("by", [BY, Penalties(), Penalties(3.0, 0.2, 1e-3)], ids=str)
def test_the_objective_never_rises(by: Penalties, bias: bool) -> None:
    descent = BlockCoordinate(network(bias), *batch(32), by)
    found = [descent.objective()]
    for _ in range(25):
        descent.sweep()
        found.append(descent.objective())
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found))
    assert found[-1] < 0.7 * found[0]


@torch.no_grad()
def test_the_objective_is_that_of_its_definition() -> None:
    made, (inputs, targets) = network(), batch(32)
    descent = BlockCoordinate(made, inputs, targets, BY)
    outputs = made(inputs)
    label = nn.functional.one_hot(targets, 3)
    assert descent.objective() == pytest.approx(float(squared(outputs - label)), rel=1e-12)
    v, u = draw(32, 7), draw(32, 7, seed=1)
    descent.links[0].activity, descent.links[0].current = v, u
    one, two = made[0](inputs), made[2](v)  # type: ignore[index, operator]
    more = BY.activation * squared(v - u.relu()) + BY.current * squared(u - one)
    more = more + BY.current * squared(descent.links[1].current - two)
    expected = float(squared(outputs - label) + more)
    assert descent.objective() == pytest.approx(expected, rel=1e-12)


def test_targets_may_be_vectors() -> None:
    inputs, targets = batch(16)
    one, other = network(), network()
    BlockCoordinate(one, inputs, targets).sweep()
    BlockCoordinate(other, inputs, nn.functional.one_hot(targets, 3).float()).sweep()
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(network().parameters()))


def refused() -> dict[str, nn.Module]:
    frozen = network()
    frozen[2].requires_grad_(False)  # type: ignore[index, operator]
    return {
        "tanh": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "dropout": nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)),
        "convolution": nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 6), nn.Flatten()),
        "softmax": nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)),
        "residual": Residual(),
        "frozen": frozen,
    }


@pytest.mark.parametrize("name", refused())
def test_what_is_no_chain_is_refused(name: str) -> None:
    made = refused()[name].double()
    hooks = sum(len(part._forward_hooks) for part in made.modules())
    with pytest.raises(CapabilityError, match="block coordinate descent"):
        BlockCoordinate(made, *batch())
    assert sum(len(part._forward_hooks) for part in made.modules()) == hooks


def test_penalties_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"^Penalties: inertia"):
        Penalties(inertia=0.0)


def test_nothing_is_left_on_the_network() -> None:
    made = network()
    keys = list(made.state_dict())
    chain(made, *batch())
    assert list(made.state_dict()) == keys
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())


def test_digits() -> None:
    dataset = data.load(load_dataset("digits"), name="digits")
    settings = ["network.hidden=[100, 100, 100]", "network.gain=1.0"]
    made = biograd.build(load_model("ann", assignments=settings), dataset.shape, 10)
    descent = BlockCoordinate(made, dataset.train.inputs, dataset.train.targets)
    for _ in range(20):
        descent.sweep()
    with torch.no_grad():
        found = made(dataset.test.inputs).argmax(1) == dataset.test.targets
    assert found.float().mean() > 0.93
