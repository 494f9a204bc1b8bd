"""What the broadcasting rules share: one signal at the outputs, sent to every hidden block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators.estimator import Estimator, check_chunk
from biograd.estimators.feedback import Buffers
from biograd.recipes import Count


class Broadcast(Estimator):
    """Send one signal from the outputs to every hidden block, ``delta_h = e B``.

    The signal is the derivative of the loss by the readout's current.  Credit stops behind each
    block's activity ``h``; the block's own derivative, from the current to the activity, is that
    of autograd.  The readout's gradient is exact.  In a task in time every step receives its own
    signal; else that of the trial reaches every step in full, as if the activity were its sum over
    the trial.  It passes on in the block through the neuron's own memory; through recurrent
    weights only if ``through_time`` is set, since that would transport them.  Blocks that a local
    loss trains are left to it.

    Args:
        through_time: credit also passes through recurrent weights.
        sites: "all" hidden sites, or the names of those that end a block; what lies between them
            is one block, differentiated as usual (a skip past a site needs that).
        online: take credit while the trial runs (``Estimator.online``).
        chunk: number of steps of a part then.

    Raises:
        RecipeError: online, but credit passes through recurrent weights, or some sites have none.
    """

    needs = frozenset(("loss", "cut", "local_vjp"))
    reach = "blocks"
    blockwise = True
    divides = "examples"
    passes = "1 forward, 1 product with the feedback"
    builds = True

    def __init__(
        self,
        through_time: bool = False,
        sites: Literal["all"] | tuple[str, ...] = "all",
        online: bool = False,
        chunk: Count | None = None,
    ) -> None:
        super().__init__()
        self.through_time, self.sites = through_time, sites
        self.online, self.chunk = online, chunk
        self.matrices = Buffers()
        check_chunk(self)
        if online and (through_time or sites != "all"):
            name = "sites = 'all'" if sites != "all" else "through_time = false"
            raise RecipeError(f"{type(self).__name__}: online = true needs {name}")

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others, each with the reason."""
        return {} if given.get("online", True) else {"chunk": "with online = false"}

    def check(self, sites: Sequence[str]) -> None:
        """Refuse the name of a site that does not exist, or no site at all.

        Raises:
            CapabilityError: with the nearest name.
        """
        if not self.sites:
            raise CapabilityError(
                f"{type(self).__name__}: sites = (): the signal reaches no site: name one"
            )
        super().check(sites)

    def chosen(self, round: Round) -> tuple[str, ...]:
        """Return the hidden sites that the signal reaches."""
        chosen = round.blocks if self.sites == "all" else self.sites
        return tuple(n for n in round.blocks if n in chosen and not round.owners.get(n))

    def build(self, trace: Trace, round: Round) -> None:
        """Make the feedback matrices ``[outputs, *units]``."""
        shapes = {name: units_of(trace, name) for name in self.chosen(round)}
        self.make(self.width(trace, round), shapes, round)

    def width(self, trace: Trace, round: Round) -> int:
        """Return the number of values of the signal: one for each unit of the readout."""
        return math.prod(round.shapes[round.readout].units)

    def make(self, outputs: int, shapes: dict[str, tuple[int, ...]], round: Round) -> None:
        """Make the feedback matrix of every site for the shape of its activity."""
        raise NotImplementedError

    def matrix(self, name: str) -> Tensor:
        """Return the feedback matrix of a site, ``[outputs, *units]``."""
        return self.matrices[name]

    def signal(self, trace: Trace, round: Round) -> Tensor:
        """Return what is broadcast: the derivative of the mean loss by the readout's current.

        ``[B, T, outputs]`` in a task in time, else ``[B, 1, outputs]``, summed over its steps.
        """
        found = trace.signal()
        return found if round.timed else found.sum(1, keepdim=True)

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: credit stops behind every block that the signal reaches."""
        sites = self.chosen(round)
        recurrent = [layer for name in sites for layer in round.recurrent(name)]
        detach = frozenset(() if self.through_time else recurrent)
        return (Plan(boundaries=frozenset(sites), detach=detach),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every block's activity with the signal that it receives."""
        (trace,) = traces
        signal = self.signal(trace, round)
        for name in self.chosen(round):
            activity = trace.sites[name].output
            yield activity, self.received(name, signal, activity)

    def late(self, name: str, error: Tensor, trace: Trace, round: Round) -> Tensor:
        """Return what the error of then sends to the course of a block before a part."""
        matrix = self.matrix(name)
        return (error.to(matrix.dtype) @ matrix.flatten(1)).view(-1, *matrix.shape[1:])

    def received(self, name: str, signal: Tensor, activity: Tensor) -> Tensor:
        """Return what reaches a block's output, in its shape ``[B, (T,) *units]``.

        Raises:
            CapabilityError: the block has other steps than the signal.
        """
        matrix = self.matrix(name)
        signal = signal.to(matrix.dtype)
        if signal.shape[1] == 1:
            found = (signal[:, 0] @ matrix.flatten(1)).view(-1, *matrix.shape[1:])
            return (found.unsqueeze(1) if found.dim() < activity.dim() else found).expand_as(
                activity
            )
        found = (signal @ matrix.flatten(1)).unflatten(2, matrix.shape[1:])
        if activity.dim() < found.dim():  # what stands still takes the sum
            return found.sum(1)
        if found.shape != activity.shape:
            raise CapabilityError(
                f"site {name}: {activity.shape[1]} steps, but the readout has {signal.shape[1]}: "
                "give the module that returns the output of all steps, "
                "sites=[biograd.Site(..., activity=...)]"
            )
        return found


def units_of(trace: Trace, name: str) -> tuple[int, ...]:
    """Return the shape of a site's activity without batch and time."""
    site = trace.sites[name]
    return tuple(site.output.shape[2 if site.timed else 1 :])
