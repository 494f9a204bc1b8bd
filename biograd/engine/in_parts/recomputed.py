"""A step that stores the borders of a trial's parts and runs each part again, from the last on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.contracts.trial_part import State
from biograd.engine.in_parts.trial_parts import Credit, TrialParts, Trials, ends
from biograd.engine.step_result import surface


class Recomputed(TrialParts):
    """Adds up the exact credit with the memory of one part and of the states between parts.

    The trial is run once without a graph.  Then each part is run again from the states in which it
    began: ``q = dL/ds`` at its end comes from the part behind it, and its backward pass gives the
    gradients of the parameters and ``q`` at its beginning.  With ``sqrt(T)`` parts memory grows as
    ``sqrt(T)`` (Chen et al. 2016, arXiv 1604.06174).  A window of truncated back-propagation is a
    part behind which the population's ``q`` is forgotten; that of the readout is not.
    """

    def credit(self, round: Round, trials: Trials) -> Credit:
        """Run the trial, then all parts again from the last on."""
        (plan,) = self.estimator.plans(round)
        begun, states = list[dict[str, State]](), dict[str, State]()
        for first in self.firsts:
            begun.append(states)
            if first + self.estimator.part_steps < self.trial:
                _, parts, _ = self.run(Plan(graph=False), first, states, trials)
                states = ends(parts)
        sums = [torch.zeros_like(p) for p in round.parameters]
        losses, outputs, owed = [], [], dict[tuple[str, int], Tensor]()
        tail: Trace | None = None
        for first, states in zip(reversed(self.firsts), reversed(begun), strict=True):
            trace, parts, leaves = self.run(plan, first, states, trials)
            pairs = [(parts[n].ended[place], q) for (n, place), q in owed.items()]
            found, owed = self._pulled(surface(trace.loss, pairs), round.parameters, leaves)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
            losses.append(trace.losses)
            outputs.append(trace.outputs)
            tail = tail or trace
        assert tail is not None
        round.traces[:] = [self.whole(tail, losses, outputs[::-1])]
        return list(zip(round.parameters, sums, strict=True))

    def _pulled(
        self, surrogate: Tensor, parameters: Sequence[Tensor], leaves: dict[str, State]
    ) -> tuple[tuple[Tensor | None, ...], dict[tuple[str, int], Tensor]]:
        """Return the gradients of the parameters, and those of the states at the beginning."""
        readers = (self.path,) if self.estimator.window else tuple(leaves)
        names = [(n, place) for n in leaves if n in readers for place in range(len(leaves[n]))]
        wanted = [*parameters, *(leaves[n][place] for n, place in names)]
        if not surrogate.requires_grad:
            return (None,) * len(parameters), {}
        found = torch.autograd.grad(surrogate, wanted, allow_unused=True)
        late = zip(names, found[len(parameters) :], strict=True)
        return found[: len(parameters)], {at: q for at, q in late if q is not None}
