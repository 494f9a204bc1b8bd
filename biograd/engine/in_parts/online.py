"""A step of a rule that takes its credit while the trial runs: its memory has no trial in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Round, Trace
from biograd.contracts.trial_part import State, TrialPart
from biograd.engine.in_parts.eligibility import Eligibility, End
from biograd.engine.in_parts.trial_parts import Credit, TrialParts, Trials, ends
from biograd.engine.step_result import surface


class Online(TrialParts):
    """Adds up the credit of a rule that has a trace for every synapse."""

    _heard: Tensor

    def credit(self, round: Round, trials: Trials) -> Credit:
        """Run all parts, take the credit of each, and keep the traces alone."""
        (plan,) = self.estimator.plans(round)
        traces = {name: self._eligibility(name, round) for name in round.blocks}
        states: dict[str, State] = {}
        sums = {id(p): (p, torch.zeros_like(p)) for p in round.parameters}
        losses, outputs, peak = [], [], self._peak()
        for first in self.firsts:
            trace, parts, leaves = self.run(plan, first, states, trials)
            trace.peak = peak
            round.traces[:] = [trace]
            if self.task.timed or parts[""].last:
                for parameter, gradient in self._credited(round, trace, leaves, traces):
                    sums[id(parameter)][1].add_(gradient)
            losses.append(trace.losses)
            outputs.append(trace.outputs)
            if not parts[""].last:
                self._advance(trace, parts, leaves, traces)
                states = ends(parts)
        round.traces[:] = [self.whole(trace, losses, outputs)]
        return list(sums.values())

    def _eligibility(self, name: str, round: Round) -> Eligibility:
        sites = [site for site in self.sites if (site.block or site.name) == name]
        places = {n: (s.name, place) for s in sites for place, n in enumerate(s.modules)}
        layers = {n: round.layers[n] for n in places if _learns(round.layers[n])}
        return Eligibility(layers, {n: places[n] for n in layers})

    def _population(self, name: str) -> str:
        return next(str(site.neurons) for site in self.sites if site.name == name)

    def _peak(self) -> float | None:
        """Return the weight of the step that the readout weighs most, of one loss a trial."""
        if self.task.timed or self.reader is None:
            return None
        weights, _ = self.reader.weigh(TrialPart(0, self.trial, self.trial))
        return float(weights[weights.abs().argmax()])

    def _credited(
        self,
        round: Round,
        trace: Trace,
        leaves: Mapping[str, State],
        traces: Mapping[str, Eligibility],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the credit of a part, and of what was before through the states it began in."""
        surrogate = surface(trace.loss, list(self.estimator.credit([trace], round)))
        names = [(n, place) for n, state in leaves.items() for place in range(len(state))]
        wanted = [*round.parameters, *(leaves[n][place] for n, place in names)]
        found = torch.autograd.grad(surrogate, wanted, retain_graph=True, allow_unused=True)
        yield from ((p, g) for p, g in zip(round.parameters, found, strict=False) if g is not None)
        if not leaves:
            return
        by_state = dict(zip(names, found[len(round.parameters) :], strict=True))
        error = self._late(trace, by_state)
        for name, kept in traces.items():
            population = self._population(name)
            states = [by_state[population, place] for place in range(len(leaves[population]))]
            yield from kept.credit(states, self._owed(name, error, trace, round))
        if error is not None and self.task.timed:
            yield from self._read(error)

    def _owed(
        self, name: str, error: Tensor | None, trace: Trace, round: Round
    ) -> Sequence[Tensor]:
        """Return the derivative by what the readout's filter held of a block, or of all outputs."""
        if error is None:
            return ()
        if trace.plan.boundaries:
            return (self.estimator.late(name, error, trace, round),)
        return error.split(1, 1)

    def _late(
        self, trace: Trace, by_state: Mapping[tuple[str, int], Tensor | None]
    ) -> Tensor | None:
        """Return the error that the readout's current before the part deserves, ``[B, K]``."""
        if not self.path:
            return None
        if self.task.timed:
            return by_state[self.path, 0]
        return trace.signal().sum(1)

    def _read(self, error: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the readout's gradient through outputs that outlast their step."""
        found, readout = error.T @ self._heard, self.network.readout
        if readout.weight.requires_grad:
            yield readout.get_parameter("weight"), found[:, :-1]
        if readout.bias is not None and readout.bias.requires_grad:
            yield readout.get_parameter("bias"), found[:, -1]

    def _advance(
        self,
        trace: Trace,
        parts: Mapping[str, TrialPart],
        leaves: Mapping[str, State],
        traces: Mapping[str, Eligibility],
    ) -> None:
        """Take the traces of all synapses to the end of a part."""
        part = parts[""]
        weights, kept = self.reader.weigh(part) if self.path else (torch.zeros(0), 0.0)
        for name, one in traces.items():
            population = self._population(name)
            read = self._ends(name, trace, parts, weights) if self.path else ()
            one.advance(trace, leaves.get(population, ()), parts[population].ended, read, kept)
        if self.path and traces:
            activity = trace.sites[[*traces][-1]].output.detach()
            course = functional.pad(activity, (0, 1), value=1.0)  # and a one for the bias
            heard = torch.einsum("t,btn->bn", weights.to(activity), course)
            self._heard = heard + kept * self._heard if part.first else heard

    def _ends(
        self, name: str, trace: Trace, parts: Mapping[str, TrialPart], weights: Tensor
    ) -> Sequence[End]:
        """Return what the readout's filter holds at the end of a part, of a block or of outputs."""
        if trace.plan.boundaries:
            activity = trace.sites[name].output
            if not (self.task.timed or self.estimator.weighted):
                weights = torch.ones_like(weights)
            last = weights.to(activity).view(1, -1, 1).expand_as(activity)
            return ((activity, last),)
        read = parts[self.path].ended[0] if self.task.timed else _readout(trace)
        return [(read, marks.expand_as(read)) for marks in torch.eye(read.shape[1]).to(read)]


def _readout(trace: Trace) -> Tensor:
    """Return the current of the readout, ``[B, K]``."""
    return [*trace.sites.values()][-1].visits[0].outputs[0]


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
