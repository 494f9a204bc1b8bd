"""Networks that torch runs in other ways than a hook expects: obeyed, or refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import biograd
from biograd.estimators import ESTIMATORS

DRAW = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.rand(16, 6, generator=DRAW), torch.arange(16) % 3
FEEDBACK = ["feedback_alignment", "sign_symmetry", "weight_mirror", "kolen_pollack"]
PERTURBING = ["weak", "node_perturbation", "likelihood_ratio", "gain", "forward_gradient_activity"]


class Three(nn.Module):
    """Three linear layers; ``way`` is what lies between the first and the last."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor] = lambda net, h: net.b(h).tanh()):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.out(self.way(self, self.a(x).tanh()))


def made(way: Callable[[Any, Tensor], Tensor] | None = None, **parts: Any) -> Three:
    """Return the network with the same weights as every other, and further parts."""
    torch.manual_seed(0)
    network = Three() if way is None else Three(way)
    for name, part in parts.items():
        setattr(network, name, part)
    return network


def step(network: nn.Module, rule: str, **options: Any) -> dict[str, Tensor | None]:
    """Return the gradients of one step."""
    engine = biograd.attach(network, ESTIMATORS[rule](), seed=1, **options)
    engine(INPUTS, TARGETS).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def by_keyword(net: Any, h: Tensor) -> Tensor:
    """Return what the middle layer makes of an input that it gets by name."""
    return net.b(input=h).tanh()


def reentrant(net: Any, h: Tensor) -> Tensor:
    """Return the middle layer's activity, of which torch keeps nothing."""
    return checkpoint(lambda z: net.b(z).tanh(), h, use_reentrant=True)


def recomputed(net: Any, h: Tensor) -> Tensor:
    """Return the middle layer's activity, which torch computes again on the way back."""
    return checkpoint(lambda z: net.b(z).tanh(), h, use_reentrant=False)


def mapped(net: Any, h: Tensor) -> Tensor:
    """Return the middle layer's activity, row by row."""
    return torch.vmap(net.b)(h).tanh()


def of_energy(net: Any, h: Tensor) -> Tensor:
    """Return a step down the gradient of an energy."""
    with torch.enable_grad():
        h = h if h.requires_grad else h.detach().requires_grad_()
        energy = net.b(h).square().sum()
        return h - torch.autograd.grad(energy, h, create_graph=True)[0]


@pytest.mark.parametrize("rule", [*FEEDBACK, "direct_feedback", "eprop", "weak", "backprop"])
def test_an_input_by_keyword_is_an_input(rule: str) -> None:
    """Feedback that a hook does not see would be the transposed weights: back-propagation."""
    found, wanted = step(made(by_keyword), rule), step(made(), rule)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("rule", [*FEEDBACK, "direct_feedback", "forward_forward", "gain"])
def test_what_is_computed_again_escapes_the_rule(rule: str) -> None:
    with pytest.raises(biograd.CapabilityError, match=r"b is called inside of torch\.utils\.check"):
        step(made(recomputed), rule)


@pytest.mark.parametrize("rule", ["backprop", "weak", "weight_perturbation", "frozen_hidden"])
def test_what_changes_no_graph_may_be_computed_again(rule: str) -> None:
    found, wanted = step(made(recomputed), rule), step(made(), rule)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("rule", ["backprop", "weak", "direct_feedback", "weight_perturbation"])
@pytest.mark.parametrize(
    ("way", "words"),
    [
        (reentrant, "b is called inside of a reentrant torch.utils.checkpoint.*use_reentrant"),
        (mapped, "b is called inside of torch.vmap"),
        (of_energy, "differentiates in its forward pass"),
    ],
)
def test_transformed_layers_are_refused_with_the_reason(way: Any, words: str, rule: str) -> None:
    with pytest.raises(biograd.CapabilityError, match=words):
        step(made(way), rule)


STRANGERS: dict[str, Callable[[], Three]] = {
    "layers": lambda: made(lambda net, h: net.b(net.layers[0](h)).tanh(), layers=[nn.Linear(8, 8)]),
    "scale": lambda: made(
        lambda net, h: net.b(h * net.scale).tanh(), scale=torch.ones(8, requires_grad=True)
    ),
    "own": lambda: made(
        lambda net, h: net.b(h @ net.own["w"]), own={"w": nn.Parameter(torch.eye(8))}
    ),
}


@pytest.mark.parametrize("rule", ["backprop", "feedback_alignment", "weak", "frozen_hidden"])
@pytest.mark.parametrize("name", STRANGERS)
def test_what_learns_and_is_no_parameter_is_named(name: str, rule: str) -> None:
    with pytest.raises(
        biograd.CapabilityError, match=f"{name} needs a gradient and is no parameter"
    ):
        step(STRANGERS[name](), rule)


def test_a_tensor_without_gradient_may_lie_anywhere() -> None:
    step(made(lambda net, h: net.b(h * net.scale), scale=torch.ones(8)), "feedback_alignment")


def test_a_loss_may_learn_by_itself() -> None:
    weight = torch.ones(3, requires_grad=True)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs * weight, targets, reduction="none")

    step(made(), "feedback_alignment", loss=loss)


@pytest.mark.parametrize("rule", ["backprop", "weak", "weight_perturbation"])
def test_complex_layers_are_refused(rule: str) -> None:
    network = made(lambda net, h: net.c(h.to(torch.cfloat)).abs())
    network.c = nn.Linear(8, 8, dtype=torch.cfloat)
    with pytest.raises(biograd.CapabilityError, match=r"c\.weight is complex"):
        step(network, rule)


@pytest.mark.parametrize("rule", ["backprop", "weak"])
def test_scripted_modules_are_refused(rule: str) -> None:
    network = made()
    network.b = torch.jit.script(network.b)
    with pytest.raises(biograd.CapabilityError, match=r"b is compiled by torch\.jit"):
        step(network, rule)


@pytest.mark.parametrize("rule", PERTURBING)
@pytest.mark.parametrize(
    "way",
    [
        lambda net, h: net.b(torch.softmax(h @ h.T, 1) @ h).tanh(),
        lambda net, h: net.b(h + 0.3 * h.roll(1, 0)).tanh(),
    ],
)
def test_examples_that_see_each_other_are_refused(way: Any, rule: str) -> None:
    """The noise of one would stand in the losses of others, of other copies even."""
    with pytest.raises(biograd.CapabilityError, match="noise at one example"):
        step(made(way), rule)


class Twice(nn.Module):
    """A readout and a way past the hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.skip = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.out(self.a(x).tanh()) + self.skip(x)


@pytest.mark.parametrize(
    "rule", ["frozen_hidden", "forward_forward", "direct_feedback", "target_projection"]
)
def test_a_second_readout_is_no_hidden_layer(rule: str) -> None:
    """The control would freeze it, and other rules would not train it."""
    torch.manual_seed(0)
    with pytest.raises(
        biograd.CapabilityError, match=r"out goes into no other layer.*'out', 'skip'"
    ):
        step(Twice(), rule)
    torch.manual_seed(0)
    found, network = {}, Twice()
    found = step(network, rule, sites={"a": ["a"], "skip": ["out", "skip"]})
    plain = copy.deepcopy(network)
    plain.zero_grad()
    cross_entropy(plain(INPUTS), TARGETS).backward()
    torch.testing.assert_close(found["out.weight"], plain.out.weight.grad)
    torch.testing.assert_close(found["skip.weight"], plain.skip.weight.grad)


def sometimes(net: Any, h: Tensor) -> Tensor:
    """Return the middle layer's activity for bright inputs, else nothing of it."""
    return net.b(h).tanh() if net.bright else h


@pytest.mark.parametrize("rule", ["weak", "direct_feedback", "predictive_coding", "backprop"])
def test_layers_that_are_called_now_and_then(rule: str) -> None:
    network = made(sometimes, bright=False)
    engine = biograd.attach(network, ESTIMATORS[rule]())
    engine(INPUTS, TARGETS)
    network.bright = True
    with pytest.raises(biograd.CapabilityError, match="layer b is called in this pass"):
        engine(INPUTS, TARGETS)


@pytest.mark.parametrize(
    "rule", ["weak", "direct_feedback", "predictive_coding", "forward_forward"]
)
def test_layers_that_are_left_out_later(rule: str) -> None:
    network = made(sometimes, bright=True)
    engine = biograd.attach(network, ESTIMATORS[rule]())
    engine(INPUTS, TARGETS)
    network.bright = False
    with pytest.raises(biograd.CapabilityError, match="layer b is not called in this pass"):
        engine(INPUTS, TARGETS)


@pytest.mark.parametrize("rule", ["backprop", "feedback_alignment", "weight_perturbation"])
def test_rules_of_whole_passes_follow_layers_that_are_left_out(rule: str) -> None:
    network = made(sometimes, bright=True)
    engine = biograd.attach(network, ESTIMATORS[rule]())
    engine(INPUTS, TARGETS)
    network.bright = False
    engine(INPUTS, TARGETS).backward()
    assert network.a.weight.grad is not None


def hebbian(net: Any, h: Tensor) -> Tensor:
    """Return the middle layer's activity; its weights learn by themselves."""
    with torch.no_grad():
        net.b.weight += 1e-2 * h.T @ h / len(h)
    return net.b(h).tanh()


def test_weights_that_learn_in_the_forward_pass_are_as_before() -> None:
    network = made(hebbian)
    before = network.b.weight.detach().clone()
    engine = biograd.attach(network, biograd.FeedbackAlignment())
    engine.prepare(INPUTS, TARGETS)
    assert torch.equal(network.b.weight, before)
    network(INPUTS)
    assert not torch.equal(network.b.weight, before)


def test_weights_that_learn_in_the_forward_pass_are_a_state() -> None:
    with pytest.raises(biograd.CapabilityError, match=r"state from pass to pass \(b\.weight\)"):
        step(made(hebbian), "weak")
