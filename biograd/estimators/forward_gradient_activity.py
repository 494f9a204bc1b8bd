"""Forward gradient on activities: the loss's slope along directions at all currents at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, SiteTrace, Trace, bin_lengths
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators.estimator import Estimator
from biograd.estimators.tangents import TANGENTS, LocalGuess, TangentRequest, by_owner
from biograd.recipes import Count, Range, validate


class ForwardGradientActivity(Estimator):
    """Weigh each unit's direction by the slope of the example's loss along all directions.

    ``g_j = (1/m) sum_s (sum_j' dL/dz_j' u_sj') u_sj`` at the currents ``z`` of the hidden sites,
    for each example by itself; the inner product is one forward-mode derivative, no credit passes
    back.  Per element of a weight of fan-out ``q``, with ``N`` examples, mean variance ``V`` of
    the gradient and mean square ``S`` of its mean, the variance for normal directions is
    ``(q + 2)/N V + (q + 1)/N S``, and with shared directions ``(q + 2)/N V + (q + 1) S``.
    With local losses each unit takes the slope of the loss that credits it.  The readout's
    gradient, and that of local heads, is exact.

    Args:
        copies: ``m``, directions for each example; guesses have one.
        tangents: kind of directions (``tangents.TANGENTS``): "normal", "rademacher",
            "orthogonal" are unbiased, "local", "ntk", "fixed_ntk" are guesses for the loss of the
            outputs.
        sites: "all" hidden sites share each pass, ``q`` being the number of all their units that
            one loss credits; "each" site has ``m`` passes to itself, ``q`` its own units;
            "round_robin" one site in each step.
        shared: one direction for all examples of a copy.
        sparse: no credit for units whose activity is zero.  Behind a ReLU their derivative is
            zero, so that this is the estimate with ``u = 0`` there; in spiking networks silent
            neurons do not learn.  Blocks' outputs must have one value for each unit, and the
            current no other way on.
        time_bin: number of time steps in which a direction stays constant, or "trial"; None:
            one step where inputs or targets vary in time, else the whole trial.
            The steps of a bin share its credit equally: over time only 1 is unbiased.
        auxiliary: hidden units of the readouts behind guesses; 0: they are linear.

    Raises:
        RecipeError: several or shared directions for a guess.
        CapabilityError: a guess together with local losses; ``sparse`` where outputs do not fit.
    """

    passes = "1 forward, m forward with tangents"
    bias = "none; guesses keep the gradient's part along the guess; long time bins share credit"
    reference = "Ren et al. 2022, arXiv 2210.03310; Fournier et al. 2023, arXiv 2306.06968"
    needs = frozenset(("loss", "jvp_site", "cut"))
    divides = "examples"
    batch_norm = False
    reach = "currents"

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        tangents = given["tangents"]
        reads = issubclass(TANGENTS[tangents], LocalGuess)
        return {} if reads else {"auxiliary": f"with tangents = {tangents!r}"}

    def __init__(
        self,
        copies: Count = 1,
        tangents: Annotated[str, TANGENTS] = "normal",
        sites: Literal["all", "each", "round_robin"] = "all",
        shared: bool = False,
        sparse: bool = False,
        time_bin: Count | Literal["trial"] | None = None,
        auxiliary: Annotated[int, Range(0)] = 0,
    ) -> None:
        validate(ForwardGradientActivity, locals())
        super().__init__()
        kind = TANGENTS[tangents]
        if kind.guess and (copies > 1 or shared):
            raise RecipeError(
                f"estimator: tangents = {tangents!r}: a guess is one direction for each example: "
                "copies = 1, shared = false"
            )
        self.copies, self.sites, self.shared = copies, sites, shared
        self.sparse, self.time_bin = sparse, time_bin
        self.tangents = kind(auxiliary) if issubclass(kind, LocalGuess) else kind()
        self.builds, self.unbiased = kind.builds, not kind.guess and sites != "round_robin"
        if kind.guess:
            self.needs = self.needs | {"local_vjp"}

    def build(self, trace: Trace, round: Round) -> None:
        """Make the readouts behind guesses."""
        self.tangents.build(trace, round)

    def passes_of(self, round: Round) -> list[list[tuple[str, ...]]]:
        """Return the passes of this step; each is groups of sites with the same loss.

        Sites of different losses can share a pass: their slopes know nothing of each other.
        """
        if self.sites == "round_robin":
            return [[(round.hidden[round.step % len(round.hidden)],)]]
        groups = by_owner(round.hidden, round.owners)
        if self.sites == "all":
            return [groups]
        rows = itertools.zip_longest(*groups)
        return [[(name,) for name in row if name is not None] for row in rows]

    def plans(self, round: Round) -> Iterable[Plan]:
        """Yield a plan of tangents, cut behind the hidden sites; before it, one for guesses."""
        if self.tangents.guess:
            if any(round.owners.values()):
                raise CapabilityError(
                    "forward_gradient_activity: guesses are for the loss of the outputs: with "
                    "local losses take tangents = 'normal'"
                )
            yield Plan(boundaries=frozenset(round.hidden))
        width = round.width(self.time_bin)
        yield Plan(tangents=self._draw(round), time_bin=width, cut=frozenset(round.hidden))

    def _draw(self, round: Round) -> dict[str, Tensor]:
        """Return each site's directions ``[passes m, B, K, *U]``, zero in passes not its own."""
        found: dict[str, Tensor] = {}
        passes = self.passes_of(round)
        for place, groups in enumerate(passes):
            for group in groups:
                request = TangentRequest(
                    group, self.copies, self.shared, round.width(self.time_bin)
                )
                for name, part in self.tangents.draw(request, round).items():
                    found[name] = part
                    if len(passes) > 1:
                        found[name] = part.new_zeros(len(passes) * self.copies, *part.shape[1:])
                        found[name][self._rows(place)] = part
        return found

    def _rows(self, place: int) -> slice:
        return slice(place * self.copies, (place + 1) * self.copies)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every visit's share of the forward gradient, and the readouts' own losses."""
        trace = traces[-1]
        assert trace.plan.tangents
        for place, groups in enumerate(self.passes_of(round)):
            rows = self._rows(place)
            for name in itertools.chain(*groups):
                slopes = round.slopes(trace, name)[rows]
                gradient = (slopes * trace.plan.tangents[name][rows]).mean(0) / round.batch
                if self.sparse:
                    gradient = gradient * active(trace.sites[name], name).to(gradient.dtype)
                yield from trace.sites[name].deliver(gradient)
        for loss in self.tangents.losses(traces[0]):
            yield loss, torch.ones_like(loss)


def active(site: SiteTrace, name: str) -> Tensor:
    """Return which units were active in each bin, ``[B, K, *U]``: their output was not zero.

    Raises:
        CapabilityError: the block's output does not have one value for each unit.
    """
    values, (units, steps) = site.activity, (site.shape.units, site.shape.steps)
    lengths = bin_lengths(steps, site.time_bin)
    if values is not None and values.shape[1:] == units and len(lengths) == 1:
        return (values != 0).unsqueeze(1)
    if values is not None and values.shape[1:] == (steps, *units):
        parts = (values != 0).split(lengths, dim=1)
        return torch.stack([part.any(1) for part in parts], 1)
    shape = None if values is None else tuple(values.shape[1:])
    raise CapabilityError(
        f"site {name}: its units {units} and its block's output {shape} do not match one to one: "
        "take sparse = false"
    )
