"""e-prop in Brian2: eligibility traces in every synapse, a learning signal to every neuron.

    python examples/brian2_eprop.py --epochs 10 --seed 0

64 pixels drive 30 leaky integrate-and-fire neurons, and those drive ten leaky readouts.  Digits
come one at a time; whatever a synapse needs in order to learn is a variable of its own or of one
of its two neurons.  In every step ``t`` of 1 ms::

    eps_i[t]  = beta eps_i[t-1] + (1 - beta) R x_i[t]     the input as the membrane sees it
    psi_j[t]  = (1 + slope |v_j[t] - threshold|)^-2       how near the neuron is to a spike
    e_ij[t]   = psi_j[t] eps_i[t]                         eligibility
    f_ij[t]   = kappa f_ij[t-1] + e_ij[t]                 as the readout sees it

At the end of the digit the error of the readouts, ``softmax(y) - target``, travels back through
the readout's weights: ``L_j = sum_k W_jk error_k`` is the learning signal, and
``w_ij -= rate L_j sum_t f_ij[t]``.

Without recurrence this is the gradient itself, with a surrogate for the slope of a spike: it
equals what ``biograd.EligibilityPropagation`` finds on the torch network "spiking" with one
hidden layer.  ``--frozen`` is the control: only the readout learns.

Source: Bellec et al. 2020, Nature Communications 11, 3625.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import brian2 as b2
import click
import numpy as np
from online import Array, Stepped, compare, view

PIXELS, HIDDEN, CLASSES, STEPS = 64, 30, 10, 20
GAIN = 0.5
"""Current per unit of intensity."""

INPUTS = """
x : 1                                            # input current
deps/dt = (resistance * x - eps) / tau : 1       # its trace
"""
NEURONS = """
dv/dt = (resistance * current - v) / tau : 1
current : 1
psi = (1 + slope * abs(v - threshold)) ** -2 : 1
dz/dt = -z / tau_readout : 1                     # trace of the neuron's spikes
z_sum : 1
signal : 1                                       # learning signal
"""
READOUTS = """
dy/dt = -y / tau_readout : 1
y_sum : 1
bias : 1
error : 1
"""
FEED = """
w : 1
current_post = w * x_pre : 1 (summed)
f : 1
f_sum : 1
"""


class EProp:
    """The network with its rule.

    Args:
        seed: of the initial weights.
        rate: learning rate.
        frozen: hidden synapses keep their initial weights.
    """

    def __init__(self, seed: int = 0, rate: float = 0.003, frozen: bool = False) -> None:
        self.step, self.digit = b2.Clock(dt=1 * b2.ms), b2.Clock(dt=STEPS * b2.ms)
        kappa = np.exp(-1 / 20)
        # a spike counts 1 on average over the digit, whenever it falls
        share = (1 - kappa) / np.mean(1 - kappa ** np.arange(1, STEPS + 1))
        self.namespace: dict[str, Any] = {
            "tau": 10 * b2.ms,
            "tau_readout": 20 * b2.ms,
            "kappa": kappa,
            "share": share,
            "resistance": 8.0,
            "threshold": 1.0,
            "slope": 10.0,
            "rate": rate,
            "hidden_rate": 0.0 if frozen else rate,
        }
        self._populations()
        self._connect(np.random.default_rng(seed))
        objects = (self.inputs, self.hidden, self.outputs, self.feed, self.readout)
        self.network = Stepped(b2.Network(*objects), self.step, self.digit)
        self._x, self._error = view(self.inputs, "x"), view(self.outputs, "error")
        self._bias, self._y_sum = view(self.outputs, "bias"), view(self.outputs, "y_sum")
        self._states = [
            view(group, name)
            for group, names in (
                (self.inputs, ("eps",)),
                (self.hidden, ("v", "z", "z_sum", "signal")),
                (self.outputs, ("y", "y_sum")),
                (self.feed, ("f", "f_sum")),
            )
            for name in names
        ]

    def _populations(self) -> None:
        common: dict[str, Any] = {"namespace": self.namespace, "clock": self.step}
        # one more input that is always on: its weights are the biases
        self.inputs = b2.NeuronGroup(PIXELS + 1, INPUTS, method="exact", name="inputs", **common)
        self.hidden = b2.NeuronGroup(
            HIDDEN,
            NEURONS,
            threshold="v > threshold",
            # biograd subtracts after the decay of the next step, Brian2 before it
            reset="v -= threshold * exp(dt / tau); z += share",
            method="exact",
            name="hidden",
            **common,
        )
        self.outputs = b2.NeuronGroup(CLASSES, READOUTS, method="exact", name="outputs", **common)
        self.hidden.run_regularly("z_sum += z", clock=self.step, when="end")
        self.outputs.run_regularly("y_sum += y", clock=self.step, when="end")
        self.outputs.run_regularly("bias -= rate * error", clock=self.digit, order=1)

    def _connect(self, stream: np.random.Generator) -> None:
        common: dict[str, Any] = {"namespace": self.namespace, "clock": self.step}
        self.feed = b2.Synapses(self.inputs, self.hidden, FEED, name="feed", **common)
        self.readout = b2.Synapses(
            self.hidden, self.outputs, "w : 1", on_pre="y_post += share * w", name="out", **common
        )
        for synapses, size in ((self.feed, 1.5 * PIXELS**-0.5), (self.readout, HIDDEN**-0.5)):
            synapses.connect()
            view(synapses, "w")[:] = stream.uniform(-size, size, len(synapses))
        # between the update of the neurons and their reset
        self.feed.run_regularly(
            "f = kappa * f + share * psi_post * eps_pre\nf_sum += f",
            clock=self.step,
            when="after_groups",
        )
        # once a digit: the error travels back, then all synapses learn
        self.readout.run_regularly("signal_pre += w * error_post", clock=self.digit, order=0)
        self.readout.run_regularly("w -= rate * error_post * z_sum_pre", clock=self.digit, order=1)
        self.feed.run_regularly("w -= hidden_rate * signal_post * f_sum", clock=self.digit, order=1)

    def present(self, current: Array) -> Array:
        """Return the outputs ``[classes]`` for a current ``[steps or 1, pixels]``."""
        for state in self._states:
            state[:] = 0
        self._x[-1] = 1
        for index in range(STEPS):
            self._x[:-1] = current[index if len(current) > 1 else 0]
            self.network.step()
        return self._y_sum + self._bias

    def teach(self, outputs: Array, label: int) -> None:
        """Set the error of the readouts and let the synapses learn from the digit just seen."""
        chances = np.exp(outputs - outputs.max())
        self._error[:] = chances / chances.sum()
        self._error[label] -= 1
        self.network.learn()

    def answer(self, image: Array, label: int | None = None) -> int:
        """Return the class of ``image`` ``[64]``; learn from it if its ``label`` is given."""
        outputs = self.present(GAIN * image[None])
        if label is not None:
            self.teach(outputs, label)
        return int(outputs.argmax())


@click.command(help="e-prop on digits, one at a time, simulated by Brian2.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Times that every digit is seen.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and order."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=0.003,
    show_default=True,
    help="Learning rate.",
)
@click.option("--frozen", is_flag=True, help="Only the control, whose hidden layer is frozen.")
def command(epochs: int, seed: int, rate: float, frozen: bool) -> dict[str, float]:
    """Train, and print the accuracy beside that of the control."""
    learners = {
        name: partial(EProp, seed, rate, frozen=hold)
        for name, hold in (("e-prop", False), ("frozen hidden", True))
        if hold or not frozen
    }
    return compare(learners, epochs, seed)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the program and return the test accuracies by name."""
    found: dict[str, float] = command(argv, standalone_mode=False)
    return found


if __name__ == "__main__":
    command()
