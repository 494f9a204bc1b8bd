"""What is run: sites, and the plan of one round of forward passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from biograd.checking import Checked, Count
from biograd.contracts.activity_bounds import ActivityBounds
from biograd.contracts.parameter_noise import ParameterNoise
from biograd.errors import RecipeError
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
"""Steps in which a perturbation stays constant; None: one where inputs or targets vary in time,
else all."""
LocalLoss = Callable[[Tensor, Tensor], Tensor]
"""Activity ``[rows, ...]`` and targets ``[rows, ...]`` to losses ``[rows, *cells]``, one a row and
cell; a cell is a group of units with a loss of its own (a patch, a group of channels, a step)."""


def module_key(name: str) -> str:
    """Return a site's or layer's name as one that a module can have.

    >>> module_key("blocks.0.synapse"), key_name(module_key("blocks.0.synapse"))
    ('blocks/0/synapse', 'blocks.0.synapse')
    """
    return name.replace(".", "/")


def key_name(key: str) -> str:
    """Return the name of the site or layer that ``module_key`` made a key of."""
    return key.replace("/", ".")


@dataclasses.dataclass(frozen=True)
class Site(Checked):
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

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            RecipeError: wrong types, no layer, or not one ``time`` for each.
        """
        super().__post_init__()
        if not self.modules or len(self.time) != len(self.modules):
            raise RecipeError(
                f"Site: {self.name}: {len(self.modules)} modules, {len(self.time)} values of time: "
                "give at least one layer, and True or False for each"
            )

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
        alive: outputs ``[rows, T, ...]`` to whether a row's trial still went on in each step,
            ``[rows, T]``; None: every trial lasts all steps.
        discount: factor by which a loss counts less with every step that it comes later.
        bounds: of the activity of hidden units, a part of the loss; None: it costs nothing.
    """

    loss: Loss
    local: Mapping[str, LocalLoss] = dataclasses.field(default_factory=dict)
    vectors: Loss = vectors
    alive: Callable[[Tensor], Tensor] | None = None
    discount: float = 1.0
    bounds: ActivityBounds | None = None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss a row, ``[rows]``."""
        found = self.loss(outputs, targets)
        return found if found.dim() == 1 else self.total(found)

    def total(self, steps: Tensor) -> Tensor:
        """Return the losses that those of the steps, ``[rows, T]``, add up to, ``[rows]``."""
        if self.discount == 1.0:
            return steps.sum(1)
        places = torch.arange(steps.shape[1], device=steps.device)
        return steps @ (self.discount**places).to(steps.dtype)


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
        observe_inputs: also return what each layer received in the noisy copies.
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
    observe_inputs: bool = False

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


def bin_width(time_bin: TimeBin, varying: bool) -> int | None:
    """Return the length of a bin in steps, None: the whole trial.

    Noise that is constant over a trial tells of the mean current alone: the estimate is biased as
    soon as credit and input vary together between steps.  Where inputs vary in time, or targets
    are in time, a bin is therefore one step, if nothing else is asked for.
    """
    if time_bin is None:
        return 1 if varying else None
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
