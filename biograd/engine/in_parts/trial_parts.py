"""A trial in parts: what of its inputs, its targets and its loss belongs to each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from biograd.circuit.circuit import Circuit
from biograd.contracts import Objective, Plan, Round, Site, Substrate, Trace
from biograd.contracts.trial_part import State, TrialPart, parted
from biograd.tasks import Task

PATHS = ("filtered", "behind")
"""Where a circuit keeps what it reads with: before its readout, and behind it in every step."""
Credit = list[tuple[Tensor, Tensor]]
"""Parameters and their gradients."""


@dataclasses.dataclass(frozen=True)
class Trials:
    """A batch of whole trials, and who runs its parts.

    Attributes:
        encoded: inputs, ``[B, T or 1, units]``.
        targets: of whole trials.
        stream: of dropout.
        drawn: its state at the beginning: all parts share their masks.
    """

    encoded: Tensor
    targets: Tensor
    substrate: Substrate
    stream: torch.Generator
    drawn: Tensor


class TrialParts:
    """Runs the trials of a batch in parts, so that no more than one of them is stored.

    Args:
        network: what is run.
        estimator: its rule; of it, the number of steps of a part.
    """

    def __init__(self, network: Circuit, estimator: Any, task: Task, sites: Sequence[Site]) -> None:
        self.network, self.estimator, self.task = network, estimator, task
        self.sites, self.trial = tuple(sites), network.steps
        self.path = next((n for n in PATHS if hasattr(getattr(network, n, None), "weigh")), "")
        self.reader: Any = getattr(network, self.path) if self.path else None

    def step(
        self,
        round: Round,
        encoded: Tensor,
        targets: Tensor,
        substrate: Substrate,
        stream: torch.Generator,
    ) -> Credit:
        """Run all parts of a batch and return the credit; the trace is the last, of all losses.

        Args:
            stream: of dropout.
        """
        return self.credit(round, Trials(encoded, targets, substrate, stream, stream.get_state()))

    def credit(self, round: Round, trials: Trials) -> Credit:
        """Run all parts and return the credit; leave the last trace, of the whole loss."""
        raise NotImplementedError

    def first(self, encoded: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the first part, by which the network is looked at."""
        steps = min(self.estimator.part_steps, self.trial)
        own = self.task.part(targets, 0, steps, self.trial)
        return self._inputs(encoded, 0, steps), targets if own is None else own[0]

    def opening(self) -> AbstractContextManager[Any]:
        """Return a context in which passes run the first part."""
        steps = min(self.estimator.part_steps, self.trial)
        return parted(self.network, 0, steps, self.trial, {})

    def _inputs(self, encoded: Tensor, first: int, steps: int) -> Tensor:
        return encoded if encoded.shape[1] == 1 else encoded[:, first : first + steps]

    @property
    def firsts(self) -> range:
        """The first steps of all parts."""
        return range(0, self.trial, self.estimator.part_steps)

    def run(
        self,
        plan: Plan,
        first: int,
        states: Mapping[str, State],
        trials: Trials,
    ) -> tuple[Trace, dict[str, TrialPart], dict[str, State]]:
        """Run a part; return its trace, what it ended in, and the leaves in which it began.

        Args:
            states: in which it begins, by the modules' names; none: at rest.
        """
        steps = min(self.estimator.part_steps, self.trial - first)
        trials.stream.set_state(trials.drawn)
        leaves = {n: tuple(v.detach().requires_grad_() for v in s) for n, s in states.items()}
        own, objective = self._asked(trials.targets, first, steps)
        given = self._inputs(trials.encoded, first, steps)
        with parted(self.network, first, steps, self.trial, leaves) as parts:
            trace = trials.substrate.run(plan, given, own, objective, trials.stream)
        return trace, parts, leaves

    def whole(self, trace: Trace, losses: Sequence[Tensor], outputs: Sequence[Tensor]) -> Trace:
        """Return the trace of the last part with what the parts before it add to the loss."""
        total = torch.stack([*losses]).sum(0)
        shown = torch.cat([*outputs], 1) if self.task.timed else trace.outputs
        return dataclasses.replace(trace, losses=total, loss=total.mean(), outputs=shown)

    def _asked(self, targets: Tensor, first: int, steps: int) -> tuple[Tensor, Objective]:
        """Return the targets of a part, and its share of the loss."""
        task = self.task
        if not task.timed:
            silent = first + steps < self.trial
            return targets, Objective(_nothing if silent else task.losses, {}, task.vectors)
        found = task.part(targets, first, steps, self.trial)
        assert found is not None
        own, factor = found

        def share(outputs: Tensor, own: Tensor) -> Tensor:
            return factor.to(outputs.dtype)[:, None] * task.stepwise(outputs, own)

        return own, Objective(share, {}, task.vectors)


def ends(parts: Mapping[str, TrialPart]) -> dict[str, State]:
    """Return the states in which a part ended, without their graph."""
    return {name: tuple(v.detach() for v in one.ended) for name, one in parts.items() if one.ended}


def _nothing(outputs: Tensor, _targets: Tensor) -> Tensor:
    """Return the loss of a part in which the trial does not end."""
    return outputs.flatten(1).sum(1) * 0
