"""Advice: every rule finds the network that is broken in its way, and leaves the others alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from networks_for_tests import PLAIN, RANDOM, batch, build, drawn, spiking
from torch import Tensor, nn

from biograd.contracts import Capability, Plan, Round, Trace
from biograd.diagnosis import Diagnosis, advice, probe
from biograd.engine import Engine, attach
from biograd.estimators import Estimator, WeakGradient, make

Broken = Callable[[], Diagnosis]


class GivesNothing(Estimator):
    """Cut behind every hidden site, and forget to deliver credit."""

    needs: frozenset[Capability] = frozenset(("loss", "cut"))

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(cut=frozenset(round.hidden)),)


class Guesses(GivesNothing):
    """Deliver noise."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        for name in round.hidden:
            current = traces[0].sites[name].current()
            noise = torch.randn(current.shape, generator=round.generator, dtype=current.dtype)
            yield from traces[0].sites[name].deliver(noise)


class SignFlipped(WeakGradient):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((tensor, -delta) for tensor, delta in super().credit(traces, round))


class FirstForgotten(WeakGradient):
    """Deliver a hundredth of the first site's credit."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        first = traces[0].sites[round.hidden[0]].visits[0].outputs[0]
        for tensor, delta in super().credit(traces, round):
            yield tensor, delta / 100 if tensor is first else delta


class Detached(nn.Module):
    """The first layer's output is detached by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.readout = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs)).detach()
        return self.readout(torch.tanh(self.second(hidden)))


class InTime(nn.Module):
    """A recurrent layer that takes the features one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.back, self.readout = nn.Linear(1, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 5)
        for now in inputs.split(1, dim=1):
            state = torch.tanh(self.feed(now) + self.back(state))
        found: Tensor = self.readout(state)
        return found


class Sine(nn.Module):
    """Bounded, yet as steep as its weights: the gradient grows on its way back."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sin(inputs)


def shifted(network: nn.Module, name: str, by: float) -> nn.Module:
    with torch.no_grad():
        network.get_parameter(name).add_(by)
    return network


def scaled(network: nn.Module, name: str, by: float) -> nn.Module:
    with torch.no_grad():
        network.get_parameter(name).mul_(by)
    return network


def deep(activation: Callable[[], nn.Module], layers: int, gain: float) -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(6, 6), activation()]
    made = drawn(nn.Sequential(*parts, nn.Linear(6, 3)))
    for name, _ in made.named_parameters():
        if name.endswith("weight"):
            scaled(made, name, gain)
    return made


def wide() -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 3)))


def look(network: nn.Module, estimator: Estimator, rate: float = 0.0, rows: int = 24) -> Diagnosis:
    engine = attach(network, estimator)
    x, y = batch(rows)
    if not rate:
        return probe(engine, x.to(next(network.parameters()).dtype), y)
    return probe(engine, x, y, optimiser=torch.optim.Adam(engine.parameters(), rate))


FROZEN = {"copies": 257, "sigma": 0.05, "time_bin": "trial"}
BROKEN: dict[str, tuple[tuple[str, Broken], ...]] = {
    "silent": (
        ("2: 100%", lambda: look(shifted(build("mlp"), "2.bias", -9), make("backprop"))),
        (
            r"blocks\.0\.synapse: 100%",
            lambda: look(shifted(spiking(), "blocks.0.synapse.bias", -9), make("weak")),
        ),
    ),
    "saturated": (
        (r"0: \d+% of 5", lambda: look(scaled(build("mlp"), "0.weight", 99), make("backprop"))),
        (
            r"blocks\.1\.synapse: 100%",
            lambda: look(shifted(spiking(), "blocks.1.synapse.bias", 99), make("weak")),
        ),
        (
            "0: 100%",
            lambda: look(shifted(deep(nn.Sigmoid, 2, 1), "0.bias", 9), make("backprop")),
        ),
    ),
    "no_gradient": (("first: .* is 0", lambda: look(drawn(Detached()), make("backprop"))),),
    "no_credit": (
        ("0: GivesNothing", lambda: look(build("mlp"), GivesNothing())),
        ("0: SyntheticGradient", lambda: look(build("mlp"), make("synthetic_gradient"))),
    ),
    "uninformative": (
        ("sigma = 0.0001", lambda: look(spiking(), make("weak", {"sigma": 1e-4}))),
        (
            "sigma = 0.0001",
            lambda: look(spiking("brian2"), make("node_perturbation", {"sigma": 1e-4})),
        ),
    ),
    "noise_size": (
        (
            "sigma = 5e-08, .* at 2e-07: .* raise",
            lambda: look(build("mlp").float(), make("weak", {"sigma": 5e-8})),
        ),
        (
            "0.0005, .* at 0.002.* raise",
            lambda: look(spiking(), make("weak", {"sigma": 5e-4}), rows=96),
        ),
        (
            "sigma = 20, .* at 5: .* lower",
            lambda: look(build("mlp"), make("weak", {"sigma": 20.0, "copies": 65})),
        ),
    ),
    "at_the_peak": (
        (
            "11 noisy copies for 9 dimensions",
            lambda: look(
                build("mlp"), make("weak", {"copies": 12, "method": "least_squares", "sigma": 1.0})
            ),
        ),
    ),
    "few_copies": (
        (
            "1 noisy copies for 200 dimensions",
            lambda: look(wide(), make("weak", {"copies": 2, "method": "baseline"}), rows=4),
        ),
    ),
    "no_better_than_chance": (("0: cosine", lambda: look(build("mlp"), Guesses())),),
    "uphill": (("0: cosine -0", lambda: look(build("mlp"), SignFlipped())),),
    "batch_statistics": (
        ("3: cosine", lambda: look(build("batch_norm"), make("weak"))),
        ("3: cosine", lambda: look(build("batch_norm"), make("node_perturbation"))),
    ),
    "frozen_noise": (
        (
            "feed: cosine .* over 6 of 6 steps",
            lambda: look(
                scaled(drawn(InTime()), "feed.weight", 3),
                make("node_perturbation", FROZEN),
                rows=4,
            ),
        ),
    ),
    "vanishing": (
        ("^0: .* of 12: .* vanishes", lambda: look(deep(nn.Sigmoid, 7, 1.0), make("backprop"))),
        ("^10: .* of 0: .* explodes", lambda: look(deep(Sine, 6, 30.0), make("backprop"))),
    ),
    "uneven": (("^0: receives 0.0", lambda: look(build("mlp"), FirstForgotten(65))),),
    "step_size": (
        ("0: .* lower", lambda: look(build("mlp"), make("backprop"), rate=1.0)),
        ("readout: .* lower", lambda: look(spiking(), make("weak"), rate=1.0)),
        ("4: .* raise", lambda: look(build("mlp"), make("backprop"), rate=1e-8)),
    ),
}
CASES = [(name, *case) for name, cases in BROKEN.items() for case in cases]


def test_every_rule_has_a_network_that_it_finds() -> None:
    assert [rule.__name__ for rule in advice.RULES] == list(BROKEN)


@pytest.mark.parametrize(("name", "words", "broken"), CASES, ids=[case[0] for case in CASES])
def test_what_is_broken_is_found(name: str, words: str, broken: Broken) -> None:
    rule = getattr(advice, name)
    diagnosis = broken()
    lines = list(rule(diagnosis))
    assert lines and any(re.search(words, line) for line in lines), lines
    assert set(lines) <= set(diagnosis.advice())
    for line in lines:
        assert "\n" not in line and re.search(r"\d", line) and ": " in line


HEALTHY: dict[str, Callable[[], Engine]] = {
    f"{name} {rule}": lambda name=name, rule=rule: attach(build(name), make(rule))
    for name in [*PLAIN, *RANDOM]
    for rule in ("backprop", "weak", "node_perturbation")
    if (name, rule) not in (("batch_norm", "weak"), ("batch_norm", "node_perturbation"))
} | {
    f"{name} {rule}": lambda name=name, rule=rule: attach(spiking(name), make(rule))
    for name, rule in (
        ("torch", "backprop"),
        ("torch", "weak"),
        ("snntorch", "weak"),
        ("brian2", "weak"),
        ("brian2", "node_perturbation"),
    )
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_network_in_order_gets_no_advice(name: str) -> None:
    engine = HEALTHY[name]()
    x, y = batch(32)
    engine.prepare(x, y)
    optimiser = torch.optim.Adam(engine.parameters(), 1e-2)
    found = probe(engine, x, y, optimiser=optimiser)
    assert found.advice() == []
    assert "nothing stands out" in str(found)
