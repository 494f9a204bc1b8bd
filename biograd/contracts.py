"""The nouns that every stage shares: plan, trace, credit, site and substrate.

Flow of one step::

    estimator.plans(round) -> substrate.run(plan, batch) -> estimator.credit(traces) -> pullback

A *block* is a site with what follows it up to the next one; its output is the site's *activity*.
Credit can be stopped at either end: behind the current (``Plan.cut``), so that nothing above it
need be differentiable, or behind the activity (``Plan.boundaries``), so that a block is
differentiated by itself.

Shapes: ``B`` examples, ``S`` copies (copy 0 is clean, ``m = S - 1`` are noisy), ``K`` time bins in
which a perturbation stays constant (1: frozen over the trial), ``U`` the shape of a site's units.
Credit is the derivative of the *mean* loss: the factor 1/B is always included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from biograd.checking import Count
from biograd.tasks.task import vectors

Capability = Literal[
    "loss",
    "perturb_parameter",
    "perturb_site",
    "jvp_parameter",
    "jvp_site",
    "observe",
    "cut",
    "local_vjp",
    "vjp",
]
"""What a substrate can do; ``local_vjp``: differentiate a block, from current to activity."""
Credit = Iterable[tuple[Tensor, Tensor]]
"""Pairs of a tensor and its cotangent, the derivative of the mean loss by that tensor."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``[rows, ...]`` and targets ``[rows, ...]`` to one loss a row, ``[rows]``, or in time
one a row and step, ``[rows, T]``, whose sum it is."""
TimeBin = Count | Literal["trial"] | None
"""Steps in which a perturbation stays constant; None: one where the task is in time, else all."""
LocalLoss = Callable[[Tensor, Tensor], Tensor]
"""Activity ``[rows, ...]`` and targets ``[rows, ...]`` to losses ``[rows, *cells]``, one a row and
cell; a cell is a group of units with a loss of its own (a patch, a group of channels, a step)."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where noise enters and credit is delivered: the input current of one population.

    Several synaptic layers may feed one current (feed-forward and recurrent weights); they share
    its perturbation and its credit.

    Attributes:
        name: as it stands in run files.
        modules: dotted names of the layers whose outputs sum into the current.
        time: True if the layer's output has a time axis, ``[rows, time, *U]``; a layer without
            it, ``[rows, *U]``, may be visited once a step.
        activity: dotted name of the module whose output is the block's; None: the input of the
            next site's first layer.
        current: dotted name of the module whose output is the current (a normalisation behind
            the layer, for instance); None: the layers' outputs summed.
        block: name of the site whose block this one enters: another current of the same neurons,
            which has no activity of its own; it stands before that site.  None: its own block.
        inner: those of its layers that the block's own activity feeds (recurrent ones); None: all
            but the first.
        population: dotted name of the module that holds the neurons' states, where more follows
            them in the block (dropout, a skip); None: ``activity``.
    """

    name: str
    modules: tuple[str, ...]
    time: tuple[bool, ...]
    activity: str | None = None
    current: str | None = None
    block: str | None = None
    inner: tuple[str, ...] | None = None
    population: str | None = None

    @property
    def neurons(self) -> str | None:
        """Dotted name of the module that holds the neurons' states."""
        return self.population or self.activity


@dataclasses.dataclass(frozen=True)
class SiteShape:
    """What a first pass learned of a site: the shape ``U`` of its units and its number of steps."""

    units: tuple[int, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class ParameterNoise:
    """Perturbation of all parameters by ``sigma`` times the noise that each seed regenerates."""

    seeds: tuple[int, ...]
    """One seed for each noisy copy; equal seeds draw equal noise."""
    scales: tuple[float, ...]
    """Signed size of each copy's noise; an antithetic pair has equal seeds, opposite scales."""

    def draw(self, copy: int, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
        """Yield the standard normal noise of one copy, parameter by parameter."""
        parameters = list(parameters)
        device = parameters[0].device if parameters else torch.device("cpu")
        stream = torch.Generator(device=device)
        stream.manual_seed(self.seeds[copy])
        for parameter in parameters:
            yield torch.randn(
                parameter.shape, generator=stream, device=device, dtype=parameter.dtype
            )


@dataclasses.dataclass(frozen=True)
class Transport:
    """How credit passes back through a block when it is not plain autograd.

    Attributes:
        feedback: name of a layer to the weight that stands in for its own when credit passes to
            its input; a parameter receives the gradient that the layer's own weight receives.
        derivative: of a spike by its distance to the threshold, in place of the surrogate.
        window: number of steps after which credit through time is cut; None: never.
        traces: credit to the current passes through all of time, to its input only through
            ``window`` (online training through time).
        slots: the state of a population that enters a window is a leaf (``SiteTrace.states``),
            whose gradient arrives from the steps that follow; not together with ``traces``.
    """

    feedback: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    derivative: Callable[[Tensor], Tensor] | None = None
    window: int | None = None
    traces: bool = False
    slots: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised: the loss of the outputs, and local losses at sites' activities.

    What follows a site with a local loss receives its activity without credit, so that each
    block is trained by its own loss.

    Attributes:
        local: name of a site to the losses of its activity; sites in the order of the data flow.
        vectors: outputs and targets to targets in the outputs' shape.
    """

    loss: Loss
    local: Mapping[str, LocalLoss] = dataclasses.field(default_factory=dict)
    vectors: Loss = vectors

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss a row, ``[rows]``."""
        found = self.loss(outputs, targets)
        return found if found.dim() == 1 else found.sum(1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one round of forward passes is run.

    Attributes:
        noise: what is added to a site's current in the noisy copies, ``[m, B, K, *U]``.
        parameter_noise: what is added to the parameters in each noisy copy.
        time_bin: number of steps in which the noise stays constant; None: the whole trial.
        cut: names of the sites behind whose current no credit flows.
        graph: keep the autograd graph of the clean copy.
        observe: also return the currents of the noisy copies.
        observe_activity: also return the activities of the noisy copies.
        tangents: directions at the sites' currents in which the losses are differentiated
            forward, ``[m, B, K, *U]``.
        parameter_tangents: directions in the space of the parameters, likewise.
        boundaries: names of the sites behind whose activity no credit flows.
        clamp: name of a site to what follows sees in place of its activity; a boundary.
        slots: what follows a boundary sees a leaf, ``SiteTrace.slot``, whose gradient arrives
            from above.
        detach: names of layers to whose input no credit flows (recurrent ones, for instance).
        transport: how credit passes through a block.
        inputs: turns the batch's encoded inputs into those that the network receives, row by row
            (labels laid over them, for instance); None: they stay as they are.
    """

    noise: Mapping[str, Tensor] | None = None
    parameter_noise: ParameterNoise | None = None
    time_bin: int | None = None
    cut: frozenset[str] = frozenset()
    graph: bool = True
    observe: bool = False
    tangents: Mapping[str, Tensor] | None = None
    parameter_tangents: ParameterNoise | None = None
    boundaries: frozenset[str] = frozenset()
    clamp: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    slots: bool = False
    detach: frozenset[str] = frozenset()
    transport: Transport = Transport()
    inputs: Callable[[Tensor], Tensor] | None = None
    observe_activity: bool = False

    @property
    def copies(self) -> int:
        """The number of copies ``S``, the clean one included."""
        if self.noise:
            return 1 + next(iter(self.noise.values())).shape[0]
        return 1 + (len(self.parameter_noise.seeds) if self.parameter_noise else 0)

    @property
    def passes(self) -> int:
        """The number of times that an example goes forward: in each copy, and for each tangent."""
        given = [*(self.noise or {}).values()][:1] + [*(self.tangents or {}).values()][:1]
        shared = [noise for noise in (self.parameter_noise, self.parameter_tangents) if noise]
        return 1 + sum(map(len, given)) + sum(len(noise.seeds) for noise in shared)


def bin_width(time_bin: TimeBin, timed: bool) -> int | None:
    """Return the length of a bin in steps, None: the whole trial.

    Noise that is constant over a trial gives a biased estimate as soon as credit differs between
    steps, so that in a task in time a bin is one step, if nothing else is asked for.
    """
    if time_bin is None:
        return 1 if timed else None
    return None if isinstance(time_bin, str) else time_bin


def bins(steps: int, time_bin: int | None) -> int:
    """Return ``K``, the number of time bins of a trial of ``steps`` steps."""
    return 1 if time_bin is None else -(-steps // time_bin)


def bin_lengths(steps: int, time_bin: int | None) -> list[int]:
    """Return the length in steps of each of the ``K`` bins; the last may be shorter.

    >>> bin_lengths(7, 3), bin_lengths(7, None)
    ([3, 3, 1], [7])
    """
    width = steps if time_bin is None else time_bin
    return [min(width, steps - start) for start in range(0, steps, width)]


@dataclasses.dataclass
class Visits:
    """The outputs of one layer in the clean copy, in the order in which it was called.

    Attributes:
        outputs: each ``[B, *U]``, or ``[B, time, *U]`` with ``time`` one of 1 (the same current
            in every step), ``K`` (the mean current of each bin) or the number of steps.
        inputs: what the layer received in each call, without a graph.
        received: the same with the graph, if the plan has slots.
    """

    time: bool
    outputs: list[Tensor] = dataclasses.field(default_factory=list)
    inputs: list[Tensor] = dataclasses.field(default_factory=list)
    received: list[Tensor] = dataclasses.field(default_factory=list)

    def binned(self, steps: int, time_bin: int | None) -> Tensor:
        """Return the mean output in each bin, ``[B, K, *U]``."""
        lengths = bin_lengths(steps, time_bin)
        values = self.outputs[0] if self.time else torch.stack(self.outputs, 1)
        if values.shape[1] == 1:
            return values.expand(-1, len(lengths), *values.shape[2:])
        if values.shape[1] == len(lengths):
            return values
        if len(lengths) == 1:
            return values.mean(1, keepdim=True)
        return torch.stack([part.mean(1) for part in _split(values, lengths)], 1)

    def deliver(self, gradient: Tensor, steps: int, time_bin: int | None) -> Credit:
        """Pair every output with its share of ``gradient`` ``[B, K, *U]``.

        The derivative by an offset that acts throughout a bin is the sum of the derivatives in
        its steps; without more knowledge each step receives an equal share.
        """
        lengths = bin_lengths(steps, time_bin)
        if self.time:
            values = self.outputs[0]
            if values.shape[1] == 1:
                yield values, gradient.sum(1, keepdim=True)
            elif values.shape[1] == len(lengths):
                yield values, gradient
            else:
                count = torch.tensor(lengths, device=gradient.device)
                share = gradient / count.view(1, -1, *[1] * (gradient.dim() - 2))
                yield values, share.repeat_interleave(count, dim=1)
            return
        for visit, values in enumerate(self.outputs):
            index = min(visit // lengths[0], len(lengths) - 1)
            yield values, gradient[:, index] / lengths[index]


def _split(values: Tensor, lengths: list[int]) -> Iterable[Tensor]:
    return values[:, : sum(lengths)].split(lengths, dim=1)


@dataclasses.dataclass
class SiteTrace:
    """What a round left behind at one site.

    Attributes:
        visits: the clean outputs of the site's layers.
        noise: what was added in the noisy copies, ``[m, B, K, *U]``, or None.
        observed: mean currents of the noisy copies, ``[m, B, K, *U]``, or None.
        observed_activity: the block's output in the noisy copies, ``[m, B, ...]``, or None.
        activity: the block's output in the clean copy, ``[B, ...]``, with the plan's graph; the
            outputs of several calls are stacked, ``[B, time, ...]``.  None for the readout.
        slot: what followed saw in its place, a leaf; None if the plan asks for no slots.
        states: for every window of ``Transport.window`` but the last, if the plan's transport has
            slots: the population's state at its end with the graph, ``[B, P, *U]`` for ``P`` state
            variables, and the leaf that the next window started from.
        variables: ``P``, the number of state variables of the site's population; 0 without time.
    """

    shape: SiteShape
    visits: list[Visits]
    time_bin: int | None = None
    noise: Tensor | None = None
    observed: Tensor | None = None
    activity: Tensor | None = None
    slot: Tensor | None = None
    states: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    variables: int = 0
    observed_activity: Tensor | None = None

    @property
    def timed(self) -> bool:
        """Whether the activity has a time axis beside those of the units."""
        steps = self.shape.steps > 1 or any(visits.time for visits in self.visits)
        axes = 2 + len(self.shape.units)
        return steps and self.activity is not None and self.activity.dim() == axes

    def current(self) -> Tensor:
        """Return the clean mean input current in each bin, ``[B, K, *U]``, without a graph."""
        parts = [visits.binned(self.shape.steps, self.time_bin) for visits in self.visits]
        return torch.stack([part.detach() for part in parts]).sum(0)

    def trial_mean(self) -> Tensor:
        """Return the clean mean input current of the whole trial, ``[B, *U]``, without a graph."""
        parts = [visits.binned(self.shape.steps, None)[:, 0] for visits in self.visits]
        return torch.stack([part.detach() for part in parts]).sum(0)

    def deliver(self, gradient: Tensor) -> Credit:
        """Pair every clean output with its share of ``gradient`` ``[B, K, *U]``."""
        for visits in self.visits:
            yield from visits.deliver(gradient, self.shape.steps, self.time_bin)


@dataclasses.dataclass
class Trace:
    """What a round of forward passes left behind.

    Attributes:
        losses: ``[S, B]``, one loss per copy and example, without a graph.
        step_losses: ``[S, B, T]``, what each step adds to them, of a task in time; else None.
        loss: mean clean loss, local losses included; it carries the graph if the plan asked for
            one.
        outputs: clean outputs ``[B, ...]``, without a graph.
        targets: of the batch.
        objective: what was minimised.
        local: name of a site to its local losses ``[S, B, *cells]``, without a graph.
        slopes: ``[m, B]``, derivatives of the losses in the directions of the plan's tangents.
        local_slopes: the same of the local losses, ``[m, B, *cells]``.
        means: name of a site with a local loss, "" for the outputs, to the mean losses ``[m]`` of
            all noisy copies, if ranks have divided them; ``losses`` and ``local`` then hold those
            of this rank alone.
    """

    plan: Plan
    losses: Tensor
    loss: Tensor
    outputs: Tensor
    sites: dict[str, SiteTrace]
    targets: Tensor
    objective: Objective
    local: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    slopes: Tensor | None = None
    local_slopes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    means: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    step_losses: Tensor | None = None

    def error(self) -> Tensor:
        """Return the derivative of the mean clean loss by the outputs, ``[B, ...]``."""
        with torch.enable_grad():
            outputs = self.outputs.clone().requires_grad_()
            loss = self.objective.losses(outputs, self.targets).mean()
            return torch.autograd.grad(loss, outputs)[0]

    def signal(self) -> Tensor:
        """Return the derivative of the mean clean loss by the readout's current, ``[B, T|1, K]``.

        What lies behind the readout's layer, a leaky filter for instance, is passed exactly, so
        that each step has its own error; one step, where the layer is called once for the trial.
        """
        visits = list(self.sites.values())[-1].visits[0]
        found = torch.autograd.grad(self.loss, visits.outputs, retain_graph=True)
        values = found[0] if visits.time else torch.stack(found, 1)
        return values.flatten(2)

    def shares(self, name: str) -> Tensor | None:
        """Return the weight of each step of a block in what the readout receives, ``[B, T]``.

        It is the derivative of what the readout's layer receives by the block's output, the mean
        over its units, relative to that of the step that weighs most: exact for every readout
        that weighs the steps alike for all units.  The plan must have slots.  None: the output
        has no steps, or the readout does not receive it.
        """
        site, slot = self.sites[name], self.sites[name].slot
        received = list(self.sites.values())[-1].visits[0].received
        if slot is None or not site.timed:
            return None
        ones = [torch.ones_like(part) for part in received]
        found = torch.autograd.grad(received, slot, ones, retain_graph=True, allow_unused=True)[0]
        if found is None:
            return None
        weights = found.flatten(2).mean(2)
        most = weights.gather(1, weights.abs().argmax(1, keepdim=True))
        return torch.where(most == 0, torch.ones_like(weights), weights / most)

    def tails(self, steps: int, time_bin: int | None) -> Tensor | None:
        """Return the losses of the steps from each bin on, ``[S, B, K]``; None in a single bin.

        Noise in a bin acts on its own step and later ones, and on no loss before.  None also
        where the losses have no steps, or other steps than the site.
        """
        lengths = bin_lengths(steps, time_bin)
        if self.step_losses is None or len(lengths) == 1 or self.step_losses.shape[2] != steps:
            return None
        parts = torch.stack([part.sum(2) for part in self.step_losses.split(lengths, 2)], 2)
        return parts.flip(2).cumsum(2).flip(2)


@dataclasses.dataclass(frozen=True)
class Round:
    """What an estimator knows when it plans: the sites, the batch and its random stream.

    Attributes:
        hidden: names of the sites that may be perturbed and cut, in the order of the data flow.
        readout: name of the last site.
        scales: root mean square of the mean current of each hidden site.
        parameters: the network's trainable parameters.
        layers: name of a synaptic layer to the module, in the order of the sites.
        site_layers: name of a site to the names of its layers.
        targets: of the batch.
        index: rows of the examples in the data set.
        traces: of the plans of this step that have been run; ``plans`` may be a generator that
            looks at them before it yields the next.
        owners: name of a site to the site whose local loss is the first behind it; "": the loss
            of the outputs.
        cells: name of a site to the shape of its local loss's cells.
        levels: name of a site to the number of leading cell axes whose cells depend on none but
            their own units at that site (see ``LocalLosses.spread``).
        parameter_owners: the same as ``owners`` for each parameter.
        sides: names of the hidden sites that enter another site's block (``Site.block``).
        inner: name of a block to the layers that its own activity feeds.
        spread: a site and values for each cell of its local loss, ``[..., *cells]``, to the
            values for its units, ``[..., *U]``: those of the cells that they act on, summed.
        timed: whether the task is one in time, with targets in every step.
        differentiable: whether the loss of the outputs has a graph; if not, the readout, too, is
            perturbed.
    """

    batch: int
    step: int
    hidden: tuple[str, ...]
    shapes: Mapping[str, SiteShape]
    scales: Mapping[str, float]
    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    parameters: tuple[Tensor, ...] = ()
    readout: str = ""
    layers: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    site_layers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    targets: Tensor | None = None
    index: Tensor | None = None
    traces: list[Trace] = dataclasses.field(default_factory=list)
    owners: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cells: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    levels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parameter_owners: tuple[str, ...] = ()
    sides: frozenset[str] = frozenset()
    inner: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    spread: Callable[[str, Tensor], Tensor] | None = None
    timed: bool = False
    differentiable: bool = True

    @property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the sites that learn from noise: the hidden ones, without a graph all."""
        return self.hidden if self.differentiable else (*self.hidden, self.readout)

    def width(self, time_bin: TimeBin) -> int | None:
        """Return the length of a bin in steps, None: the whole trial."""
        return bin_width(time_bin, self.timed)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the hidden sites that have a block of their own."""
        return tuple(name for name in self.hidden if name not in self.sides)

    def recurrent(self, name: str) -> tuple[str, ...]:
        """Return the names of the layers that the activity of a block itself feeds."""
        return self.inner.get(name, self.site_layers[name][1:])

    def losses(self, trace: Trace, name: str) -> Tensor:
        """Return the losses ``[S, B]`` that credit a site: its own local loss's, or the outputs'.

        The cells of a local loss have one common value in every copy: stop-gradients, by which
        their slopes differ, do not act on values.  So it is their mean, not their sum.

        Args:
            name: of a site.
        """
        owner = self.owners.get(name, "")
        if not owner:
            return trace.losses
        return trace.local[owner].reshape(*trace.losses.shape, -1).mean(-1)

    def slopes(self, trace: Trace, name: str) -> Tensor:
        """Return the slopes that credit each unit of a site, ``[m, B, 1, *U]`` or of ones in U."""
        owner, units = self.owners.get(name, ""), self.shapes[name].units
        if owner and self.spread is not None:
            return self.spread(name, trace.local_slopes[owner]).unsqueeze(2)
        assert trace.slopes is not None
        return trace.slopes.view(*trace.slopes.shape, *[1] * (len(units) + 1))


class Substrate(Protocol):
    """Who runs the forward passes of ``module``."""

    name: str
    module: nn.Module
    sites: tuple[Site, ...]
    """All sites in the order of the data flow; the last is the readout."""
    capabilities: frozenset[Capability]
    limits: tuple[str, ...]
    """Why it cannot do what others of its kind can, a line each."""

    @property
    def recording(self) -> bool:
        """Whether the clean copy of a round is under way."""
        ...

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Turn raw inputs into what the copies share."""
        ...

    def run(
        self,
        plan: Plan,
        encoded: Tensor,
        targets: Tensor,
        objective: Objective,
        stream: torch.Generator | None = None,
    ) -> Trace:
        """Run one round: the clean copy, and the plan's noisy copies; dropout uses ``stream``."""
        ...

    def time(self, steps: int) -> bool:
        """Take axes of ``steps`` as time in a task that has it; return whether a site changed."""
        ...

    def close(self) -> None:
        """Remove every hook."""
        ...
