"""Whether losses follow a current as their derivative says; behind a simulator they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from biograd.contracts import Plan, SiteTrace, Trace
from biograd.errors import CapabilityError
from biograd.estimators.tangents import gathered

SIZE = 1e-2
"""Noise by which it is looked whether losses follow, relative to the current."""
DRAWS = 3


def smooth(
    run: Callable[[Plan], Trace], first: Trace, names: Iterable[str], stream: torch.Generator
) -> bool:
    """Return whether the losses follow these sites' currents as their derivative says.

    Central differences, ``L(z + e) - L(z - e) = 2 <dL/dz, e>``, tell: a threshold with a surrogate
    derivative does not follow, nor does a simulator that has none.

    Args:
        run: runs a plan on a batch.
        first: a trace of the same batch.
        stream: of the noise.
    """
    noise = {name: _small(first.sites[name], stream) for name in names}
    if not noise:
        return True
    both = {name: torch.cat((0 * one[:1], one, -one)) for name, one in noise.items()}
    trace = run(Plan(noise=both))
    silent, losses = trace.losses[1], trace.losses[2:]
    if not trace.loss.requires_grad or not torch.allclose(silent, trace.losses[0], 1e-3, 1e-4):
        return True  # nothing to follow, or chance that noise cannot be told from
    try:
        slopes = {name: gathered(trace.sites[name], trace.loss, None) for name in noise}
    except CapabilityError:  # a simulator says so
        return False
    products = [(slopes[name] * one).flatten(2).sum(2) for name, one in noise.items()]
    expected = len(trace.outputs) * torch.stack(products).sum(0)
    plus, minus = losses.unflatten(0, (2, -1))
    error = ((plus - minus) / 2 - expected).norm()
    return bool(error <= 0.3 * expected.norm() + 1e-5 * trace.losses.abs().max())


def _small(site: SiteTrace, stream: torch.Generator) -> Tensor:
    """Return noise ``[m, B, 1, *U]``, small against the site's current."""
    mean = site.trial_mean()
    shape = (DRAWS, len(mean), 1, *mean.shape[1:])
    draw = torch.randn(shape, generator=stream, device=stream.device).to(mean)
    coarse = torch.finfo(site.visits[0].outputs[0].dtype).eps > 1e-4  # rounding must be less
    return draw * ((10 * SIZE if coarse else SIZE) * mean.square().mean().sqrt())
