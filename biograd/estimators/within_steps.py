"""Credit within a step, of modules that run through time by themselves.

The derivative of a block's output of step ``t`` by its current of the same step is the neuron's
instantaneous one, whatever it remembers: no earlier state depends on that current.  So credit is
divided by step from outside, and no state need be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, SiteTrace, Trace
from biograd.errors import CapabilityError
from biograd.estimators.estimator import arriving

Pairs = list[tuple[Tensor, Tensor]]


def divided(round: Round) -> Plan:
    """Return a plan in which every block and every step begins with a leaf."""
    recurrent = frozenset(layer for name in round.blocks for layer in round.recurrent(name))
    return Plan(boundaries=frozenset(round.blocks), slots=True, detach=recurrent)


def by_step(trace: Trace, round: Round, window: int) -> Iterator[tuple[str, Tensor, Pairs]]:
    """Yield each block, the last first, with what arrives at its output and at its currents.

    ``q_l = dL/dh_l`` through the currents above in the same step, ``delta_l[t] = dh_l[t]/dc_l[t]'
    q_l[t]``; with a longer window, through all of its steps.

    Args:
        trace: of the plan ``divided``.
        window: number of steps.

    Raises:
        CapabilityError: a block's steps cannot be told, nothing takes its output, or it does not
            depend on the current of its own step.
    """
    above = [(trace.loss, torch.ones_like(trace.loss))]
    for name in reversed(round.blocks):
        site = trace.sites[name]
        if site.slot is None:
            raise CapabilityError(
                f"site {name}: no layer behind it takes its activity: name the module that returns "
                "it, sites=[biograd.Site(..., activity=...)]"
            )
        tensors = [tensor for tensor, _ in above]
        arrived = arriving(tensors, [m.to(t.dtype) for t, m in above], site.slot)
        pairs = list(_passed(site, name, arrived, window))
        if not round.step and arrived.any() and not any(bool(one.any()) for _, one in pairs):
            raise CapabilityError(
                f"site {name}: what its block returns in a step does not depend on its current in "
                "that step (as snnTorch's Alpha), so that there is no credit within steps: take "
                "biograd.EligibilityPropagation"
            )
        above += pairs
        yield name, arrived, pairs


def _passed(
    site: SiteTrace, name: str, arrived: Tensor, window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a block's currents with the credit that reaches them within each window."""
    ends = site.output.unbind(1) if site.timed else (site.output,)
    credits = arrived.unbind(1) if site.timed else (arrived,)
    for visits in site.visits:
        starts = [output for output in visits.outputs if output.requires_grad]
        if len(starts) == 1 and len(ends) > 1:  # one call for all steps
            yield starts[0], _sliced(starts[0], ends, credits, window, name)
            continue
        if len(ends) == 1:
            yield from _ended(starts, ends[0], credits[0], name)
            continue
        late = len(ends) - len(starts)  # a recurrent layer may not be called in the first step
        if late < 0:
            raise CapabilityError(
                f"site {name}: its layer is called {len(starts)} times and its activity reached "
                f"{len(ends)} times, so that credit cannot be divided by step"
            )
        for first in range(0, len(ends), window):
            last = min(first + window, len(ends))
            own = (
                starts[max(first - late, 0) : max(last - late, 0)] if len(ends) > 1 else starts[-1:]
            )
            found = _pulled(ends[first:last], own, credits[first:last])
            yield from zip(own, found, strict=True)


def _ended(
    starts: Sequence[Tensor], end: Tensor, credit: Tensor, name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the current of the last step, of a block whose output is that of the last step alone.

    Raises:
        CapabilityError: earlier steps act on it, too.
    """
    found = _pulled([end], starts, [credit])
    if any(bool(earlier.any()) for earlier in found[:-1]):
        raise CapabilityError(
            f"site {name}: what stands for its activity holds several steps at once, so that "
            "credit cannot be divided by step: name the module of its neurons, "
            "sites=[biograd.Site(..., activity=...)]"
        )
    yield from zip(starts[-1:], found[-1:], strict=True)


def _sliced(
    current: Tensor, ends: Sequence[Tensor], credits: Sequence[Tensor], window: int, name: str
) -> Tensor:
    """Return the credit of a current ``[B, T, *U]`` that a block takes as a whole."""
    if current.dim() < 2 or current.shape[1] != len(ends):
        raise CapabilityError(
            f"site {name}: its current {list(current.shape)} has other steps than its activity, "
            f"{len(ends)}, so that credit cannot be divided by step"
        )
    total = torch.zeros_like(current)
    for first in range(0, len(ends), window):
        steps = slice(first, first + window)
        (found,) = _pulled(ends[steps], [current], credits[steps])
        total[:, steps] = found[:, steps]
    return total


def _pulled(
    ends: Sequence[Tensor], starts: Sequence[Tensor], credits: Sequence[Tensor]
) -> list[Tensor]:
    """Return the credit that passes from ends to starts."""
    live = [(end, credit) for end, credit in zip(ends, credits, strict=True) if end.requires_grad]
    if not live or not starts:
        return [torch.zeros_like(start) for start in starts]
    found = torch.autograd.grad(
        [end for end, _ in live],
        list(starts),
        [credit.to(end.dtype) for end, credit in live],
        retain_graph=True,
        materialize_grads=True,
        allow_unused=True,
    )
    return list(found)
