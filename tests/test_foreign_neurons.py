"""Neurons of users' own beside biograd's: rules that act in biograd's alone refuse the others.

The negative control: the same networks with biograd's neurons alone, or without memory, are taken,
and their credit is another than back-propagation's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd import Site
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator, make
from biograd.neurons import Leaky
from biograd.simulators.population import Population

ROWS, STEPS, INPUTS, UNITS, OUTPUTS = 9, 6, 4, 5, 3


def batch() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return 2 * torch.rand(ROWS, INPUTS, generator=stream), torch.arange(ROWS) % OUTPUTS


def own(units: int = UNITS) -> Population:
    return Population(Leaky(resistance=8.0), units, STEPS, 1.0)


class Spike(torch.autograd.Function):
    """A threshold with a surrogate derivative of its own."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        ctx.save_for_backward(potential)
        return (potential > 0.2).to(potential)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (potential,) = ctx.saved_tensors
        return gradient / (1 + 5 * (potential - 0.2).abs()) ** 2


class Foreign(nn.Module):
    """Leaky neurons over time, as users write them; ``spiking`` and ``leak`` switch their parts."""

    def __init__(
        self, spiking: bool = True, leak: float = 0.9, axis: int = 1, still: bool = False
    ) -> None:
        super().__init__()
        self.spiking, self.leak, self.axis, self.still = spiking, leak, axis, still

    def forward(self, current: Tensor) -> Tensor:
        currents = [current] * STEPS if self.still else current.unbind(self.axis)
        potential, passed = torch.zeros_like(currents[0]), []
        for now in currents:
            potential = self.leak * potential + now
            spike: Tensor = Spike.apply(potential) if self.spiking else torch.tanh(potential)  # type: ignore[no-untyped-call]
            passed.append(spike)
            potential = potential - 0.2 * spike.detach() if self.spiking else potential
        return torch.stack(passed, self.axis)


class Chain(nn.Module):
    """Parts in a row, the mean over time in the end."""

    def __init__(self, *parts: nn.Module, time: int = 1) -> None:
        super().__init__()
        self.parts, self.time = nn.Sequential(*parts), time

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.parts(inputs).mean(self.time)
        return found


class Course(nn.Module):
    """The same input in every step."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([inputs] * STEPS, self.axis)


class InRows(nn.Module):
    """A layer that sees all steps as rows, and its neurons."""

    def __init__(self, inputs: int, cells: nn.Module) -> None:
        super().__init__()
        self.layer, self.cells = nn.Linear(inputs, UNITS), cells

    def forward(self, inputs: Tensor) -> Tensor:
        current: Tensor = self.layer(inputs.flatten(0, 1))
        found: Tensor = self.cells(current.unflatten(0, inputs.shape[:2]))
        return found


class Branches(nn.Module):
    """Two layers side by side, each with neurons of its own."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.first, self.second = nn.Linear(INPUTS, UNITS), nn.Linear(INPUTS, UNITS)
        self.readout = nn.Linear(2 * UNITS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        currents = self.first(inputs), self.second(inputs)
        both = torch.cat((self.one(currents[0]), self.other(currents[1])), -1)
        found: Tensor = self.readout(both).mean(1)
        return found


class Loop(nn.Module):
    """Layers and neurons by turns in a loop whose readout sees the sum alone."""

    def __init__(self, leak: float = 0.9) -> None:
        super().__init__()
        self.first, self.readout, self.leak = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, 3), leak

    def forward(self, inputs: Tensor) -> Tensor:
        potential, total = inputs.new_zeros(len(inputs), UNITS), inputs.new_zeros(1)
        for _ in range(STEPS):
            potential = self.leak * potential + self.first(inputs)
            total = total + Spike.apply(potential)  # type: ignore[no-untyped-call]
        found: Tensor = self.readout(total)
        return found


def linear(inputs: int = UNITS, outputs: int = UNITS) -> nn.Linear:
    return nn.Linear(inputs, outputs)


FIRST, LAST = (lambda: linear(INPUTS)), (lambda: linear(UNITS, OUTPUTS))
MIXED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "behind": (lambda: Chain(FIRST(), own(), linear(), Foreign(), LAST()), "'parts.2'"),
    "before": (lambda: Chain(Course(), FIRST(), Foreign(), linear(), own(), LAST()), "'parts.1'"),
    "still": (lambda: Chain(FIRST(), Foreign(still=True), linear(), own(), LAST()), "'parts.0'"),
    "one block": (lambda: Chain(FIRST(), own(), Foreign(), LAST()), "'parts.1'"),
    "rows": (
        lambda: Chain(Course(), InRows(INPUTS, own()), InRows(UNITS, Foreign()), LAST()),
        "'parts.2.layer'",
    ),
    "branches": (lambda: Branches(own(), Foreign(still=True)), "'second'"),
    "foreign": (lambda: Chain(Course(), FIRST(), Foreign(), LAST()), "Chain"),
    "steps in front": (lambda: Chain(Course(0), FIRST(), Foreign(axis=0), LAST(), time=0), "Chain"),
    "foreign still": (lambda: Chain(FIRST(), Foreign(still=True), LAST()), "Chain"),
    "foreign branches": (lambda: Branches(Foreign(still=True), Foreign(still=True)), "Branches"),
    "foreign rows": (lambda: Chain(Course(), InRows(INPUTS, Foreign()), LAST()), "Chain"),
    "loop": (Loop, "Loop"),
}
"""Networks with neurons of a user's own, and what a refusal names."""
RULES: dict[str, Callable[[], Estimator]] = {
    "sltt": biograd.SpatialLearningThroughTime,
    "ottt": biograd.OnlineTrainingThroughTime,
    "unitwise": biograd.UnitwiseGradient,
    "window": lambda: biograd.Backpropagation(window=2),
    "windows": lambda: biograd.SyntheticGradient(window=2),
}


def drawn(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return network()


def gradients(network: nn.Module, rule: Estimator, **settings: Any) -> dict[str, Tensor | None]:
    engine = attach(network, rule, **settings)
    engine(*batch()).backward()
    engine.detach()
    found = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MIXED)
def test_neurons_of_a_users_own_are_divided_or_refused_by_name_before_the_first_step(
    name: str, rule: str
) -> None:
    network, word = MIXED[name]
    engine = attach(drawn(network), RULES[rule]())
    try:
        engine.prepare(*batch())
    except CapabilityError as error:
        told = str(error)
        if "window = 2: has no effect" in told:
            assert "'" not in word  # none of biograd's neurons is there
        elif "rows for 9 examples" in told:
            assert "rows" in name or name == "steps in front"
        elif "divided by step" in told:
            assert "name the module of its neurons" in told
        elif rule != "windows" or "no site has a population" not in told:
            assert "back-propagation under another name" in told and word in told
        assert "\n" not in told
    else:
        assert "'" not in word and changed(network, rule)


class Cut(Foreign):
    """The same, without credit through time."""

    def forward(self, current: Tensor) -> Tensor:
        potential, passed = torch.zeros_like(current[:, 0]), []
        for now in current.unbind(1):
            potential = self.leak * potential.detach() + now
            spike: Tensor = Spike.apply(potential)  # type: ignore[no-untyped-call]
            passed.append(spike)
            potential = potential - 0.2 * spike.detach()
        return torch.stack(passed, 1)


def test_neurons_that_take_all_steps_at_once_are_divided_by_step() -> None:
    """The oracle cuts the potential's graph in the neuron itself."""
    whole, cut = (
        drawn(lambda kind=kind: Chain(Course(), FIRST(), kind(), linear(), kind(), LAST()))
        for kind in (Foreign, Cut)
    )
    found = gradients(whole, biograd.SpatialLearningThroughTime())
    expected = gradients(cut, biograd.Backpropagation())
    for name, gradient in expected.items():
        one = found[name]
        assert (
            one is not None and gradient is not None and torch.allclose(one, gradient, 1e-4, 1e-7)
        ), name
    assert changed(lambda: Chain(Course(), FIRST(), Foreign(), LAST()), "sltt")


@pytest.mark.parametrize("rule", ["sltt", "ottt"])
def test_steps_that_are_summed_before_the_next_layer_are_refused(rule: str) -> None:
    network = drawn(lambda: nn.Sequential(Course(), Chain(FIRST(), Foreign()), LAST()))
    with pytest.raises(CapabilityError, match=r"1\.parts\.0.*steps cannot be told apart"):
        attach(network, RULES[rule]()).prepare(*batch())
    memoryless = nn.Sequential(Course(), Chain(FIRST(), Foreign(leak=0.0)), LAST())
    attach(memoryless, RULES[rule]()).prepare(*batch())


def test_channels_are_no_steps() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, OUTPUTS)
    engine = attach(nn.Sequential(*layers), biograd.SpatialLearningThroughTime())
    engine.prepare(torch.rand(ROWS, 1, 4, 4), batch()[1])
    assert not engine.unrolled


def changed(network: Callable[[], nn.Module], rule: str, **settings: Any) -> bool:
    """Return whether a rule gives the first layer another gradient than back-propagation."""
    found = gradients(drawn(network), RULES[rule](), **settings)
    true = gradients(drawn(network), biograd.Backpropagation())
    assert any(gradient is not None and bool(gradient.any()) for gradient in true.values())
    pairs = [(found[name], true[name]) for name in list(true)[:2]]  # OTTT: the bias alone
    return any(
        one is not None and other is not None and not torch.allclose(one, other, 1e-4, 1e-7)
        for one, other in pairs
    )


OWN: dict[str, Callable[[], nn.Module]] = {
    "two": lambda: Chain(FIRST(), own(), linear(), own(), LAST()),
    "skip": lambda: Chain(FIRST(), own(), linear(), nn.Tanh(), LAST()),
    "branches": lambda: Branches(own(), own()),
}


@pytest.mark.parametrize("rule", ["sltt", "unitwise", "window"])
@pytest.mark.parametrize("name", OWN)
def test_biograds_neurons_in_a_users_module_are_trained_as_the_rule_says(
    name: str, rule: str
) -> None:
    assert changed(OWN[name], rule)


def test_without_memory_and_thresholds_all_is_taken() -> None:
    alone = lambda: Chain(Course(), FIRST(), Foreign(leak=0.0), LAST())  # noqa: E731
    beside = lambda: Chain(FIRST(), own(), linear(), Foreign(leak=0.0), LAST())  # noqa: E731
    for network in (alone, beside):
        gradients(drawn(network), biograd.SpatialLearningThroughTime())
        with pytest.raises(CapabilityError, match="thresholds of its own"):
            gradients(drawn(network), biograd.UnitwiseGradient())
    for network in (
        lambda: Chain(Course(), FIRST(), Foreign(False), LAST()),
        lambda: Chain(Course(), FIRST(), nn.ReLU(inplace=True), LAST()),
    ):
        gradients(drawn(network), biograd.UnitwiseGradient())


def test_thresholds_behind_the_last_layer_count() -> None:
    network = drawn(lambda: Chain(FIRST(), own(), LAST(), Foreign()))
    with pytest.raises(CapabilityError, match=r"'parts.2', has thresholds"):
        attach(network, biograd.UnitwiseGradient()).prepare(*batch())


def test_online_training_takes_sites_whose_neurons_are_named() -> None:
    """Without names it says how to name them."""
    wrapped = nn.Sequential(biograd.build("spiking", inputs=INPUTS, classes=OUTPUTS))
    with pytest.raises(CapabilityError, match=r"sites=\[biograd.Site"):
        attach(wrapped, biograd.OnlineTrainingThroughTime()).prepare(*batch())
    network = OWN["two"]
    sites = [
        Site("one", ("parts.0",), (False,), activity="parts.1"),
        Site("two", ("parts.2",), (True,), activity="parts.3"),
        Site("out", ("parts.4",), (True,)),
    ]
    assert changed(network, "ottt", sites=sites)
    mixed = drawn(lambda: Chain(FIRST(), own(), linear(), Foreign(), LAST()))
    for rule in ("ottt", "windows"):
        engine = attach(mixed, RULES[rule](), sites=[sites[0], Site("two", ("parts.2",), (True,)),
                                                     sites[2]])  # fmt: skip
        with pytest.raises(CapabilityError, match=r"behind 'parts.2', runs through time"):
            engine.prepare(*batch())
        engine.detach()


# Settings of time -----------------------------------------------------------------------------


def timed_settings() -> list[tuple[str, str, Any]]:
    """Return each setting of each rule that is about time, with a value that is no default."""
    found = []
    for name, rule in ESTIMATORS.items():
        known = inspect.signature(rule).parameters
        for setting in (*rule.in_time, *rule.in_neurons, *rule.recurrent):
            if setting in known:
                values = {"time_bin": (2, "trial"), "window": (2,), "through_time": (True,)}
                values["tau"] = (5.0,)
                found += [(name, setting, value) for value in values[setting]]
    return found


def test_all_settings_of_time_are_found() -> None:
    assert len(timed_settings()) > 15
    words = re.compile("time|window|bin|step|delay")
    about = {
        (name, setting)
        for name, rule in ESTIMATORS.items()
        for setting in inspect.signature(rule).parameters
        if words.search(setting)
    }
    assert about - {(n, s) for n, s, _ in timed_settings()} == {
        ("decoupling", "steps"),  # of settling
        ("predictive_coding", "steps"),
    }


def still() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, UNITS), nn.Tanh(), nn.Linear(UNITS, OUTPUTS))


@pytest.mark.parametrize(("rule", "setting", "value"), timed_settings())
def test_a_setting_of_time_is_refused_where_nothing_has_time(
    rule: str, setting: str, value: Any
) -> None:
    networks = [still(), biograd.build("ann", inputs=INPUTS, classes=OUTPUTS)]
    for network in networks:
        engine = attach(network, make(rule, {setting: value}))
        with pytest.raises(CapabilityError, match=rf"{setting} = {value!r}: has no effect where"):
            engine.prepare(*batch())


@pytest.mark.parametrize(
    ("rule", "setting", "value"),
    timed_settings(),
)
def test_a_setting_of_time_is_taken_where_something_has(
    rule: str, setting: str, value: Any
) -> None:
    network = biograd.build("spiking_recurrent", inputs=(1, 4, 4), classes=OUTPUTS)
    inputs = torch.rand(ROWS, 1, 4, 4)
    engine: Engine = attach(network, make(rule, {setting: value}))
    engine.prepare(inputs, batch()[1])
