"""The worked examples: their synapse equations against the rules written out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import biograd
from biograd.networks import Circuit
from biograd.recipes import load_model

Array = NDArray[np.float64]
FOLDER = Path(__file__).parent.parent / "examples"
TOLERANCE = 1e-12


@pytest.fixture
def brian2() -> Iterator[ModuleType]:
    """Brian2 without a compiler."""
    import brian2

    kept = brian2.prefs.codegen.target
    brian2.prefs.codegen.target = "numpy"
    yield brian2
    brian2.prefs.codegen.target = kept


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are programs of a folder of their own, no package."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def eprop(brian2: ModuleType) -> ModuleType:
    import brian2_eprop

    return brian2_eprop


@pytest.fixture
def stdp(brian2: ModuleType) -> ModuleType:
    import brian2_reward_stdp

    return brian2_reward_stdp


def weights(synapses: Any) -> Array:
    """Return the weights ``[pre, post]``."""
    return np.array(synapses.w[:]).reshape(len(synapses.source), len(synapses.target))


@dataclass
class EPropByHand:
    """One digit of e-prop in NumPy; ``broken`` leaves a part of the rule out."""

    feed: Array
    readout: Array
    bias: Array
    broken: str = ""

    def learn(self, current: Array, label: int) -> tuple[Array, tuple[Array, Array, Array]]:
        """Return the outputs, and the gradients of feed, readout and bias."""
        steps, beta, kappa = len(current), math.exp(-1 / 10), math.exp(-1 / 20)
        share = (1 - kappa) / np.mean(1 - kappa ** np.arange(1, steps + 1))
        late = share * (1 - kappa ** np.arange(steps, 0, -1)) / (1 - kappa)
        x = np.hstack((current, np.ones((steps, 1))))
        v, fired = np.zeros(self.feed.shape[1]), np.zeros(self.feed.shape[1])
        eps, total, counts = np.zeros(x.shape[1]), np.zeros_like(self.feed), np.zeros_like(v)
        for t in range(steps):
            v = beta * v + (1 - beta) * 8 * (x[t] @ self.feed) - fired
            fired = (v > 1).astype(float)
            if self.broken == "trace":
                eps = np.zeros_like(eps)
            eps = beta * eps + (1 - beta) * 8 * x[t]
            psi = (1 + 10 * np.abs(v - (1 + fired if self.broken == "reset" else 1))) ** -2.0
            total += (1 if self.broken == "readout" else late[t]) * np.outer(eps, psi)
            counts += late[t] * fired
        outputs = counts @ self.readout + self.bias
        error = np.exp(outputs) / np.exp(outputs).sum() - np.eye(len(outputs))[label]
        signal = self.readout @ error
        return outputs, (total * signal, np.outer(counts, error), error)


def trains(steps: int, units: int, seed: int = 0) -> Array:
    """Return a current that changes in every step."""
    return np.random.default_rng(seed).exponential(0.25, (steps, units))


def taught(learner: Any, current: Array, label: int) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return the outputs, and what a digit takes off feed, readout and bias, over the rate."""

    def state() -> tuple[Array, Array, Array]:
        return weights(learner.feed), weights(learner.readout), np.array(learner.outputs.bias[:])

    before = state()
    outputs = learner.present(current)
    learner.teach(outputs, label)
    rate = learner.namespace["rate"]
    first, second, third = ((old - new) / rate for old, new in zip(before, state(), strict=True))
    return outputs, (first, second, third)


def distance(found: tuple[Array, ...], expected: tuple[Array, ...]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def test_eprop_is_the_traces_by_hand(eprop: ModuleType) -> None:
    """Three digits on end, so that what one leaves behind would show in the next."""
    learner = eprop.EProp(seed=1, rate=1.0)
    for digit, label in enumerate((3, 0, 9)):
        current = trains(20, 64, digit)
        start = weights(learner.feed), weights(learner.readout), np.array(learner.outputs.bias[:])
        outputs, found = taught(learner, current, label)
        expected_outputs, expected = EPropByHand(*start).learn(current, label)
        assert np.abs(outputs - expected_outputs).max() < TOLERANCE
        assert distance(found, expected) < TOLERANCE
        assert all(np.abs(gradient).max() > 1e-3 for gradient in expected)
        for part in ("trace", "reset", "readout"):
            assert distance(found, EPropByHand(*start, part).learn(current, label)[1]) > 1e-3


@pytest.mark.parametrize("kind", ["current", "latency"])
def test_eprop_is_that_of_biograd(eprop: ModuleType, kind: str) -> None:
    """The torch network of the shipped recipe, with one hidden layer, and the `eprop` rule."""
    settings = ("network.hidden=[30]", "network.dtype=float64", f"encoding.kind={kind}")
    if kind == "latency":  # the recipe's gain is that of currents
        settings += ("encoding.gain=1.0",)
    network = biograd.build(load_model("spiking", assignments=settings), inputs=64, classes=10)
    assert isinstance(network, Circuit)
    engine = biograd.attach(network, biograd.EligibilityPropagation())
    learner = eprop.EProp(seed=2, rate=1.0)
    image, label = torch.from_numpy(trains(1, 64)).clamp(max=1), torch.tensor([4])
    feed = torch.from_numpy(weights(learner.feed))
    with torch.no_grad():
        network.get_parameter("blocks.0.synapse.weight").copy_(feed[:-1].T)
        network.get_parameter("blocks.0.synapse.bias").copy_(feed[-1])
        network.readout.weight.copy_(torch.from_numpy(weights(learner.readout)).T)
        network.readout.bias.zero_()
    engine(image, label).backward()
    encoded = network.encode(image, torch.Generator())[0].numpy()
    outputs, (feed_change, readout_change, bias_change) = taught(learner, encoded, 4)
    expected = {name: value.grad for name, value in network.named_parameters()}
    assert np.abs(outputs - network(image).detach().numpy()[0]).max() < TOLERANCE
    for name, found in {
        "blocks.0.synapse.weight": feed_change[:-1].T,
        "blocks.0.synapse.bias": feed_change[-1],
        "readout.weight": readout_change.T,
        "readout.bias": bias_change,
    }.items():
        gradient = expected[name]
        assert gradient is not None and gradient.abs().max() > 1e-3
        assert np.abs(found - gradient.numpy()).max() < TOLERANCE


def test_stepping_is_running(eprop: ModuleType, brian2: ModuleType) -> None:
    """The loop over the objects does what Network.run does."""
    current = trains(1, 64)
    stepped, run = eprop.EProp(seed=3), eprop.EProp(seed=3)
    stepped.present(current)
    run.inputs.x = np.append(current[0], 1)
    run.network.network.run(19 * brian2.ms, namespace={})
    assert np.abs(np.array(run.feed.f_sum) - np.array(stepped.feed.f_sum)).max() > 1e-3
    run.network.network.run(1 * brian2.ms, namespace={})
    for group, name in (("feed", "f_sum"), ("hidden", "v"), ("outputs", "y_sum")):
        found, expected = (np.array(getattr(getattr(e, group), name)) for e in (run, stepped))
        assert np.array_equal(found, expected) and expected.any()
    assert stepped.network.network.t == run.network.network.t == 20 * brian2.ms


def test_the_frozen_control_trains_its_readout_alone(eprop: ModuleType) -> None:
    for frozen in (False, True):
        learner = eprop.EProp(frozen=frozen)
        _, (feed, readout, bias) = taught(learner, trains(1, 64), 5)
        assert readout.any() and bias.any()
        assert feed.any() != frozen


def test_eprop_learns_what_its_control_cannot(eprop: ModuleType) -> None:
    import online

    train, _ = online.digits()
    few = online.Rows(train.images[:50], train.labels[:50])
    found = []
    for frozen in (False, True):
        learner = eprop.EProp(rate=0.005, frozen=frozen)
        online.learn(learner, few, epochs=6, seed=0)
        found.append(online.accuracy(learner, few))
    assert found[0] > 90 and found[1] < 75


@dataclass
class Pairs:
    """The eligibility of a synapse in closed form; ``broken`` changes a part of it."""

    tau_plus: float = 30.0
    tau_minus: float = 20.0
    tau_e: float = 100.0
    a_minus: float = 0.2
    alone: float = 4.0
    broken: str = ""

    def eligibility(self, before: Array, after: Array, end: float) -> float:
        """Return the sum over pairs of spike times in milliseconds, at the time ``end``."""
        lag = after[None] - before[:, None]
        last = np.maximum(after[None], before[:, None])
        earlier = lag >= 0 if self.broken == "same step" else lag > 0
        window = np.where(
            earlier,
            np.exp(-np.abs(lag) / self.tau_plus),
            -self.a_minus * np.exp(-np.abs(lag) / self.tau_minus),
        )
        tau = 1e9 if self.broken == "fading" else self.tau_e
        alone = 0.0 if self.broken == "alone" else self.alone
        pairs = (window * np.exp(-(end - last) / tau)).sum()
        return float(pairs - alone * np.exp(-(end - after) / tau).sum())


def by_hand(rule: Pairs, pre: Array, post: Array) -> Array:
    """Return the eligibility ``[pre, post]`` at the last of ``[steps, units]``."""
    times = np.arange(float(len(pre)))
    rows = [
        [rule.eligibility(times[i > 0], times[j > 0], times[-1]) for j in post.T] for i in pre.T
    ]
    return np.array(rows)


def spiking(learner: Any, seed: int) -> tuple[Array, Array]:
    """Show random trains to neurons that spike often; return both spike trains."""
    stream = np.random.default_rng(seed)
    learner.answers.theta[:] = 0.3
    spikes = (stream.random((50, 64)) < 0.3).astype(float)
    posts, kept, step = [], np.zeros(10), learner.network.step

    def watched() -> None:
        step()
        posts.append(np.array(learner.answers.count[:]) - kept)
        kept[:] = learner.answers.count[:]

    learner.network.step = watched
    learner.present(spikes, drive=np.linspace(5, 5.5, 10))
    learner.network.step = step
    return spikes, np.array(posts)


def test_the_eligibility_is_the_sum_over_pairs(stdp: ModuleType) -> None:
    """Two digits on end, so that what one leaves behind would show in the next."""
    learner = stdp.RewardSTDP()
    for digit in range(2):
        pre, post = spiking(learner, digit)
        assert 50 < post.sum() < 250 and post.any(0).sum() > 5
        assert (pre.T @ post).sum() > 100  # pairs in one step
        found = np.array(learner.feed.eligibility[:]).reshape(64, 10)
        assert np.abs(found - by_hand(Pairs(), pre, post)).max() < TOLERANCE
        for broken in ("same step", "fading", "alone"):
            assert np.abs(found - by_hand(Pairs(broken=broken), pre, post)).max() > 0.1


def test_reward_less_expected_reward_moves_weights_within_their_bounds(stdp: ModuleType) -> None:
    learner = stdp.RewardSTDP(rate=0.1)
    learner.judge.w[:] = np.linspace(-0.1, 0.1, 64)
    pre, post = spiking(learner, 0)
    old, eligibility = weights(learner.feed), np.array(learner.feed.eligibility[:])
    judge, bias = np.array(learner.judge.w[:]), float(learner.critic.bias[0])
    expected = bias + pre.sum(0) @ judge / 20
    assert abs(expected - learner.critic.expected[0]) < TOLERANCE
    learner.teach(1.0)
    raw = old + 0.1 * (1 - expected) * eligibility.reshape(64, 10)
    assert (raw < 0).any() and (raw > 1).any() and ((raw > 0) & (raw < 1)).any()
    assert np.abs(weights(learner.feed) - np.clip(raw, 0, 1)).max() < TOLERANCE
    surprise = 0.02 * (1 - expected)
    assert np.abs(learner.judge.w[:] - judge - surprise * pre.sum(0) / 20).max() < TOLERANCE
    assert abs(learner.critic.bias[0] - bias - surprise) < TOLERANCE
    theta = 0.3 + 0.003 * (post.sum(0) - 0.11)
    assert np.abs(learner.answers.theta[:] - theta).max() < TOLERANCE


def test_what_was_expected_teaches_nothing(stdp: ModuleType) -> None:
    learner = stdp.RewardSTDP(rate=0.1)
    spiking(learner, 0)
    old = weights(learner.feed)
    learner.teach(float(learner.critic.expected[0]))
    assert np.array_equal(weights(learner.feed), old)
    learner.teach(float(learner.critic.expected[0]) + 0.1)
    assert not np.array_equal(weights(learner.feed), old)


def test_one_expectation_for_all_digits_does_not_look_at_them(stdp: ModuleType) -> None:
    for critic in ("pixels", "mean"):
        learner = stdp.RewardSTDP(critic=critic)
        spiking(learner, 0)
        learner.teach(1.0)
        assert learner.critic.bias[0] > 0.1
        assert learner.judge.w[:].any() == (critic == "pixels")


@pytest.mark.parametrize("name", ["eprop", "stdp"])
def test_an_answer_without_a_label_teaches_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    module = request.getfixturevalue(name)
    learner = module.EProp() if name == "eprop" else module.RewardSTDP()
    old, image = weights(learner.feed), np.linspace(0, 1, 64)
    learner.answer(image)
    assert np.array_equal(weights(learner.feed), old)
    for label in (0, 1):
        learner.answer(image, label)
    assert not np.array_equal(weights(learner.feed), old)


@pytest.mark.parametrize("name", ["eprop", "stdp"])
def test_the_program_prints_itself_beside_its_control(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import online

    train, _ = online.digits()
    few = online.Rows(train.images[:10], train.labels[:10])
    monkeypatch.setattr(online, "digits", lambda: (few, few))
    module = request.getfixturevalue(name)
    found = module.main(["--epochs", "1", "--seed", "1"])
    control = {"eprop": "frozen hidden", "stdp": "frozen"}[name]
    assert len(found) == 2 and control in found
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert module.main(["--epochs", "1", "--seed", "1", "--frozen"]) == {control: found[control]}


def test_the_digits_are_those_of_biograd(brian2: ModuleType) -> None:
    import online

    train, test = online.digits()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert train.images.shape == (1437, 64) and 0.9 < train.images.max() <= 1
    held, rest = online.digits("validation=0.2")
    assert len(held.labels) + len(rest.labels) == 1437


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eprop_beats_its_control_on_digits() -> None:
    import brian2_eprop

    found = brian2_eprop.main(["--epochs", "3"])
    assert found["e-prop"] > 90 and found["frozen hidden"] < 85


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reward_stdp_beats_its_control_on_digits() -> None:
    import brian2_reward_stdp

    found = brian2_reward_stdp.main(["--epochs", "3"])
    assert found["reward STDP"] > 75 and found["frozen"] < 25
