"""Tangents: the directions at the sites' currents in which losses are differentiated forward.

A forward gradient is the mean over copies of ``(g . u) u``, so that directions with ``E[u u'] = 1``
make it unbiased, and one direction of length 1 makes it the projection of ``g`` on that direction.

==========  =====================================================================================
normal      independent standard normal; ``E|g_hat - g|^2 = (d + 1)/m |g|^2``
rademacher  independent signs; ``(d - 1)/m |g|^2``, the least of all independent directions
orthogonal  ``sqrt(d) Q`` with ``m`` orthonormal ``Q``; ``(d/m - 1) |g|^2``, exact for ``m = d``
local       gradient of a local loss: of an auxiliary readout of the block's output, trained by it
ntk         the same of an auxiliary readout that is drawn anew in each step and never trained
fixed_ntk   the same of one that is drawn once and never trained
==========  =====================================================================================

The last three are guesses (Fournier et al. 2023, arXiv 2306.06968): normalised for each example,
``(g . v / |v|^2) v``; a biased estimate, but one that lies where the gradient is likely to be.

Why no antithetic pairs: the slope is linear in ``u``, so that ``-u`` gives the same product again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from biograd.contracts import Round, SiteTrace, Trace, bin_lengths, bins
from biograd.contracts.plan import key_name, module_key
from biograd.contracts.precision import widened
from biograd.errors import CapabilityError
from biograd.estimators.loss_regression import isotropic, orthonormal
from biograd.estimators.weak_gradient import split, unit_sizes
from biograd.ranks import parallel
from biograd.registry import Registry


@dataclasses.dataclass(frozen=True)
class TangentRequest:
    """What directions are asked for.

    Attributes:
        group: names of the sites whose directions are drawn together, as one vector.
        copies: ``m``.
        shared: one direction for all examples of a copy.
        time_bin: number of steps in which a direction stays constant; None: the whole trial.
    """

    group: tuple[str, ...]
    copies: int
    shared: bool
    time_bin: int | None


class Tangents(nn.Module):
    """Where directions come from.

    Attributes:
        guess: True if a clean pass comes first, which ``draw`` finds in ``round.traces``.
        builds: True if ``build`` makes parameters or buffers.
    """

    guess: ClassVar[bool] = False
    builds: ClassVar[bool] = False

    def build(self, trace: Trace, round: Round) -> None:
        """Make auxiliary readouts for the shapes of a clean pass."""

    def draw(self, request: TangentRequest, round: Round) -> dict[str, Tensor]:
        """Return the directions of each site of the group, ``[m, B, K, *U]``."""
        raise NotImplementedError

    def losses(self, trace: Trace) -> Iterator[Tensor]:
        """Yield mean losses by which the auxiliary readouts themselves learn."""
        yield from ()


class RandomTangents(Tangents):
    """Independent of network and data: unbiased."""

    @staticmethod
    def directions(
        shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return directions ``[m, rows, d]`` with ``E[u u'] = 1``."""
        raise NotImplementedError

    def draw(self, request: TangentRequest, round: Round) -> dict[str, Tensor]:
        """Return fresh random directions."""
        sizes = unit_sizes(round.shapes, request.group, request.time_bin)
        size = sum(sizes.values())

        def draw(rows: int) -> Tensor:
            return self.directions((request.copies, rows, size), round.generator, round.dtype)

        drawn = draw(1) if request.shared else parallel.rows(draw, round.batch, axis=1)
        drawn = drawn.to(round.device)
        found = {}
        for name, part in split(drawn.expand(-1, round.batch, -1), sizes).items():
            site = round.shapes[name]
            count = bins(site.steps, request.time_bin)
            found[name] = part.reshape(*part.shape[:2], count, *site.units)
        return found


class Normal(RandomTangents):
    """Standard normal directions."""

    @staticmethod
    def directions(
        shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return independent standard normal directions."""
        return isotropic(shape, stream, dtype)


class Rademacher(RandomTangents):
    """Random signs."""

    @staticmethod
    def directions(
        shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return independent signs."""
        bits = torch.randint(2, shape, generator=stream, device=stream.device)
        return (2 * bits - 1).to(dtype)


class Orthogonal(RandomTangents):
    """Orthonormal directions times ``sqrt(d)``."""

    @staticmethod
    def directions(
        shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return orthogonal directions, for each example by itself.

        Raises:
            RecipeError: more of them than dimensions.
        """
        return math.sqrt(shape[2]) * orthonormal(shape, stream, dtype)


class Auxiliary(nn.Module):
    """A readout of a block's output: ``W_2 relu(W_1 h)``, or ``W h`` without hidden units.

    Weights are normal with standard deviation ``1 / sqrt(fan-in)``.  A time axis is averaged.

    Args:
        sizes: number of inputs, of hidden units if there are any, of outputs.
        like: of the weights' device and type.
        trained: parameters if True, buffers if False.
    """

    def __init__(
        self, sizes: Sequence[int], stream: torch.Generator, like: Tensor, trained: bool
    ) -> None:
        super().__init__()
        self.depth = len(sizes) - 1
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            shape = (outputs, inputs)
            drawn = torch.randn(shape, generator=stream, device=stream.device, dtype=like.dtype)
            weight = (drawn / math.sqrt(inputs)).to(like.device)
            if trained:
                self.register_parameter(f"weight_{index}", nn.Parameter(weight))
            else:
                self.register_buffer(f"weight_{index}", weight)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[B, outputs]`` for ``[B, inputs]``."""
        for index in range(self.depth):
            weight = cast(Tensor, getattr(self, f"weight_{index}"))
            values = nn.functional.linear(values if index == 0 else values.relu(), weight)
        return values


class LocalGuess(Tangents):
    """The gradient of an auxiliary readout's loss at each site, of length 1 in each group.

    Args:
        hidden: number of hidden units of the readout; 0: it is linear.
    """

    guess = True
    builds = True
    trained: ClassVar[bool] = True

    def __init__(self, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.readouts = nn.ModuleDict()

    def build(self, trace: Trace, round: Round) -> None:
        """Draw a readout for every hidden site."""
        for name in round.hidden:
            self.readouts[module_key(name)] = self._readout(name, trace, round.generator)

    def _readout(self, name: str, trace: Trace, stream: torch.Generator) -> Auxiliary:
        inputs = _features(trace.sites[name], name)
        sizes = [inputs.shape[1], *[self.hidden] * bool(self.hidden), trace.outputs[0].numel()]
        return Auxiliary(sizes, stream, inputs, self.trained)

    def readout(self, name: str, trace: Trace, round: Round) -> Auxiliary:
        """Return the readout of a site in this step."""
        return cast(Auxiliary, self.readouts[module_key(name)])

    def draw(self, request: TangentRequest, round: Round) -> dict[str, Tensor]:
        """Return the gradients of the auxiliary losses of the last clean pass."""
        trace = round.traces[-1]
        found = {}
        for name in request.group:
            inputs = _features(trace.sites[name], name)
            loss = _loss(self.readout(name, trace, round), inputs, trace).sum()
            found[name] = gathered(trace.sites[name], loss, request.time_bin)
        length = torch.stack([v.flatten(1).square().sum(1) for v in found.values()]).sum(0).sqrt()
        length = length.clamp_min(torch.finfo(length.dtype).tiny)
        return {
            name: (v / length.view(-1, *[1] * (v.dim() - 1)))[None] for name, v in found.items()
        }

    def losses(self, trace: Trace) -> Iterator[Tensor]:
        """Yield the readouts' losses; they do not reach the network."""
        for name, readout in self.readouts.items():
            place = key_name(name)
            inputs = _features(trace.sites[place], place).detach()
            yield _loss(readout, inputs, trace).mean()


class FixedKernelGuess(LocalGuess):
    """The readouts stay as they were drawn."""

    trained = False

    def losses(self, trace: Trace) -> Iterator[Tensor]:
        """Yield nothing: the readouts do not learn."""
        yield from ()


class KernelGuess(FixedKernelGuess):
    """The readouts are drawn anew in every step and not kept."""

    builds = False

    def build(self, trace: Trace, round: Round) -> None:
        """Make nothing."""

    def readout(self, name: str, trace: Trace, round: Round) -> Auxiliary:
        """Return a fresh readout."""
        return self._readout(name, trace, round.generator)


TANGENTS: Registry[type[Tangents]] = Registry(
    "biograd.tangents",
    {
        "normal": Normal,
        "rademacher": Rademacher,
        "orthogonal": Orthogonal,
        "local": LocalGuess,
        "ntk": KernelGuess,
        "fixed_ntk": FixedKernelGuess,
    },
)
"""Name of a kind of directions to the class that draws them."""


def gathered(site: SiteTrace, loss: Tensor, time_bin: int | None) -> Tensor:
    """Return the derivative of ``loss`` by an offset in each bin of a site's current.

    It has the shape ``[B, K, *U]`` and is the sum of the derivatives in the bin's steps.  The bins
    of a current that is constant over the trial share one value.
    """
    visits, lengths = site.visits[0], bin_lengths(site.shape.steps, time_bin)
    grads = torch.autograd.grad(loss, visits.outputs, retain_graph=True, materialize_grads=True)
    values = grads[0] if visits.time else torch.stack(grads, 1)
    if values.shape[1] == len(lengths):
        return values
    if values.shape[1] == 1:  # a constant current: only the sum over bins is known
        return values.expand(-1, len(lengths), *values.shape[2:])
    parts = values.split(lengths, dim=1)
    return torch.stack([part.sum(1) for part in parts], 1)


def by_owner(names: Sequence[str], owners: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the sites grouped by the loss that credits them.

    >>> by_owner(["a", "b", "c"], {"a": "b", "b": "b", "c": ""})
    [('a', 'b'), ('c',)]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(owners.get(name, ""), []).append(name)
    return [tuple(group) for group in groups.values()]


def _features(site: SiteTrace, name: str) -> Tensor:
    """Return a block's output ``[B, features]``, averaged over time."""
    values = site.activity
    if values is None:
        raise CapabilityError(f"site {name}: its activity was not reached: no local guess there")
    return widened(values.mean(1) if site.timed else values).flatten(1)


def _loss(readout: nn.Module, inputs: Tensor, trace: Trace) -> Tensor:
    with torch.enable_grad():
        outputs = readout(inputs).view(trace.outputs.shape)
        return trace.objective.losses(outputs, trace.targets)
