"""What a rule, a network and a task must be to go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from biograd.contracts import Objective, Site, Substrate
from biograd.errors import CapabilityError, nearest
from biograd.estimators import ESTIMATORS, Estimator
from biograd.tasks import Task

if TYPE_CHECKING:
    pass


def check_capabilities(estimator: Estimator, substrate: Substrate, task: Task) -> None:
    """Refuse a rule at once, naming everything that is missing.

    Raises:
        CapabilityError: the substrate, its module or the task's loss is not what the rule needs.
    """
    estimator.check([site.name for site in substrate.sites])
    missing = sorted(estimator.needs - substrate.capabilities)
    if missing:
        able = ", ".join(sorted(substrate.capabilities))
        raise CapabilityError(
            f"{type(estimator).__name__} needs {', '.join(missing)}, which the substrate "
            f"{substrate.name!r} cannot do (it can: {able})"
            + "".join(f": {reason}" for reason in substrate.limits[:1])
        )
    check_norms(estimator, substrate.module)
    _check_real(estimator, substrate)
    if estimator.one_to_one:
        _check_mixing(estimator, substrate)
    if not task.differentiable:
        check_graphless(estimator, task)
    if task.closed_loop:
        check_closed_loop(estimator)
    if not any(parameter.requires_grad for parameter in substrate.module.parameters()):
        raise CapabilityError(f"{type(substrate.module).__name__} has no trainable parameter")


def check_norms(estimator: Estimator, network: nn.Module) -> None:
    """Refuse batch normalisation in training, for rules that cannot work with it.

    Raises:
        CapabilityError: with the module.
    """
    for name, layer in () if estimator.batch_norm else network.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats):
            raise CapabilityError(
                f"{type(estimator).__name__}: {name} ({type(layer).__name__}) ties the "
                "examples of a batch together: use layer normalisation"
            )


def check_bounds(
    estimator: Estimator, objective: Objective, local: object, sites: Sequence[Site]
) -> None:
    """Refuse bounds of activity that would hold nothing.

    Raises:
        CapabilityError: the rule does not descend the loss that they are a part of.
    """
    if objective.bounds is None:
        return
    hidden = [site.name for site in sites[:-1] if site.block is None]
    asked = objective.bounds.sites
    for name in hidden[:1] if isinstance(asked, str) else asked:
        if name not in hidden:
            raise CapabilityError(
                f"activity.sites: no hidden site {name!r}: {nearest(name, hidden)}"
            )
    if not hidden or not asked:
        raise CapabilityError("activity has bounds, but there is no hidden site that has some")
    why = "local losses train each block" if local is not None else estimator.unbounded
    if why:
        raise CapabilityError(
            f"{type(estimator).__name__}: activity has bounds, and their cost would reach no "
            f"hidden layer: {why}: leave them out (activity.weight = 0)"
        )


def _check_real(estimator: Estimator, substrate: Substrate) -> None:
    """Refuse modules that are compiled by torch.jit, and complex numbers that a rule computes with.

    Raises:
        CapabilityError: with the module or the parameter.
    """
    network = substrate.module
    layers = {name for site in substrate.sites for name in site.modules}
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise CapabilityError(
                f"{name or type(network).__name__} is compiled by torch.jit, so that nobody can "
                "look into it: give the module that it was made of"
            )
    for name, parameter in network.named_parameters():
        met = name.rpartition(".")[0] in layers
        met = met or (estimator.reach == "parameters" and not estimator.exact)
        if parameter.is_complex() and parameter.requires_grad and met:
            raise CapabilityError(
                f"{name} is complex, and {type(estimator).__name__} knows real currents and "
                "parameters alone: keep real and imaginary parts in two"
            )


def _check_mixing(estimator: Estimator, substrate: Substrate) -> None:
    """Refuse modules behind a hidden site that give other units than they take."""
    first, reached = substrate.sites[0].modules if len(substrate.sites) > 1 else (), False
    for name, layer in substrate.module.named_modules():
        reached |= name in first
        mixes = getattr(layer, "mixes", "")
        if reached and mixes:
            raise CapabilityError(
                f"{type(estimator).__name__} needs an activity for each current: {name} "
                f"{mixes}: take WeakGradient or NodePerturbation"
            )


def check_graphless(estimator: Estimator, task: Task) -> None:
    """Refuse a rule that needs the gradient of a loss without one.

    Raises:
        CapabilityError: it does.
    """
    if not estimator.graphless:
        raise CapabilityError(
            f"{type(estimator).__name__} needs the gradient of the loss, and "
            f"{type(task).__name__} has none: take {able()}"
            + (", or task.score = true" if task.closed_loop else "")
        )


def check_closed_loop(estimator: Estimator) -> None:
    """Refuse a rule that cannot learn in an environment.

    Raises:
        CapabilityError: with the reason.
    """
    named = getattr(estimator, "sites", "all")
    reason = estimator.closed_loop
    if not isinstance(named, str) and "perturb_site" in estimator.needs:
        reason = "sites by name leave the others to back-propagation: take sites = 'all'"
    if reason:
        raise CapabilityError(
            f"{type(estimator).__name__} cannot learn in an environment: {reason}: take {able()}"
        )


def able() -> str:
    """Return the names of the rules that learn from a loss without a graph."""
    return ", ".join(sorted({kind.__name__ for kind in ESTIMATORS.values() if kind.graphless}))


def check_ranks(estimator: Estimator, network: nn.Module) -> None:
    """Refuse what several ranks cannot do together as one process would.

    Raises:
        CapabilityError: the rule, or a layer, needs the whole batch in one process.
    """
    rule, division = type(estimator).__name__, estimator.divides
    if not division:
        raise CapabilityError(
            f"{rule} does not say what several processes could divide: train it in one, "
            "without torchrun"
        )
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and division == "examples":
            raise CapabilityError(
                f"{name} ({type(layer).__name__}) ties the examples of a batch together, which "
                "several processes divide: use layer normalisation, or train in one process"
            )
