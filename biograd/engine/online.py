"""A step of a rule that takes its credit while the trial runs: its memory has no trial in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from biograd.circuit.circuit import Circuit
from biograd.contracts import Objective, Round, Site, Substrate, Trace
from biograd.contracts.part import Part, State, parted
from biograd.engine.eligibility import Eligibility
from biograd.engine.step_result import surface
from biograd.errors import CapabilityError
from biograd.neurons.stepped import SteppedPopulation
from biograd.simulators.gathered import GatheringLinear
from biograd.tasks import Task

if TYPE_CHECKING:
    from biograd.estimators import Estimator

LINEAR = (nn.Linear.forward, GatheringLinear.forward)
PATHS = ("filtered", "behind")
"""Where a circuit keeps what it reads with: before its readout, and behind it in every step."""


def online(
    estimator: Estimator,
    network: nn.Module,
    task: Task,
    substrate: Substrate,
    beside: Mapping[str, object],
    outside: str,
) -> Online:
    """Return who runs a network in parts.

    Args:
        beside: what else was attached, by the name of the argument.
        outside: what becomes of parameters that the rule does not credit.

    Raises:
        CapabilityError: what cannot be run in parts, with the place and the way out.
    """
    why = next((f"{name} needs whole trials" for name, one in beside.items() if one is not None), "")
    if outside == "exact":
        why = "outside = 'exact' stores every step"
    elif not why and not isinstance(network, Circuit):
        why = f"{type(network).__name__} runs through time by itself: take one of biograd.build"
    why = why or _unable(cast(Circuit, network), task)
    if why:
        raise CapabilityError(
            f"{type(estimator).__name__}: online = true: {why}; or take online = false"
        )
    return Online(cast(Circuit, network), estimator, task, substrate.sites)


def _unable(network: Circuit, task: Task) -> str:
    """Return why a circuit cannot be run in parts with traces of its synapses; "": it can."""
    blocks = network.graph.blocks
    if network.steps < 2 or network.encoding is None:
        return "the network has no time"
    for name, one in blocks.items():
        if not isinstance(one.cells, SteppedPopulation) or network.simulator == "brian2":
            return f"{name} is simulated by Brian2, a whole trial at once"
        if getattr(one.cells, "factors", None):
            return f"{name} learns constants of its neurons, which have no trace"
        if one.before or one.after or not one.inner:
            what = next(iter((*one.before, *one.after)), "a circuit of populations")
            return f"{name} has {what}, which no trace passes"
    for one in network.graph.projections:
        own = one.source == one.target and one.lag == 1
        if network.graph.together or one.port == "passed" or (one.lag and not own):
            return f"{one.path} leads back, around or later than at once, which no trace passes"
        if type(one.layer).forward not in LINEAR:
            return f"{one.path} ({type(one.layer).__name__}) has no weight for each synapse"
    if len(network.heard) != 1 or network.heard[0].part is not None:
        return "the readout listens to several populations"
    if network.heard[0].path != network.graph.order[-1]:
        return "the readout does not listen to the last population"
    if type(network.readout).forward not in LINEAR:
        return f"the readout, {type(network.readout).__name__}, is not linear in what it hears"
    kind = getattr(getattr(network, "filtered", None), "kind", "")
    if kind == "first_spike":
        return "network.readout = 'first_spike': the weight of a step depends on later ones"
    if task.closed_loop or not task.differentiable:
        return f"the task {type(task).__name__} has no gradient at the end of a part"
    return ""


class Online:
    """Runs the trials of a batch in parts and adds up the credit.

    Attributes:
        network: what is run.
        estimator: its rule.
    """

    def __init__(
        self, network: Circuit, estimator: Any, task: Task, sites: Sequence[Site]
    ) -> None:
        self.network, self.estimator, self.task = network, estimator, task
        self.sites, self.trial = tuple(sites), network.steps
        self.path = next((n for n in PATHS if hasattr(getattr(network, n, None), "weigh")), "")
        self.reader: Any = getattr(network, self.path) if self.path else None

    def first(self, encoded: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the first part, by which the network is looked at."""
        steps = min(self.estimator.parts, self.trial)
        own = self.task.part(targets, 0, steps, self.trial)
        return self._inputs(encoded, 0, steps), targets if own is None else own[0]

    def opening(self) -> AbstractContextManager[Any]:
        """Return a context in which passes run the first part."""
        steps = min(self.estimator.parts, self.trial)
        return parted(self.network, 0, steps, self.trial, {})

    def _inputs(self, encoded: Tensor, first: int, steps: int) -> Tensor:
        return encoded if encoded.shape[1] == 1 else encoded[:, first : first + steps]

    def step(
        self,
        round: Round,
        encoded: Tensor,
        targets: Tensor,
        substrate: Substrate,
        stream: torch.Generator,
    ) -> list[tuple[Tensor, Tensor]]:
        """Run all parts of a batch and return the credit; the trace is the last, of all losses.

        Args:
            stream: of dropout.
        """
        (plan,) = self.estimator.plans(round)
        traces = {name: self._eligibility(name, round) for name in round.blocks}
        states: dict[str, State] = {}
        sums = {id(p): (p, torch.zeros_like(p)) for p in round.parameters}
        losses, outputs = [], []
        for first in range(0, self.trial, self.estimator.parts):
            steps = min(self.estimator.parts, self.trial - first)
            leaves = {n: tuple(v.detach().requires_grad_() for v in s) for n, s in states.items()}
            own, objective = self._asked(targets, first, steps)
            with parted(self.network, first, steps, self.trial, leaves) as parts:
                given = self._inputs(encoded, first, steps)
                trace = substrate.run(plan, given, own, objective, stream)
            trace.peak = self._peak()
            round.traces[:] = [trace]
            if self.task.timed or parts[""].last:
                found = self._credited(round, trace, leaves, traces, parts[""])
                for parameter, gradient in found:
                    if id(parameter) in sums:
                        sums[id(parameter)][1].add_(gradient)
                losses.append(trace.losses)
            if self.task.timed:
                outputs.append(trace.outputs)
            states = self._advance(trace, parts, leaves, traces)
        whole = torch.stack(losses).sum(0)
        shown = torch.cat(outputs, 1) if outputs else trace.outputs
        found = dataclasses.replace(trace, losses=whole, loss=whole.mean(), outputs=shown)
        round.traces[:] = [found]
        return list(sums.values())

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
        weights, _ = self.reader.weigh(Part(0, self.trial, self.trial))
        return float(weights[weights.abs().argmax()])

    def _credited(
        self,
        round: Round,
        trace: Trace,
        leaves: Mapping[str, State],
        traces: Mapping[str, Eligibility],
        part: Part,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the credit of a part, and of what was before through the states it began in."""
        surrogate = surface(trace.loss, list(self.estimator.credit([trace], round)))
        names = [(n, place) for n, state in leaves.items() for place in range(len(state))]
        wanted = [*round.parameters, *(leaves[n][place] for n, place in names)]
        found = torch.autograd.grad(surrogate, wanted, retain_graph=True, allow_unused=True)
        yield from (
            (p, g) for p, g in zip(round.parameters, found, strict=False) if g is not None
        )
        if not leaves:
            return
        by_state = dict(zip(names, found[len(round.parameters) :], strict=True))
        error = self._late(trace, by_state)
        for name, kept in traces.items():
            population = self._population(name)
            states = [by_state[population, place] for place in range(len(leaves[population]))]
            late = None if error is None else self.estimator.late(name, error, trace, round)
            yield from kept.credit(states, late)
        if error is not None and self.task.timed:
            yield from self._read(error, part)

    def _late(
        self, trace: Trace, by_state: Mapping[tuple[str, int], Tensor | None]
    ) -> Tensor | None:
        """Return the error that the readout's current before the part deserves, ``[B, K]``."""
        if not self.path:
            return None
        if self.task.timed:
            return by_state[self.path, 0]
        return trace.signal().sum(1)

    def _read(self, error: Tensor, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the readout's gradient through outputs that outlast their step."""
        readout = self.network.readout
        yield readout.get_parameter("weight"), error.T @ self._heard
        if readout.bias is not None:
            kept = self.reader.weigh(Part(0, part.first, self.trial))[0].sum()
            yield readout.get_parameter("bias"), error.sum(0) * float(kept)

    def _advance(
        self,
        trace: Trace,
        parts: Mapping[str, Part],
        leaves: Mapping[str, State],
        traces: Mapping[str, Eligibility],
    ) -> dict[str, State]:
        """Take the traces of all synapses to the end of a part; return the states there."""
        part = parts[""]
        weights, kept = torch.zeros(part.steps), 0.0
        if self.path:
            weights, kept = self.reader.weigh(part)
        for name, one in traces.items():
            population = self._population(name)
            begun, ended = leaves.get(population, ()), parts[population].ended
            one.advance(trace, name, begun, ended, weights, kept)
        if self.path and traces:
            activity = trace.sites[next(reversed(traces))].output.detach()
            heard = torch.einsum("t,btn->bn", weights.to(activity), activity)
            self._heard = heard + (kept * self._heard if part.first else 0.0)
        return {name: tuple(v.detach() for v in one.ended) for name, one in parts.items()
                if one.ended}  # fmt: skip


def _nothing(outputs: Tensor, _targets: Tensor) -> Tensor:
    """Return the loss of a part in which the trial does not end."""
    return outputs.flatten(1).sum(1) * 0


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
