"""e-prop: eligibility traces in every synapse, gated by a learning signal to every neuron."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.estimators.broadcast import Broadcast
from biograd.estimators.feedback import normal
from biograd.recipes import Count, Positive, validate


class EligibilityPropagation(Broadcast):
    """Cut credit in space and keep it in time: ``dL/dW_ji = sum_t L_j[t] e_ji[t]``.

    The eligibility trace ``e_ji[t] = psi_j[t] eps_ji[t]`` (surrogate ``psi``) follows the
    neuron's own memory, ``eps_ji[t] = beta eps_ji[t-1] + (1 - beta) R x_i[t]``, through the
    synaptic filter and, with a reset to zero, to the neuron's last spike; the reset is held
    constant, and what a spike does to other neurons, recurrent ones too, is left out.  That is
    what autograd finds in a block whose output and recurrent input are cut.

    The learning signal ``L_j[t]`` is the derivative of the loss by the spike: for the last hidden
    block either exact, by the readout's weights ("symmetric"), or ``e[t] B`` ("random") with a
    random matrix ``B`` and, in a task in time, the error ``e[t]`` at the readout's current; else
    ``p[t] e``, with the weight ``p[t]`` of each step in what the readout receives, at most 1.  To
    other hidden blocks the error is broadcast in any case.  The readout's gradient is exact.

    Args:
        feedback: "symmetric" or "random".
        scale: size of the random matrices: the standard deviation of ``B`` is
            ``scale / sqrt(units)``, as large as the readout's weights at first.
        sites: "all" hidden sites, or the names of those that end a block.
        online: take credit while the trial runs and forget each part behind it: the same gradient,
            with memory for a trace of every synapse and example but not for the steps.
        chunk: number of steps of a part, in which autograd works; None: 25.
    """

    coincides = "in the last hidden block, if its feedback is symmetric and it has no memory"
    passes = "1 forward, 1 backward within each block; every step is stored, online none"
    bias = "credit through other neurons, recurrent ones too, is missing"
    reference = "Bellec et al. 2020, Nature Communications 11, 3625"

    def __init__(
        self,
        feedback: Literal["symmetric", "random"] = "symmetric",
        scale: Positive = 1.0,
        sites: Literal["all"] | tuple[str, ...] = "all",
        online: bool = False,
        chunk: Count | None = None,
    ) -> None:
        validate(EligibilityPropagation, locals())
        super().__init__(through_time=False, sites=sites, online=online, chunk=chunk)
        self.feedback, self.scale = feedback, scale

    def make(self, outputs: int, shapes: dict[str, tuple[int, ...]], round: Round) -> None:
        """Draw the matrices of the blocks to which the error is broadcast."""
        names = list(shapes)[:-1] if self.feedback == "symmetric" else list(shapes)
        for name in names:
            size = self.scale / math.sqrt(math.prod(shapes[name]))
            self.matrices[name] = normal((outputs, *shapes[name]), round) * size

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: credit stops behind every block and before every recurrent layer."""
        hidden = [name for name in round.blocks if not round.owners.get(name)]
        recurrent = frozenset(layer for name in hidden for layer in round.recurrent(name))
        boundaries = frozenset(self.chosen(round))
        return (Plan(boundaries=boundaries, slots=True, detach=recurrent),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every block's activity with its learning signal."""
        (trace,) = traces
        sites = self.chosen(round)
        slot = trace.sites[sites[-1]].slot if sites else None
        if slot is None:
            return
        (arriving,) = torch.autograd.grad(trace.loss, slot, retain_graph=True)
        signal, shares = self.signal(trace, round), trace.shares(sites[-1])
        for name in sites:
            activity = trace.sites[name].output
            if name == sites[-1] and self.feedback == "symmetric":
                yield activity, arriving
                continue
            received = self.received(name, signal, activity)
            once = signal.shape[1] == 1 and trace.sites[name].timed
            if once and shares is not None and shares.shape[1] == activity.shape[1]:
                received = torch.einsum("bt,bt...->bt...", shares, received)
            yield activity, received

    @property
    def weighted(self) -> bool:
        """Whether each step of a trial with one loss gets the credit that the readout weighs."""
        return True

    def late(self, name: str, error: Tensor, trace: Trace, round: Round) -> Tensor:
        """Return what the readout's filter owes to the course of a block before a part."""
        if name == self.chosen(round)[-1] and self.feedback == "symmetric":
            layer = round.layers[round.site_layers[round.readout][0]]
            return error @ layer.get_parameter("weight").detach()
        found = super().late(name, error, trace, round)
        return found if trace.peak is None else found / trace.peak
