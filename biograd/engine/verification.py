"""Whether the first step credits what the account says, in numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from biograd.engine.accounting import Account, named
from biograd.errors import CapabilityError
from biograd.estimators import Estimator
from biograd.estimators.weight_perturbation import gradients

Reference = Mapping[str, Tensor]
"""Gradients of back-propagation by the parameters' names."""


def comparable(estimator: Estimator) -> bool:
    """Return whether a rule that gives the gradient of back-propagation is not itself."""
    chosen = [getattr(estimator, name, "all") for name in ("sites", "chosen")]
    whole = all(one == "all" for one in chosen if isinstance(one, (str, tuple)))
    noisy = any(need.startswith(("perturb", "jvp")) for need in estimator.needs)
    told = estimator.exact or estimator.coincides or estimator.may_equal
    return whole and not (told or noisy)


def verify(
    account: Account,
    estimator: Estimator,
    network: nn.Module,
    surrogate: Tensor,
    reference: Reference,
) -> Account:
    """Compare who received credit in a step with the account; return it as it is now known.

    Args:
        surrogate: of the step.
        reference: of back-propagation, where the rule must not equal it; empty: it may.

    Raises:
        CapabilityError: a parameter has credit from another than the account says.
    """
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    found = gradients(surrogate, list(parameters.values()))
    given = dict(zip(parameters, found, strict=True))
    idle = [entry.name for entry in account.of("frozen")]
    moved = [name for name in idle if _any(given.get(name))]
    if moved:
        raise CapabilityError(f"{account.rule} must leave {named(moved)} as it is, but moves it")
    hidden = [entry.name for entry in account.of("rule") if entry.name in reference]
    same = [name for name in hidden if _equal(given[name], reference[name])]
    if same:
        raise CapabilityError(
            f"{account.rule} gives {named(same)} the gradient of back-propagation, so that it "
            "does not act on this network: take biograd.Backpropagation, or another rule"
        )
    lost = [n for n in hidden if given.get(n) is None and _any(reference[n])]
    if lost and len(lost) < len(hidden):  # a rule that gives nothing at all is another fault
        raise CapabilityError(
            f"{account.rule} gives no credit to {named(lost)}, which moves the outputs beside the "
            "last layer: let one layer make the outputs, name both as one current, "
            "sites={..., 'out': [...]}, or freeze it"
        )
    turns = getattr(estimator, "sites", "") == "round_robin"
    wanted = [entry.name for entry in account.of("rule", "readout") if not turns]
    return account.without([name for name in wanted if given.get(name) is None])


def _any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _equal(found: Tensor | None, exact: Tensor) -> bool:
    """Return whether two gradients are the same but for the rounding of a few sums, and not 0."""
    if found is None or not _any(exact):
        return False
    rounding = 4 * torch.finfo(exact.dtype).eps
    return bool((found - exact).abs().max() <= rounding * exact.abs().max())
