"""What the examples share: digits one at a time, a network stepped directly, a fair comparison.

The rules themselves are in ``brian2_eprop.py`` and ``brian2_reward_stdp.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import brian2 as b2
import click
import numpy as np
from numpy.typing import NDArray

from biograd import data
from biograd.recipes import load_dataset

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class Learner(Protocol):
    """A network that is shown one digit at a time."""

    def answer(self, image: Array, label: int | None = None) -> int:
        """Return the class of ``image`` ``[64]``; learn from it if its ``label`` is given."""


@dataclass(frozen=True)
class Rows:
    """Images ``[N, 64]`` from 0 to 1 and their labels ``[N]``."""

    images: Array
    labels: Labels

    @classmethod
    def of(cls, split: data.Split) -> Rows:
        """Return the rows of a split as NumPy arrays."""
        return cls(split.inputs.flatten(1).double().numpy(), split.targets.numpy())


def digits(*settings: str) -> tuple[Rows, Rows]:
    """Return training and test digits, in the one split that biograd always uses.

    Args:
        settings: of the dataset recipe, as in ``validation=0.2``: the second part is then held
            out from the training digits, and the test digits are not looked at.
    """
    found = data.load(load_dataset("digits", settings), name="digits")
    return Rows.of(found.train), Rows.of(found.evaluated)


class Stepped:
    """A Brian2 network whose objects are called one by one, in the order Brian2 has sorted them.

    Why not ``Network.run`` for every digit: it generates all code anew, tens of milliseconds
    before the first step, where a digit takes less than one.

    Args:
        network: all objects, explicitly.
        step: the clock of the simulation.
        digit: the clock of what happens once, at the end of a digit; its objects wait for
            ``learn``.
    """

    def __init__(self, network: b2.Network, step: b2.Clock, digit: b2.Clock) -> None:
        network.run(0 * b2.ms, namespace={})  # compiles
        self.network = network
        objects = [each for each in network.sorted_objects if each.active]
        self._steps = [each.run for each in objects if each.clock is step]
        self._learn = [each.run for each in objects if each.clock is digit]
        self._clock = {name: step.variables[name].get_value() for name in ("timestep", "t", "dt")}

    def step(self) -> None:
        """Simulate one step and move the time on."""
        for run in self._steps:
            run()
        clock = self._clock
        clock["timestep"][0] += 1
        clock["t"][0] = clock["timestep"][0] * clock["dt"][0]
        self.network.t_ = clock["t"][0]

    def learn(self) -> None:
        """Call what happens once a digit."""
        for run in self._learn:
            run()


def view(group: Any, name: str) -> Array:
    """Return a variable's own memory, in SI units: writing to it costs a microsecond."""
    found: Array = group.variables[name].get_value()
    return found


def learn(learner: Learner, rows: Rows, epochs: int, seed: int) -> None:
    """Show every digit once an epoch, in an order drawn from ``seed``."""
    stream = np.random.default_rng((seed, 1))
    for _ in range(epochs):
        for row in stream.permutation(len(rows.labels)):
            learner.answer(rows.images[row], int(rows.labels[row]))


def accuracy(learner: Learner, rows: Rows) -> float:
    """Return the share of right answers in per cent; nothing is learned."""
    answers = np.array([learner.answer(image) for image in rows.images])
    return float(100 * np.mean(answers == rows.labels))


def compare(
    learners: Mapping[str, Callable[[], Learner]], epochs: int, seed: int
) -> dict[str, float]:
    """Train every learner on the same digits, print and return its accuracy on the test digits."""
    train, test = digits()
    found = {}
    click.echo(f"{'':16}{'train %':>8}{'test %':>8}{'seconds':>9}")
    for name, make in learners.items():
        learner = make()
        start = time.process_time()
        learn(learner, train, epochs, seed)
        seconds = time.process_time() - start
        found[name] = accuracy(learner, test)
        shown = f"{accuracy(learner, train):8.1f}{found[name]:8.1f}{seconds:9.1f}"
        click.echo(f"{name:16}{shown}")
    return found
