"""What a plan asks of the torch substrate: boundaries, slots, clamps, feedback, tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks_for_tests import autograd, batch, build, check_equal, gradients, spiking
from torch import Tensor, nn

import biograd
from biograd.contracts import Objective, ParameterNoise, Plan, Site, Trace, Transport
from biograd.engine import attach
from biograd.errors import CapabilityError
from biograd.estimators import make
from biograd.networks import TorchSubstrate
from biograd.randomness import generator
from biograd.tasks.classes import cross_entropy

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: build("mlp"),
    "grouped_convolution": lambda: build("grouped_convolution"),
    "convolution_1d": lambda: build("convolution_1d"),
    "spiking": lambda: spiking(),
    "spiking_recurrent": lambda: spiking(network={"recurrent": True}),
    "snntorch": lambda: spiking("snntorch"),
}


class Block(nn.Module):
    """A block with a skip past its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.tanh(self.layer(inputs))


def residual() -> tuple[nn.Module, list[Site]]:
    torch.manual_seed(0)
    network = nn.Sequential(Block(), Block(), nn.Linear(6, 3)).double()
    sites = [Site(f"{i}.layer", (f"{i}.layer",), (False,), str(i)) for i in range(2)]
    return network, [*sites, Site("2", ("2",), (False,))]


def run(network: nn.Module, plan: Plan, sites: Any = None, local: Any = None) -> Trace:
    """Run a plan after a first pass that finds the order of the layers."""
    inputs, targets = batch()
    substrate = TorchSubstrate(network, sites)
    encoded = substrate.encode(inputs, generator(1))
    objective = Objective(cross_entropy, local or {})
    substrate.run(Plan(graph=False), encoded, targets, Objective(cross_entropy), generator(0))
    try:
        return substrate.run(plan, encoded, targets, objective, generator(0))
    finally:
        substrate.close()


def hidden(network: nn.Module, sites: Any = None) -> list[str]:
    return list(run(network, Plan(), sites).sites)[:-1]


def grad(outputs: Any, inputs: Any, cotangent: Any = None) -> Any:
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True)


# Boundaries and slots -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_chain_of_slots_is_backpropagation(name: str) -> None:
    """What arrives in a slot, carried block by block, gives the gradient of plain autograd."""
    network = NETWORKS[name]()
    names = hidden(network)
    trace = run(network, Plan(boundaries=frozenset(names), slots=True))
    whole = run(network, Plan())
    parameters = list(network.parameters())
    expected = grad(whole.loss, parameters)
    total = list(grad(trace.loss, parameters))
    (arriving,) = grad(trace.loss, trace.sites[names[-1]].slot)
    for place in reversed(range(len(names))):
        activity = trace.sites[names[place]].activity
        for index, value in enumerate(grad(activity, parameters, arriving)):
            if value is not None:
                total[index] = value if total[index] is None else total[index] + value
        if place:
            (arriving,) = grad(activity, trace.sites[names[place - 1]].slot, arriving)
    for found, value in zip(total, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_passes_a_boundary(name: str) -> None:
    network = NETWORKS[name]()
    names = hidden(network)
    trace = run(network, Plan(boundaries=frozenset(names)))
    layers = [network.get_submodule(name).weight for name in names]
    assert all(value is None for value in grad(trace.loss, layers))
    assert any(value is not None for value in grad(run(network, Plan()).loss, layers))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_clamp_of_the_activity_itself_changes_nothing(name: str) -> None:
    network = NETWORKS[name]()
    first = hidden(network)[0]
    plain = run(network, Plan())
    activity = plain.sites[first].activity
    assert activity is not None
    same = run(network, Plan(clamp={first: activity.detach()}))
    assert torch.equal(same.outputs, plain.outputs)
    other = run(network, Plan(clamp={first: activity.detach() + 1}, slots=True))
    assert not torch.equal(other.outputs, plain.outputs)
    assert torch.equal(other.sites[first].activity, activity)
    assert grad(other.loss, other.sites[first].slot)[0] is not None


def test_both_branches_of_a_skip_are_cut() -> None:
    network, sites = residual()
    trace = run(network, Plan(boundaries=frozenset(("0.layer", "1.layer"))), sites)
    weights = [network[0].layer.weight, network[1].layer.weight]
    assert grad(trace.loss, weights) == (None, None)
    assert grad(trace.sites["1.layer"].activity.sum(), weights)[0] is None


def test_a_connection_past_a_boundary_is_refused() -> None:
    network, _sites = residual()
    estimator = make("frozen_hidden")
    estimator.plans = lambda round: (Plan(boundaries=frozenset(round.hidden)),)  # type: ignore
    with pytest.raises(CapabilityError, match=r"passes by the activity of site '0\.layer'"):
        attach(network, estimator)(*batch())
    network, sites = residual()
    attach(network, estimator, sites=sites)(*batch())


def test_an_activity_in_a_loop_must_be_named() -> None:
    estimator = make("frozen_hidden")
    estimator.plans = lambda round: (Plan(boundaries=frozenset(round.hidden)),)  # type: ignore
    with pytest.raises(CapabilityError, match="also holds what site 'recurrent'"):
        attach(build("recurrent_cell"), estimator)(*batch())


def test_detached_layers_pass_no_credit_to_their_input() -> None:
    network = build("mlp")
    trace = run(network, Plan(detach=frozenset(("2",))))
    first, second = network[0].weight, network[2].weight
    found = grad(trace.loss, [first, second])
    assert found[0] is None and found[1].any()


# Feedback -----------------------------------------------------------------------------------------


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: layer.weight.detach().clone()
        for name, layer in network.named_modules()
        if getattr(layer, "weight", None) is not None
    }


@pytest.mark.parametrize("name", [*NETWORKS, "residual", "tied", "recurrent_cell"])
def test_feedback_by_the_own_weights_is_backpropagation(name: str) -> None:
    def network() -> nn.Module:
        return NETWORKS[name]() if name in NETWORKS else build(name)

    made = network()
    estimator = make("backprop")
    feedback = weights(made)
    estimator.plans = lambda round: (Plan(transport=Transport(feedback=feedback)),)  # type: ignore
    found = gradients(attach(made, estimator), *batch())
    expected = gradients(attach(network(), make("backprop")), *batch())
    check_equal(found, expected, 1e-12)
    feedback |= {name: -value for name, value in feedback.items()}
    with pytest.raises(AssertionError):
        check_equal(gradients(attach(network(), estimator), *batch()), expected, 1e-12)


def test_feedback_does_not_change_the_outputs() -> None:
    network = build("mlp")
    feedback = {name: torch.randn_like(value) for name, value in weights(network).items()}
    bent = run(network, Plan(transport=Transport(feedback=feedback)))
    assert torch.equal(bent.outputs, run(network, Plan()).outputs)


def test_feedback_stands_behind_a_decorrelating_matrix() -> None:
    """With feedback W behind R the credit is that of the layer with the weights W R."""
    network = build("mlp")
    decorrelate = biograd.Decorrelation(rate=0.1)
    estimator = make("backprop")
    engine = attach(network, estimator, decorrelate)
    for _ in range(3):
        engine(*batch())
        engine.update()
    expected = gradients(engine, *batch())
    feedback = weights(network)
    estimator.plans = lambda round: (Plan(transport=Transport(feedback=feedback)),)  # type: ignore
    check_equal(gradients(engine, *batch()), expected, 1e-12)


# Tangents -----------------------------------------------------------------------------------------


class Disguised(nn.Module):
    """A network whose first layer does not receive the very tensor that was encoded."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs + 0)


@pytest.mark.parametrize("kind", ["noise", "tangents"])
def test_what_copies_share_is_computed_once(kind: str) -> None:
    """The first layer receives one copy's inputs, and the losses are as if it received them all."""
    size, rows, found = len(batch()[0]), [], []
    for disguised in (False, True):
        network = build("mlp")
        layers = {n: layer for n, layer in network.named_modules() if isinstance(layer, nn.Linear)}
        first = next(iter(layers.values()))
        first.register_forward_hook(lambda m, i, o: rows.append(len(i[0])))
        whole = Disguised(network) if disguised else network
        stream = generator(3)
        given: Any = {
            ("network." if disguised else "") + name: torch.randn(
                3, size, 1, layer.out_features, generator=stream, dtype=torch.float64
            )
            for name, layer in layers.items()
        }
        trace = run(whole, Plan(graph=False, **{kind: given}))
        found.append(trace.losses if kind == "noise" else trace.slopes)
    assert rows == [size, size, size, size, size, 3 * size]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert found[0].std(0).max() > 1e-3  # the copies differ


@pytest.mark.parametrize("name", ["mlp", "grouped_convolution", "residual", "tied"])
def test_slopes_of_sites_are_inner_products_with_the_gradient(name: str) -> None:
    network = build(name)
    whole = run(network, Plan())
    stream = generator(3)
    tangents, expected = {}, torch.zeros(4, 8, dtype=torch.float64)
    for site in hidden(network):
        current = whole.sites[site].visits[0].outputs[0]
        (gradient,) = grad(whole.loss, current)
        tangent = torch.randn(4, *current.shape, generator=stream, dtype=torch.float64)
        tangents[site] = tangent.unsqueeze(2)
        expected += (8 * gradient * tangent).flatten(2).sum(2)
    trace = run(network, Plan(tangents=tangents))
    torch.testing.assert_close(trace.slopes, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "grouped_convolution", "residual", "tied"])
def test_slopes_of_parameters_are_inner_products_with_the_gradient(name: str) -> None:
    network = build(name)
    parameters = list(network.parameters())
    noise = ParameterNoise((5, 6), (1.0, -2.0))
    trace = run(network, Plan(parameter_tangents=noise))
    truth = grad(run(network, Plan()).loss, parameters)
    for copy, scale in enumerate(noise.scales):
        draws = noise.draw(copy, parameters)
        slope = sum(float((g * d).sum()) for g, d in zip(truth, draws, strict=True)) * scale
        assert trace.slopes is not None
        assert abs(float(trace.slopes[copy].mean()) - slope) < 1e-12


# Local losses -------------------------------------------------------------------------------------


def square(activity: Tensor, targets: Tensor) -> Tensor:
    """A loss of two cells: the first unit's and the others'."""
    values = activity.flatten(1).square()
    return torch.stack((values[:, 0], values[:, 1:].sum(1)), 1)


def test_local_losses_train_their_own_block_alone() -> None:
    network = build("mlp")
    names = hidden(network)
    trace = run(network, Plan(), local=dict.fromkeys(names, square))
    inputs, targets = batch()
    first = torch.tanh(network[0](inputs))
    second = torch.relu(network[2](first.detach()))
    outputs = network[4](second.detach())
    total = first.square().sum(1).mean() + second.square().sum(1).mean()
    total = total + nn.functional.cross_entropy(outputs, targets)
    parameters = list(network.parameters())
    for found, value in zip(grad(trace.loss, parameters), grad(total, parameters), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-14)
    assert trace.local[names[0]].shape == (1, 8, 2)
    assert torch.allclose(trace.losses[0].mean(), nn.functional.cross_entropy(outputs, targets))


def test_slopes_of_local_losses_know_nothing_of_other_blocks() -> None:
    network = build("mlp")
    first, second = hidden(network)
    tangents = {
        first: torch.randn(3, 8, 1, 5, generator=generator(1), dtype=torch.float64),
        second: torch.randn(3, 8, 1, 4, generator=generator(2), dtype=torch.float64),
    }
    local = {first: square, second: square}
    both = run(network, Plan(tangents=tangents), local=local)
    alone = run(network, Plan(tangents={second: tangents[second]}), local=local)
    assert torch.equal(both.local_slopes[second], alone.local_slopes[second])
    assert both.local_slopes[first].any() and not alone.local_slopes[first].any()
    assert both.slopes is not None and not both.slopes.any()  # all stops at the last boundary


def test_noisy_copies_have_local_losses() -> None:
    network = build("mlp")
    first, _second = hidden(network)
    noise = torch.zeros(3, 8, 1, 5, dtype=torch.float64)
    noise[1] = 1
    trace = run(network, Plan(noise={first: noise}), local={first: square})
    assert trace.local[first].shape == (4, 8, 2)
    assert torch.equal(trace.local[first][0], trace.local[first][1])
    assert not torch.equal(trace.local[first][0], trace.local[first][2])


def test_the_error_is_the_gradient_by_the_outputs() -> None:
    trace = run(build("mlp"), Plan(graph=False))
    _inputs, targets = batch()
    expected = (trace.outputs.softmax(1) - nn.functional.one_hot(targets, 3)) / 8
    torch.testing.assert_close(trace.error(), expected, rtol=1e-12, atol=1e-14)


def test_autograd_is_the_oracle() -> None:
    """The helper that the tests compare with agrees with the substrate's own graph."""
    network = build("mlp")
    found = grad(run(network, Plan()).loss, list(network.parameters()))
    expected = autograd(network, *batch())
    for value, reference in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-14)
