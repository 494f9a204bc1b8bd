"""What a rule knows when it plans, and who runs what it has planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from biograd.contracts.plan import Capability, Objective, Plan, Site, SiteShape, TimeBin, bin_width
from biograd.contracts.trace import Trace


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
        timed: whether the task is one in time, with targets in every step, or the outputs are
            those of every step.
        varying: whether the inputs vary between the steps of a trial.
        differentiable: whether the readout has an exact gradient: its loss has a graph, and no
            neurons follow; if not, the readout, too, is perturbed.
        unrolled: whether the network runs through time by itself, with neurons in which no plan's
            transport acts.
        closed_loop: whether what a copy receives follows from what it did before, as in an
            environment: credit then pairs its noise with its own inputs.
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
    varying: bool = False
    differentiable: bool = True
    unrolled: bool = False
    closed_loop: bool = False

    @property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the sites that learn from noise: the hidden ones, without a graph all."""
        return self.hidden if self.differentiable else (*self.hidden, self.readout)

    def width(self, time_bin: TimeBin) -> int | None:
        """Return the length of a bin in steps, None: the whole trial."""
        return bin_width(time_bin, self.timed or self.varying)

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
    populations: Mapping[str, nn.Module]
    """Dotted names of modules whose neurons obey a plan's ``transport``, and the modules."""

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

    def join(self, groups: Sequence[Sequence[str]]) -> None:
        """Make each group of sites one, which has the first's name and the layers of all."""
        ...

    def recur(self, inner: Mapping[str, Sequence[str]]) -> None:
        """Let layers of sites be those that their own block feeds; they stand behind the others."""
        ...

    def close(self) -> None:
        """Remove every hook."""
        ...
