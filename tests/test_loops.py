"""Modules with a loop over the steps in ``forward``: every rule as on the same network built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks_for_tests import Gradients, check_equal
from networks_in_loops import LOOPS, OUTPUTS, ROWS, STEPS, UNITS, Loop, built, data, drawn
from torch import Tensor, nn

import biograd
from biograd.engine import Engine
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator, make
from biograd.tasks import Classes

LAYERS = {
    "first": "blocks.0.synapse",
    "neurons.recurrent": "blocks.0.recurrent",
    "second": "blocks.1.synapse",
    "others.recurrent": "blocks.1.recurrent",
    "readout": "readout",
}
"""Layers of a loop by those of the recipe's network."""
ALIKE = ["dense", "hidden state", "pooled spikes", "recurrent", "filtered", "alpha"]
"""Loops that a recipe can say, too."""
POOLED = [
    biograd.Site("first", ("first",), (False,), activity="neurons"),
    biograd.Site("second", ("second",), (False,), activity="others"),
    biograd.Site("readout", ("readout",), (False,)),
]
NEVER = ("unitwise",)
"""Rules that draw their noise as they meet the thresholds, so that no two networks draw alike."""


def refused(rule: str, course: bool = True) -> str:
    """Return why a rule refuses every spiking loop."""
    if rule == "decoupling":
        return "cannot keep spikes as targets"
    if rule == "forward_forward" and course:
        return "targets must be the numbers of classes"
    return ""


def attached(network: nn.Module, rule: Estimator, **given: Any) -> Engine:
    given.setdefault("task", Classes(outputs=OUTPUTS, timed=getattr(network, "course", True)))
    return biograd.attach(network, rule, **given)


def named(name: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{LAYERS[layer]}.{part}"


def as_built(loop: Loop, name: str) -> nn.Module:
    """Return the recipe's network with a loop's weights."""
    network = built("dense" if name == "hidden state" else name)
    weights = {k: v for k, v in loop.state_dict().items() if k.rpartition(".")[0] in LAYERS}
    missing, unknown = network.load_state_dict({named(k): v for k, v in weights.items()}, False)
    assert not unknown and not any("weight" in key for key in missing)
    return network


def trained(engine: Engine, inputs: Tensor, targets: Tensor, steps: int = 3) -> Gradients:
    """Return the gradients of the last of some steps of descent."""
    engine.prepare(inputs, targets)
    optimiser = torch.optim.SGD(engine.parameters(), 1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        engine(inputs, targets, torch.arange(len(inputs))).backward()
        if step < steps - 1:
            optimiser.step()
        engine.update()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in engine.network.named_parameters()
    }


def check_as_built(name: str, rule: str) -> None:
    """Compare a rule on a loop with the rule on the recipe's network, draw for draw."""
    (inputs, targets), loop = data(), drawn(name)
    network = as_built(loop, name)
    grids = inputs.unflatten(2, (1, 4, 4)) if name == "pooled spikes" else inputs
    assert torch.allclose(network(grids), loop(inputs), atol=1e-12)
    sites = POOLED if name == "pooled spikes" else None
    reason = refused(rule)
    if reason:
        for one, given in ((loop, inputs), (network, grids)):
            with pytest.raises(CapabilityError, match=reason):
                attached(one, make(rule), seed=3).prepare(given, targets)
        return
    found = trained(attached(loop, make(rule), seed=3, sites=sites), inputs, targets)
    expected = trained(attached(network, make(rule), seed=3), grids, targets)
    check_equal({named(k): v for k, v in found.items()}, expected)


@pytest.mark.parametrize("rule", [rule for rule in ESTIMATORS if rule not in NEVER])
@pytest.mark.parametrize("name", ["dense", "recurrent"])
def test_rules_are_those_of_the_network_built_by_recipe(name: str, rule: str) -> None:
    check_as_built(name, rule)


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "weak"])
@pytest.mark.parametrize("name", ["dense", "recurrent"])
def test_decorrelation_is_that_of_the_network_built_by_recipe(name: str, rule: str) -> None:
    (inputs, targets), loop = data(), drawn(name)
    network = as_built(loop, name)
    engines = [
        attached(each, make(rule), seed=3, decorrelate=biograd.Decorrelation("kappa", rate=1e-3))
        for each in (loop, network)
    ]
    found, expected = (trained(engine, inputs, targets) for engine in engines)
    check_equal({named(k): v for k, v in found.items()}, expected)
    plain = trained(attached(drawn(name), make(rule), seed=3), inputs, targets)
    assert not torch.allclose(plain["second.weight"], found["second.weight"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in ESTIMATORS if rule not in NEVER])
@pytest.mark.parametrize("name", [name for name in ALIKE if name not in ("dense", "recurrent")])
def test_rules_are_those_of_other_networks_built_by_recipe(name: str, rule: str) -> None:
    check_as_built(name, rule)


def learns(name: str, rule: str, course: bool) -> bool:
    """Return whether a rule gives every layer that it trains a credit, or refuses as it should."""
    loop = drawn(name)
    loop.course = course
    inputs, targets = data(course)
    engine = attached(loop, make(rule))
    reason = refused(rule, course)
    if rule == "gain" and name in ("convolution", "pooled spikes"):
        reason = "do not match one to one"
    if rule in ("ottt", "sltt") and name == "two exponentials":
        reason = "does not depend on its current in that step"
    if reason:
        with pytest.raises(CapabilityError, match=reason):
            engine(inputs, targets, torch.arange(len(inputs)))
        return False
    found = trained(engine, inputs, targets, 3)
    weights = [f"{layer}.weight" for site in engine.substrate.sites for layer in site.modules]
    for weight in weights if engine.estimator.learns_hidden else weights[-1:]:
        assert found[weight].isfinite().all() and found[weight].any(), weight
    return True


@pytest.mark.slow
@pytest.mark.parametrize("course", [True, False])
@pytest.mark.parametrize("name", [name for name in LOOPS if name != "long short-term"])
def test_at_least_twenty_rules_train_a_loop(name: str, course: bool) -> None:
    done = [rule for rule in ESTIMATORS if learns(name, rule, course)]
    assert len(done) >= 20


@pytest.mark.parametrize("rule", ["direct_feedback", "weak", "sltt"])
def test_a_cell_with_weights_of_its_own_is_named(rule: str) -> None:
    (inputs, targets), loop = data(), drawn("long short-term")
    with pytest.raises(CapabilityError, match=r"does not credit others\.lstm_cell\.weight_ih"):
        attached(loop, make(rule)).prepare(inputs, targets)
    engine = attached(loop, make(rule), outside="freeze")
    found = trained(engine, inputs, targets)
    assert found["first.weight"].any() and not found["others.lstm_cell.weight_ih"].any()


class Cut(Loop):
    """The loop of the dense network with credit cut by hand.

    Args:
        memory: keep what a neuron remembers.
        space: keep what passes between the layers.
    """

    def __init__(self, memory: bool, space: bool) -> None:
        super().__init__()
        self.memory, self.space = memory, space
        self.activities: list[Tensor] = []

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        for place, cell in enumerate((self.neurons, self.others)):
            layer = self.second if place else self.first
            state = states[place] if self.memory else states[place].detach()
            now, states[place] = cell(layer(now), state)
            self.activities.append(now)
            now = now if self.space else now.detach().requires_grad_()
        return now


def by_hand(memory: bool, space: bool) -> Cut:
    network = Cut(memory, space).double()
    network.load_state_dict(drawn("dense").state_dict())
    return network


def gradients_of(network: nn.Module, loss: Tensor) -> Gradients:
    network.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in network.named_parameters()}  # fmt: skip


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def test_sltt_cuts_the_state_before_every_step() -> None:
    inputs, targets = data()
    network = by_hand(memory=False, space=True)
    expected = gradients_of(network, mean_loss(network(inputs), targets))
    found = trained(attached(drawn("dense"), make("sltt")), inputs, targets, 1)
    check_equal(found, expected)
    whole = gradients_of(loop := drawn("dense"), mean_loss(loop(inputs), targets))
    assert not torch.allclose(whole["first.weight"], expected["first.weight"], rtol=1e-2)


def test_direct_feedback_delivers_each_steps_error_to_the_step() -> None:
    inputs, targets = data()
    rule = biograd.DirectFeedback()
    found = trained(attached(drawn("dense"), rule), inputs, targets, 1)
    network = by_hand(memory=True, space=False)
    network.readout.register_forward_hook(lambda *given: given[2].retain_grad())
    currents: list[Tensor] = []
    network.readout.register_forward_hook(lambda *given: currents.append(given[2]))
    expected = gradients_of(network, mean_loss(network(inputs), targets))
    for place, site in enumerate(("first", "second")):
        for activity, current in zip(network.activities[place::2], currents, strict=True):
            activity.backward(current.grad @ rule.matrix(site), retain_graph=True)
    for name, parameter in network.named_parameters():
        expected[name] = parameter.grad
    check_equal(found, expected)


def surrogates() -> dict[str, Callable[[Tensor], Tensor]]:
    from snntorch import surrogate

    kinds = ("atan", "fast_sigmoid", "sigmoid", "triangular", "spike_rate_escape")
    return {kind: getattr(surrogate, kind)() for kind in kinds}


class Step(torch.autograd.Function):
    """A threshold as in SpikingJelly: nothing is kept of an input that needs no gradient."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, width: float) -> Tensor:
        if distance.requires_grad:
            ctx.save_for_backward(distance)
            ctx.width = width
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (distance,) = ctx.saved_tensors
        return gradient / (1 + (ctx.width * distance).square()), None


class Mixes(torch.autograd.Function):
    """A product with a matrix, whose derivative is not diagonal."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return values @ matrix

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (matrix,) = ctx.saved_tensors
        return gradient @ matrix.T, None


MATRIX = torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [*surrogates(), "step", "captured", "mixes"])
def test_functions_without_a_jvp_have_that_of_their_backward(kind: str) -> None:
    from torch.autograd import forward_ad

    from biograd.substrate.losses import forward_mode

    apply = Step.apply  # a bound method, kept from before the pass
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        **surrogates(),
        "step": lambda x: Step.apply(x, 2.0),
        "captured": lambda x: apply(x, 2.0),
        "mixes": lambda x: Mixes.apply(x, MATRIX),
    }
    stream = torch.Generator().manual_seed(0)
    values, tangent = (torch.randn(4, UNITS, generator=stream) for _ in range(2))
    with torch.no_grad(), forward_mode():
        found = functions[kind](forward_ad.make_dual(values, tangent))
        pushed = forward_ad.unpack_dual(found).tangent
    leaf, weights = values.clone().requires_grad_(), torch.randn(4, UNITS, generator=stream)
    (pulled,) = torch.autograd.grad(functions[kind](leaf), leaf, weights)
    assert pushed is not None
    assert torch.allclose((pushed * weights).sum(), (pulled * tangent).sum(), rtol=1e-4)
    assert "apply" not in torch.autograd.Function.__mro__[1].__dict__


def test_the_loop_is_as_it_was_when_the_engine_is_gone() -> None:
    inputs, targets = data()
    loop, before = drawn("recurrent"), drawn("recurrent")(inputs)
    engine = attached(loop, make("direct_feedback"))
    engine.prepare(inputs, targets)
    assert torch.equal(engine.detach()(inputs), before)


def test_layers_that_feed_back_are_told_from_those_that_feed_forward() -> None:
    inputs, targets = data()
    engine = attached(drawn("recurrent"), make("eprop"))
    engine.prepare(inputs, targets)
    sites = {site.modules: site.inner for site in engine.substrate.sites}
    assert sites == {
        ("first", "neurons.recurrent"): ("neurons.recurrent",),
        ("second", "others.recurrent"): ("others.recurrent",),
        ("readout",): (),
    }


def test_measured_slopes_stand_in_for_surrogates_of_other_libraries() -> None:
    """The mean over many draws is a Gaussian surrogate, whatever surrogate the module has."""
    inputs, targets = data()
    network = drawn("dense")
    rule = biograd.UnitwiseGradient(4000, 0.5)
    found = trained(attached(network, rule), inputs, targets, 1)

    def gaussian(distance: Tensor) -> Tensor:
        slope = torch.exp(-2 * distance.detach().square()) * (2 / torch.pi) ** 0.5
        return (distance > 0).to(distance) + slope * (distance - distance.detach())

    other = drawn("dense")
    for cell in (other.neurons, other.others):
        cell.spike_grad = gaussian
    expected = gradients_of(other, mean_loss(other(inputs), targets))
    for name, value in expected.items():
        assert torch.cosine_similarity(found[name].flatten(), value.flatten(), 0) > 0.99, name
    own = gradients_of(network, mean_loss(network(inputs), targets))
    assert not torch.allclose(own["first.weight"], found["first.weight"], rtol=0.05)


@pytest.mark.parametrize("rule", ["ottt", "sltt"])
def test_neurons_that_answer_a_step_later_have_no_credit_within_steps(rule: str) -> None:
    assert not learns("two exponentials", rule, course=True)


class Summed(Loop):
    """Spikes are summed before they are read out."""

    def forward(self, inputs: Tensor) -> Tensor:
        states, total = self.begin(inputs), inputs.new_zeros(len(inputs), UNITS)
        for now in inputs.unbind(1):
            total = total + self.step(now, states)
        found: Tensor = self.readout(total)
        return found


def test_steps_in_one_activity_are_told_apart_by_its_neurons() -> None:
    inputs, targets = data(course=False)
    torch.manual_seed(0)
    network = Summed(course=False).double()
    with pytest.raises(CapabilityError, match="holds several steps at once"):
        attached(network, make("sltt"))(inputs, targets)
    found = trained(attached(network, make("sltt"), sites=POOLED), inputs, targets, 1)
    assert found["first.weight"].any() and found["second.weight"].any()


class Late(nn.Module):
    """A recurrent layer that begins in the second step, called before the other.

    Args:
        cut: what comes back has no credit.
    """

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.course, self.cut = True, cut
        self.readout = nn.Linear(UNITS, OUTPUTS)
        self.back, self.feed = nn.Linear(UNITS, UNITS, bias=False), nn.Linear(16, UNITS)

    def forward(self, inputs: Tensor) -> Tensor:
        state, found = None, []
        for now in inputs.unbind(1):
            if state is None:
                state = torch.tanh(self.feed(now))
            else:
                state = torch.tanh(
                    self.back(state.detach() if self.cut else state) + self.feed(now)
                )
            found.append(self.readout(state))
        return torch.stack(found, 1)


@pytest.mark.parametrize("rule", ["eprop", "sltt", "ottt"])
def test_a_recurrent_layer_may_begin_in_the_second_step(rule: str) -> None:
    inputs, targets = data()
    torch.manual_seed(0)
    network, cut = Late().double(), Late(cut=True).double()
    cut.load_state_dict(network.state_dict())
    engine = attached(network, make(rule))
    found = trained(engine, inputs, targets, 1)
    sites = [(site.modules, site.inner) for site in engine.substrate.sites]
    assert sites == [(("feed", "back"), ("back",)), (("readout",), ())]
    check_equal(found, gradients_of(cut, mean_loss(cut(inputs), targets)))


class Together(nn.Module):
    """One layer of the input and the state together, which is its own feedback."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.depth = depth
        self.layers = nn.ModuleList(nn.Linear(16 + UNITS if not at else 2 * UNITS, UNITS)
                                    for at in range(depth))  # fmt: skip
        self.readout = nn.Linear(UNITS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        states = [inputs.new_zeros(len(inputs), UNITS) for _ in range(self.depth)]
        found = []
        for now in inputs.unbind(1):
            for at, layer in enumerate(self.layers):
                now = states[at] = torch.tanh(layer(torch.cat((now, states[at]), 1)))
            found.append(self.readout(now))
        return torch.stack(found, 1)


def test_a_layer_of_input_and_state_is_its_own_feedback() -> None:
    torch.manual_seed(0)
    network = Together().double()
    inputs, targets = data()
    found = trained(attached(network, make("eprop")), inputs, targets, 1)
    total = torch.zeros(())
    state = inputs.new_zeros(ROWS, UNITS)
    for step, now in enumerate(inputs.unbind(1)):
        state = torch.tanh(network.layers[0](torch.cat((now, state.detach()), 1)))
        total = total + nn.functional.cross_entropy(network.readout(state), targets[:, step])
    check_equal(found, gradients_of(network, total / STEPS))


def test_an_activity_in_which_another_layers_state_lies_is_refused() -> None:
    inputs, targets = data()
    network = Together(depth=2).double()
    with pytest.raises(CapabilityError, match=r"'layers\.0' also holds what site 'layers\.1'"):
        attached(network, make("direct_feedback")).prepare(inputs, targets)


def test_trials_of_several_lengths() -> None:
    inputs, targets = data()
    for rule, reason in (("direct_feedback", ""), ("predictive_coding", "trials of one length")):
        engine = attached(drawn("dense"), make(rule))
        engine.prepare(inputs, targets)
        for steps in (STEPS - 2, STEPS + 2):
            longer = torch.cat((inputs, inputs), 1)[:, :steps]
            labels = torch.cat((targets, targets), 1)[:, :steps]
            if reason:
                with pytest.raises(CapabilityError, match=reason):
                    engine(longer, labels)
            else:
                assert engine(longer, labels).outputs.shape == (ROWS, steps, OUTPUTS)
