"""The nouns that every stage shares: plan, trace, credit, site and substrate.

Flow of one step::

    estimator.plans(round) -> substrate.run(plan, batch) -> estimator.credit(traces) -> pullback

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

Capability = Literal["loss", "perturb_parameter", "perturb_site", "observe", "cut", "vjp"]
Credit = Iterable[tuple[Tensor, Tensor]]
"""Pairs of a tensor and its cotangent, the derivative of the mean loss by that tensor."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``[rows, ...]`` and targets ``[rows, ...]`` to one loss a row, ``[rows]``."""


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
    """

    name: str
    modules: tuple[str, ...]
    time: tuple[bool, ...]


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
class Plan:
    """How one round of forward passes is run.

    Attributes:
        noise: what is added to a site's current in the noisy copies, ``[m, B, K, *U]``.
        parameter_noise: what is added to the parameters in each noisy copy.
        time_bin: number of steps in which the noise stays constant; None: the whole trial.
        cut: names of the sites behind which no credit flows.
        graph: keep the autograd graph of the clean copy.
        observe: also return the currents of the noisy copies.
    """

    noise: Mapping[str, Tensor] | None = None
    parameter_noise: ParameterNoise | None = None
    time_bin: int | None = None
    cut: frozenset[str] = frozenset()
    graph: bool = True
    observe: bool = False

    @property
    def copies(self) -> int:
        """The number of copies ``S``, the clean one included."""
        if self.noise:
            return 1 + next(iter(self.noise.values())).shape[0]
        return 1 + (len(self.parameter_noise.seeds) if self.parameter_noise else 0)


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
    """

    time: bool
    outputs: list[Tensor] = dataclasses.field(default_factory=list)

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
    """

    shape: SiteShape
    visits: list[Visits]
    time_bin: int | None = None
    noise: Tensor | None = None
    observed: Tensor | None = None

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
        loss: mean clean loss; it carries the graph if the plan asked for one.
        outputs: clean outputs ``[B, ...]``, without a graph.
    """

    plan: Plan
    losses: Tensor
    loss: Tensor
    outputs: Tensor
    sites: dict[str, SiteTrace]


@dataclasses.dataclass(frozen=True)
class Round:
    """What an estimator knows when it plans: the sites, the batch and its random stream.

    Attributes:
        hidden: names of the sites that may be perturbed and cut, in the order of the data flow.
        scales: root mean square of the mean current of each hidden site.
        parameters: the network's trainable parameters.
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
    index: Tensor | None = None


class Substrate(Protocol):
    """Who runs the forward passes of ``module``."""

    name: str
    module: nn.Module
    sites: tuple[Site, ...]
    """All sites in the order of the data flow; the last is the readout."""
    capabilities: frozenset[Capability]

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
        loss: Loss,
        stream: torch.Generator | None = None,
    ) -> Trace:
        """Run one round: the clean copy, and the plan's noisy copies; dropout uses ``stream``."""
        ...

    def close(self) -> None:
        """Remove every hook."""
        ...
