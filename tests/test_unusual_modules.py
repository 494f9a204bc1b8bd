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
from biograd.errors import CapabilityError
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


def test_one_loss_may_be_that_of_all_examples() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets).expand(len(outputs))

    step(made(), "node_perturbation", loss=loss)


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


class Named(nn.Linear):
    """A layer that takes its input by name alone."""

    def forward(self, *, current: Tensor) -> Tensor:
        """Return the response."""
        return nn.Linear.forward(self, current)


class Scaled(nn.Linear):
    """A layer that is told a factor with every call, by place or by name."""

    def forward(self, current: Tensor, factor: float = 1.0) -> Tensor:
        """Return the response, times the factor."""
        return nn.Linear.forward(self, current) * factor


@pytest.mark.parametrize("rule", [*FEEDBACK, "weak", "likelihood_ratio"])
def test_what_else_a_layer_is_given_is_given_again(rule: str) -> None:
    def same(layer: nn.Module, way: Any, plainly: Any) -> None:
        layer.load_state_dict(made().b.state_dict())
        found = step(made(way, b=layer), rule)
        plain = step(made(plainly), rule)
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)

    same(Named(8, 8), lambda net, h: net.b(current=h).tanh(), lambda net, h: net.b(h).tanh())
    doubled = [lambda net, h: net.b(h, 2.0).tanh(), lambda net, h: net.b(h, factor=2.0).tanh()]
    for way in doubled if rule != "weight_mirror" else ():  # which takes 2 W for W
        if rule in ("weak", "likelihood_ratio"):  # noise follows the size of the current
            step(made(way, b=Scaled(8, 8)), rule)
            continue
        same(Scaled(8, 8), way, lambda net, h: (net.b(h) * 2.0).tanh())


@pytest.mark.parametrize("rule", sorted(ESTIMATORS))
def test_inputs_that_a_network_changes_are_refused_and_stay(rule: str) -> None:
    network, inputs = nn.Sequential(nn.ELU(inplace=True), nn.Linear(6, 8), nn.Linear(8, 3)), -INPUTS
    engine = biograd.attach(network, ESTIMATORS[rule]())
    with pytest.raises(CapabilityError, match="changes its inputs in place"):
        engine.prepare(inputs, TARGETS)
    assert torch.equal(inputs, -INPUTS)
    network[0] = nn.ELU()


def clipped(net: Any, h: Tensor) -> Tensor:
    """Clip the middle layer's weights in place, and return its activity."""
    with torch.no_grad():
        net.b.weight.clamp_(-0.2, 0.2)
    return net.b(h).tanh()


def test_weights_that_are_clipped_on_the_way() -> None:
    for rule in ("backprop", "weak", "feedback_alignment", "predictive_coding"):
        assert step(made(clipped), rule)["a.weight"] is not None
    with pytest.raises(CapabilityError, match=r"changes b\.weight in place"):
        step(made(clipped), "gain")
    own = nn.Parameter(torch.ones(8))
    with pytest.raises(CapabilityError, match=r"changes b\.weight in place"):
        step(made(lambda net, h: clipped(net, h * net.own), own=own), "weak", outside="exact")


TRANSPORTING = [
    "direct_feedback", "target_projection", "forward_forward", "kickback", "eprop",
    "synthetic_gradient", "frozen_hidden",
]  # fmt: skip


@pytest.mark.parametrize("rule", TRANSPORTING)
def test_layers_that_are_frozen_or_cut_off_make_no_outputs(rule: str) -> None:
    network = made()
    network.a.requires_grad_(False)
    given = step(network, rule)
    assert given["out.weight"] is not None and given["a.weight"] is None
    assert step(made(lambda net, h: net.b(h.detach()).tanh()), rule)["out.weight"] is not None
    with pytest.raises(CapabilityError, match="would train nothing"):
        step(WithoutGraph(), rule)


class WithoutGraph(Three):
    """A network whose outputs have no graph."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        with torch.no_grad():
            return super().forward(x)


class Inference(Three):
    """A network that runs in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        with torch.inference_mode():
            return super().forward(x)


@pytest.mark.parametrize("rule", ["backprop", "weak", "forward_gradient_weight", "eprop"])
def test_inference_mode_is_no_silent_zero(rule: str) -> None:
    with pytest.raises(CapabilityError, match=r"nothing|depends on no parameter"):
        step(Inference(), rule)


class Charged(Three):
    """A network that keeps its middle activity, graph and all, unless it is told not to."""

    def __init__(self) -> None:
        super().__init__(lambda net, h: net.b(h + (0 if net.held is None else net.held)).tanh())
        self.held: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        h = self.way(self, self.a(x).tanh())
        self.held = h
        return self.out(h)


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "feedback_alignment"])
def test_a_state_with_its_graph_is_named(rule: str) -> None:
    engine = biograd.attach(Charged(), ESTIMATORS[rule]())
    with pytest.raises(CapabilityError, match=r"keeps a state with its graph.*held"):
        for _ in range(2):
            engine(INPUTS, TARGETS).backward()


def test_an_own_reset_between_steps_serves() -> None:
    network = Charged()
    engine = biograd.attach(network, biograd.Backpropagation())
    for _ in range(2):
        network.held = None
        engine(INPUTS, TARGETS).backward()


@pytest.mark.parametrize("rule", ["target_projection", "direct_feedback"])
def test_a_readout_may_have_more_units_than_there_are_outputs(rule: str) -> None:
    class Part(Three):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :3]

    network = Part()
    network.out = nn.Linear(8, 7)
    assert step(network, rule)["a.weight"].any()  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", ["synthetic_gradient", "direct_feedback", "kickback", "eprop"])
def test_channels_last(rule: str) -> None:
    network = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(),
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain = step(copy.deepcopy(network), rule)
    found = step(network.to(memory_format=torch.channels_last), rule)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient)


def test_norms_that_do_not_learn_tie_no_examples() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    rule = biograd.LikelihoodRatio()
    with pytest.raises(CapabilityError, match="ties the examples"):
        biograd.attach(network, rule, outside="freeze")
    network[1].eval()
    engine = biograd.attach(network, rule, outside="freeze")
    engine(INPUTS, TARGETS).backward()
    network.train()
    with pytest.raises(CapabilityError, match="ties the examples"):
        engine(INPUTS, TARGETS)


def test_the_readouts_gradient_is_called_by_its_name() -> None:
    def words(rule: str, **options: Any) -> str:
        network = made()
        engine = biograd.attach(network, ESTIMATORS[rule](**options))
        engine.prepare(INPUTS, TARGETS)
        assert engine.account is not None
        return engine.account.of("readout")[0].words

    for rule in ("decoupling", "predictive_coding"):
        assert "exact" not in words(rule)
    assert words("kolen_pollack").endswith("and the decay")
    assert words("kolen_pollack", decay=0.0) == words("weak") == "the exact gradient of the readout"


def test_what_is_outside_learns_exactly_and_does_not_decay() -> None:
    network = made(lambda net, h: nn.functional.linear(net.b(h).tanh(), net.b.weight.T).tanh())
    plain = step(copy.deepcopy(network), "backprop")["b.weight"]
    found = step(network, "kolen_pollack", outside="exact")["b.weight"]
    torch.testing.assert_close(found, plain)


def test_shapes_that_no_longer_fit_are_told_as_they_are() -> None:
    network = made()
    engine = biograd.attach(network, biograd.DirectFeedback())
    engine(INPUTS, TARGETS)
    network.b.weight = nn.Parameter(torch.ones(5, 8))
    network.b.bias = nn.Parameter(torch.ones(5))
    with pytest.raises(CapabilityError, match=r"out \(Linear\): mat1 and mat2 shapes[^:]*$"):
        engine(INPUTS, TARGETS)


def test_forward_mode_is_tried_again_where_other_parameters_are_trained() -> None:
    network = made()
    engine = biograd.attach(network, biograd.ForwardGradientWeight())
    engine(INPUTS, TARGETS)
    nn.utils.parametrizations.weight_norm(network.b)
    with pytest.raises(CapabilityError, match=r"b\.parametrizations\.weight\.0 .* cannot"):
        engine(INPUTS, TARGETS)


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "weak", "weight_perturbation"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_named(mode: Any, rule: str) -> None:
    with mode(), pytest.raises(CapabilityError, match=r"called under torch\.no_grad"):
        step(made(), rule)


def test_of_a_dict_a_key_is_offered() -> None:
    class Keyed(Three):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "other": x}

    with pytest.raises(CapabilityError, match=r"returned dict: .*Outputs\(part='logits'\)"):
        step(Keyed(), "backprop")
    assert step(Keyed(), "weak", outputs=biograd.Outputs(part="logits"))["a.weight"] is not None
