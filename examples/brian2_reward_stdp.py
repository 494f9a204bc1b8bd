"""Reward-modulated STDP in Brian2: one number, reward less expected reward, teaches all synapses.

    python examples/brian2_reward_stdp.py --epochs 5 --seed 0

64 pixels are Poisson spike trains that excite ten leaky integrate-and-fire neurons; those inhibit
each other, and the one that spikes most is the answer.  Pairs of a presynaptic spike at ``t_i`` and
a postsynaptic one at ``t_j`` leave marks on their synapse, the eligibility, and marks fade::

    W(t_j - t_i) =  a_plus  exp(-(t_j - t_i) / tau_plus)     before it: t_i < t_j
    W(t_j - t_i) = -a_minus exp(-(t_i - t_j) / tau_minus)    after it, or in the same step
    e(T) =   sum over pairs of W(t_j - t_i) exp(-(T - max(t_i, t_j)) / tau_e)
           - sum over t_j of alone exp(-(T - t_j) / tau_e)

``alone`` is what a postsynaptic spike leaves without any other, so that inputs that are silent when
the neuron wins count against it.  At the end of a digit the answer is right or wrong, and that is
all that the synapses are told::

    w <- w + rate (reward - expected) e,   0 <= w <= 1

``expected`` comes from a critic, one linear neuron that sees the same spikes and learns by
``critic_rate (reward - expected)``, too.

What keeps it stable: weights have bounds; depression by pairs is weaker than potentiation, so that
pairs of active neurons are marked as such and not as their opposite; each neuron adapts its
threshold to one spike in ten digits or so, else a few neurons answer for all; and reward that was
expected teaches nothing.  With ``--critic mean`` one running mean is expected of all digits alike:
then easy digits are always better than expected, hard ones always worse, and neither stops
pushing the weights.

Sources: Izhikevich 2007, Cerebral Cortex 17, 2443; why it takes a critic: Fremaux, Sprekeler &
Gerstner 2010, Journal of Neuroscience 30, 13326.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import brian2 as b2
import click
import numpy as np
from online import Array, Stepped, compare, view

PIXELS, CLASSES, STEPS = 64, 10, 50
CHANCE = 0.4
"""Chance of a spike in a step of 1 ms for a pixel of full intensity: a few fibres of 100 Hz."""
EXPLORATION = 0.05
"""Standard deviation of each neuron's drive, drawn anew for every digit while it learns."""

INPUTS = """
x : 1                   # 1: a spike in this step
count : 1               # spikes during the digit
"""
NEURONS = """
dv/dt = (drive - v) / tau : 1
drive : 1
theta : 1               # threshold, adaptive
count : 1               # spikes during the digit
"""
CRITIC = """
expected : 1            # reward
surprise : 1            # reward less expected reward
bias : 1
"""
FEED = """
w : 1
surprise : 1 (shared)
dbefore/dt = -before / tau_plus : 1 (event-driven)
dafter/dt = -after / tau_minus : 1 (event-driven)
deligibility/dt = -eligibility / tau_e : 1 (clock-driven)
"""
ON_PRE = """
v_post += gain * w
before += a_plus
eligibility -= after
"""
ON_POST = """
after += a_minus
eligibility += before - alone
"""


class RewardSTDP:
    """The network with its rule.

    Args:
        seed: of initial weights, spike trains and exploration.
        rate: learning rate of the synapses.
        critic: what is expected: "pixels", by a critic that sees the digit; "mean", always alike.
        frozen: the weights stay as drawn; thresholds and critic go on adapting.
    """

    def __init__(
        self, seed: int = 0, rate: float = 0.005, critic: str = "pixels", frozen: bool = False
    ) -> None:
        self.step, self.digit = b2.Clock(dt=1 * b2.ms), b2.Clock(dt=STEPS * b2.ms)
        self.namespace: dict[str, Any] = {
            "tau": 50 * b2.ms,
            "tau_plus": 30 * b2.ms,
            "tau_minus": 20 * b2.ms,
            "tau_e": 100 * b2.ms,
            "a_plus": 1.0,
            "a_minus": 0.2,
            "alone": 4.0,
            "gain": 1 / 150,
            "inhibition": 1.0,
            "adaptation": 0.003,
            "goal": 0.11,
            "rate": 0.0 if frozen else rate,
            "bias_rate": 0.02,
            "critic_rate": 0.02 if critic == "pixels" else 0.0,
            "full": CHANCE * STEPS,
        }
        self._populations()
        self._connect(np.random.default_rng(seed))
        parts = (self.inputs, self.answers, self.critic, self.feed, self.rivals, self.judge)
        self.network = Stepped(b2.Network(*parts), self.step, self.digit)
        # what is learned does not change what is drawn to test it
        self._lesson, self._test = (np.random.default_rng((seed, use)) for use in (2, 3))
        self._x, self._drive = view(self.inputs, "x"), view(self.answers, "drive")
        self._count, self._v = view(self.answers, "count"), view(self.answers, "v")
        self._expected, self._bias = view(self.critic, "expected"), view(self.critic, "bias")
        self._surprise = [view(group, "surprise") for group in (self.critic, self.feed)]
        self._states = [self._v, self._count, view(self.inputs, "count")]
        self._states += [view(self.feed, name) for name in ("before", "after", "eligibility")]

    def _populations(self) -> None:
        common: dict[str, Any] = {"namespace": self.namespace, "clock": self.step}
        self.inputs = b2.NeuronGroup(
            PIXELS, INPUTS, threshold="x > 0.5", reset="count += 1", name="pixels", **common
        )
        self.answers = b2.NeuronGroup(
            CLASSES,
            NEURONS,
            threshold="v > theta",
            reset="v = 0; count += 1",
            method="exact",
            name="answers",
            **common,
        )
        view(self.answers, "theta")[:] = 1
        self.answers.run_regularly("theta += adaptation * (count - goal)", clock=self.digit)
        self.critic = b2.NeuronGroup(1, CRITIC, name="critic", **common)
        view(self.critic, "bias")[:] = 1 / CLASSES
        self.critic.run_regularly("bias += bias_rate * surprise", clock=self.digit)

    def _connect(self, stream: np.random.Generator) -> None:
        common: dict[str, Any] = {"namespace": self.namespace, "clock": self.step}
        self.feed = b2.Synapses(
            self.inputs,
            self.answers,
            FEED,
            on_pre=ON_PRE,
            on_post=ON_POST,
            method="exact",
            name="feed",
            **common,
        )
        # in one step the postsynaptic spike comes first: the other cannot have caused it
        self.feed.post.order, self.feed.pre.order = 1, 2
        self.rivals = b2.Synapses(
            self.answers, self.answers, on_pre="v_post -= inhibition", name="rivals", **common
        )
        self.judge = b2.Synapses(
            self.inputs,
            self.critic,
            "w : 1",
            on_pre="expected_post += w / full",
            name="judge",
            **common,
        )
        self.rivals.connect(condition="i != j")
        self.feed.connect()
        self.judge.connect()
        view(self.feed, "w")[:] = stream.uniform(0.4, 0.6, len(self.feed))
        self.feed.run_regularly(
            "w = clip(w + rate * surprise * eligibility, 0, 1)", clock=self.digit
        )
        self.judge.run_regularly(
            "w += critic_rate * surprise_post * count_pre / full", clock=self.digit
        )

    def present(self, spikes: Array, drive: Array | float = 0.0) -> Array:
        """Return the spike count of each neuron ``[classes]`` for trains ``[steps, pixels]``."""
        for state in self._states:
            state[:] = 0
        self._drive[:], self._expected[:] = drive, self._bias
        for now in spikes:
            self._x[:] = now
            self.network.step()
        return self._count.copy()

    def teach(self, reward: float) -> None:
        """Let synapses, thresholds and critic learn from the reward for the digit just seen."""
        for surprise in self._surprise:
            surprise[...] = reward - self._expected[0]
        self.network.learn()

    def answer(self, image: Array, label: int | None = None) -> int:
        """Return the class of ``image`` ``[64]``; learn from reward if its ``label`` is given."""
        stream = self._test if label is None else self._lesson
        spikes = stream.random((STEPS, PIXELS)) < CHANCE * image
        drive = 0.0 if label is None else EXPLORATION * stream.standard_normal(CLASSES)
        count = self.present(spikes.astype(float), drive)
        # a tie, for example of no spikes at all, goes to the highest potential
        answer = int(np.lexsort((self._v, count))[-1])
        if label is not None:
            self.teach(float(answer == label))
        return answer


@click.command(help="Reward-modulated STDP on digits, one at a time, simulated by Brian2.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Times that every digit is seen.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of weights, order and spikes.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=0.005,
    show_default=True,
    help="Learning rate.",
)
@click.option(
    "--critic",
    type=click.Choice(["pixels", "mean"]),
    default="pixels",
    show_default=True,
    help="Expect a reward by what is seen, or always the mean.",
)
@click.option("--frozen", is_flag=True, help="Only the control, whose weights stay as drawn.")
def command(epochs: int, seed: int, rate: float, critic: str, frozen: bool) -> dict[str, float]:
    """Train, and print the accuracy beside that of the control."""
    learners = {
        name: partial(RewardSTDP, seed, rate, critic, frozen=hold)
        for name, hold in (("reward STDP", False), ("frozen", True))
        if hold or not frozen
    }
    return compare(learners, epochs, seed)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the program and return the test accuracies by name."""
    found: dict[str, float] = command(argv, standalone_mode=False)
    return found


if __name__ == "__main__":
    command()
