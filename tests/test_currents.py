"""Layers that feed one current share its noise; where inputs vary, every step has its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.engine import Engine
from biograd.estimators import Estimator
from biograd.recipes import load_model

STEPS, FEATURES, UNITS = 6, 4, 7
RULES: dict[str, Callable[..., Estimator]] = {
    "weak": lambda **given: biograd.WeakGradient(65, 0.02, method="antithetic", **given),
    "node_perturbation": lambda **given: biograd.NodePerturbation(65, 0.02, **given),
    "likelihood_ratio": lambda **given: biograd.LikelihoodRatio(65, 0.05, **given),
    "forward_gradient": lambda **given: biograd.ForwardGradientActivity(64, **given),
}


class Recurrent(nn.Module):
    """A recurrent network in a loop of its own.

    Args:
        order: in which the two layers are called in a step.
        late: the recurrent layer is not called in the first step.
        still: the inputs of the first step are those of every step.
    """

    def __init__(self, order: str = "feed first", late: bool = False, still: bool = False) -> None:
        super().__init__()
        self.order, self.late, self.still = order, late, still
        self.feed = nn.Linear(FEATURES, UNITS)
        self.back = nn.Linear(UNITS, UNITS, bias=False)
        self.readout = nn.Linear(UNITS, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), UNITS)
        for step, now in enumerate(inputs.view(len(inputs), STEPS, FEATURES).unbind(1)):
            given = inputs.view(len(inputs), STEPS, FEATURES)[:, 0] if self.still else now
            if self.late and not step:
                state = torch.tanh(self.feed(given))
            elif self.order == "feed first":
                state = torch.tanh(self.feed(given) + self.back(state))
            else:
                state = torch.tanh(self.back(state) + self.feed(given))
        found: Tensor = self.readout(state)
        return found


class Spiking(Recurrent):
    """The same with a threshold that nothing can be differentiated through."""

    def forward(self, inputs: Tensor) -> Tensor:
        state = spikes = total = inputs.new_zeros(len(inputs), UNITS)
        for now in inputs.view(len(inputs), STEPS, FEATURES).unbind(1):
            state = 0.8 * state * (1 - spikes) + self.feed(now) + self.back(spikes)
            spikes = (state > 0.3).to(state.dtype)
            total = total + spikes
        found: Tensor = self.readout(total)
        return found


class Residual(nn.Module):
    """A block whose shortcut is a layer; twins behind it have equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = nn.Linear(24, 5), nn.Linear(5, 6)
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 6)
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.right.load_state_dict(self.left.state_dict())
        self.readout = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        start = torch.tanh(self.stem(inputs))
        block = torch.tanh(self.shortcut(start) + self.two(torch.relu(self.one(start))))
        twins = torch.tanh(self.left(block)) + torch.tanh(self.right(block))
        found: Tensor = self.readout(twins)
        return found


def data() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, STEPS * FEATURES, generator=stream, dtype=torch.float64)
    return inputs, torch.tensor([0, 2, 1, 2])


def prepared(network: nn.Module, rule: Estimator, **given: object) -> Engine:
    torch.manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not isinstance(network, Residual):
            layer.reset_parameters()
    engine = biograd.attach(network.double(), rule, **given)  # type: ignore[arg-type]
    engine.prepare(*data())
    return engine


def layers(engine: Engine) -> list[tuple[str, ...]]:
    return [site.modules for site in engine.substrate.sites]


APART = {"feed": ["feed"], "back": ["back"], "readout": ["readout"]}
JOINT = [("feed", "back"), ("readout",)]


@pytest.mark.parametrize("rule", RULES)
def test_layers_that_feed_one_current_are_one_site(rule: str) -> None:
    assert layers(prepared(Recurrent(), RULES[rule]())) == JOINT
    other = layers(prepared(Recurrent("back first"), RULES[rule]()))
    assert other == [("back", "feed"), ("readout",)]


def test_joining_needs_no_derivative() -> None:
    assert layers(prepared(Spiking(), RULES["weak"]())) == JOINT


def test_a_shortcut_is_joined_and_twins_are_not() -> None:
    engine = prepared(Residual(), RULES["weak"]())
    found = [set(modules) for modules in layers(engine)]
    assert {"shortcut", "two"} in found
    assert {"left"} in found and {"right"} in found and {"one"} in found


@pytest.mark.parametrize("sites", [APART, [biograd.Site(n, (n,), (False,)) for n in APART]])
def test_what_is_given_in_full_stays(sites: object) -> None:
    assert layers(prepared(Recurrent(), RULES["weak"](), sites=sites)) == [
        ("feed",),
        ("back",),
        ("readout",),
    ]


@pytest.mark.parametrize("rule", [biograd.Backpropagation, biograd.FrozenHidden])
def test_rules_without_noise_keep_their_sites(rule: Callable[[], Estimator]) -> None:
    assert len(layers(prepared(Recurrent(), rule()))) == 3


@pytest.mark.parametrize("order", ["feed first", "back first"])
def test_a_layer_that_begins_in_the_second_step_shares_the_current(order: str) -> None:
    """Every coordinate's own difference is the gradient, so that each step has its own credit."""
    engine = prepared(
        Recurrent(order, late=True),
        biograd.WeakGradient(2 * STEPS * UNITS + 1, 1e-3, method="central_difference"),
    )
    assert layers(engine) == JOINT
    inputs, targets = data()
    engine(inputs, targets).backward()
    found = hidden(engine.network)
    engine.network.zero_grad()
    functional.cross_entropy(engine.detach()(inputs), targets).backward()
    assert torch.allclose(found, hidden(engine.network), atol=1e-5)


def gradients(network: nn.Module, rule: Estimator, draws: int, **given: object) -> Tensor:
    """Return the hidden layers' estimates, ``[draws, parameters]``."""
    engine, found = prepared(network, rule, **given), []
    for _ in range(draws):
        network.zero_grad()
        engine(*data()).backward()
        found.append(hidden(network))
    return torch.stack(found)


def hidden(network: nn.Module) -> Tensor:
    named = network.named_parameters()
    grads = [p.grad.flatten() for n, p in named if "readout" not in n and p.grad is not None]
    return torch.cat(grads)


def truth(network: nn.Module) -> Tensor:
    network.zero_grad()
    inputs, targets = data()
    functional.cross_entropy(network(inputs), targets).backward()
    return hidden(network)


@pytest.mark.parametrize("rule", RULES)
def test_the_default_is_unbiased_where_inputs_vary(rule: str) -> None:
    network = Recurrent()
    found = gradients(network, RULES[rule](), 60)
    expected = truth(network)
    slopes = found @ expected / (expected @ expected)
    assert abs(slopes.mean() - 1) < 4 * slopes.std() / 60**0.5 + 0.03
    trial = gradients(network, RULES[rule](time_bin="trial"), 60)  # the negative control
    assert (trial @ expected / (expected @ expected)).mean() < 0.5


def test_one_noise_for_one_current_varies_less() -> None:
    one, two = (
        gradients(Recurrent(), RULES["node_perturbation"](), 60, **given)
        for given in ({}, {"sites": APART})
    )
    assert 1.3 * one.var(0).sum() < two.var(0).sum()


def test_what_does_not_vary_keeps_its_noise() -> None:
    engine = prepared(Recurrent(still=True), RULES["weak"]())
    assert not engine.varying
    static = biograd.attach(biograd.build("spiking", 24, 3), RULES["weak"]())
    static.prepare(data()[0].float(), data()[1])
    assert not static.varying


VARYING = {"rows": True, "delta": True, "given": True, "current": False, "poisson": False}


@pytest.mark.parametrize("kind", VARYING)
def test_what_a_step_tells_of_decides(kind: str) -> None:
    """Spikes of a datum that stands still differ between steps, and tell of the same."""
    recipe = load_model("spiking", over={"encoding": {"kind": kind, "gain": 1.0}})
    engine = biograd.attach(biograd.build(recipe, (1, 8, 8), 3), RULES["weak"]())
    shape = (4, 20, 1, 8, 8) if kind == "given" else (4, 1, 8, 8)
    engine.prepare(torch.rand(shape), data()[1])
    assert engine.varying == VARYING[kind]


def test_a_probe_names_the_noise() -> None:
    said = str(biograd.probe(prepared(Recurrent(), RULES["weak"]()), *data(), draws=4))
    assert "noise is constant over 1 of 6 steps" in said
    assert "feed, back feed one current: one noise" in said
    frozen = biograd.probe(prepared(Recurrent(), RULES["weak"](time_bin="trial")), *data())
    assert "noise is constant over the whole trial, 6 of 6 steps" in str(frozen)
    assert any("set time_bin = 1" in line for line in frozen.advice())
    assert "noise is constant" not in str(
        biograd.probe(prepared(Recurrent(), biograd.Backpropagation()), *data(), draws=2)
    )


# A decision over time ----------------------------------------------------------------------------


class Decision(nn.Module):
    """24 units that add up what a mask lets count."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.back = nn.Linear(2, 24), nn.Linear(24, 24, bias=False)
        self.readout = nn.Linear(24, 2)
        nn.init.orthogonal_(self.back.weight, 0.9)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 24)
        for now in inputs.unbind(1):
            state = torch.tanh(self.feed(now) + self.back(state))
        found: Tensor = self.readout(state)
        return found


def evidence(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return evidence with a mask, ``[count, 10, 2]``, and which side had more of what counts."""
    stream = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 10, 1, generator=stream)
    mask = (torch.rand(count, 10, 1, generator=stream) < 0.5).float()
    mask[:, -2:] = 0  # a delay
    return torch.cat((values, mask), 2), ((values * mask).sum((1, 2)) > 0).long()


def decided(rule: Estimator, **given: object) -> float:
    """Return the share of right decisions after 250 steps."""
    torch.manual_seed(0)
    network = Decision()
    inputs, targets = evidence(2000, 1)
    engine = biograd.attach(network, rule, **given)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    stream = torch.Generator().manual_seed(0)
    for _ in range(250):
        rows = torch.randint(2000, (64,), generator=stream)
        engine(inputs[rows], targets[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
    engine.detach()
    inputs, targets = evidence(2000, 99)
    return float((network(inputs).argmax(1) == targets).float().mean())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_rule_by_noise_decides_worse_than_frozen_layers() -> None:
    frozen = decided(biograd.FrozenHidden())
    for rule in (biograd.WeakGradient, biograd.NodePerturbation, biograd.LikelihoodRatio):
        assert decided(rule()) > frozen + 0.05, rule
    apart = decided(biograd.LikelihoodRatio(time_bin="trial"), sites=APART)
    assert apart < frozen + 0.03  # the negative control: noise frozen over the trial, two of them
