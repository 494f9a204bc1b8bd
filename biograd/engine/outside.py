"""What becomes of parameters that the rule does not credit: they stay, or learn exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from biograd.contracts import Site, Trace
from biograd.engine.accounting import Outside, named
from biograd.engine.structure import strangers
from biograd.errors import CapabilityError, brief
from biograd.estimators import Estimator
from biograd.estimators.weight_perturbation import gradients
from biograd.substrate.calling import REENTRANT, culprit
from biograd.substrate.kept import place_of


@dataclasses.dataclass
class Withheld:
    """Parameters that the passes of a rule shall not see as parameters.

    Attributes:
        mode: "freeze": they need no gradient until they are released; "exact": in the passes of
            the rule alone, and their gradient is that of back-propagation.
    """

    mode: Outside = "refuse"
    parameters: list[nn.Parameter] = dataclasses.field(default_factory=list)

    def take(self, parameters: Sequence[nn.Parameter]) -> None:
        """Withhold these from now on, no others."""
        self.release()
        self.parameters = list(parameters)
        self._ask(self.mode == "exact")

    def release(self) -> None:
        """Give all parameters back; with "exact" they are as the user has them between passes."""
        if self.mode == "freeze":
            self._ask(True)
        self.parameters = []

    def _ask(self, gradient: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(gradient)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Show no withheld parameter to the passes that are run meanwhile."""
        try:
            self._ask(False)
            yield
        finally:
            self._ask(self.mode == "exact")

    @property
    def exact(self) -> bool:
        """Whether a pass of its own is needed for their gradient."""
        return bool(self.parameters) and self.mode == "exact"

    def credit(self, trace: Trace) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each with its exact gradient, from a trace of the empty plan."""
        found = gradients(trace.loss, self.parameters)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            yield parameter, torch.zeros_like(parameter) if gradient is None else gradient


def check_registered(network: nn.Module, trace: Trace, inputs: Tensor) -> None:
    """Refuse what needs a gradient and is no parameter, as layers in a plain list are not.

    Raises:
        CapabilityError: with the attribute; a rule would not know of it, nor any optimiser.
    """
    known = [*network.parameters(), inputs]
    inside = [place_of(network, v) or f"a tensor {list(v.shape)}"
              for v in strangers(trace, known, loss=False)]  # fmt: skip
    behind = [place_of(network, v) for v in strangers(trace, known, loss=True)]
    names = [*dict.fromkeys(filter(None, inside + behind))]  # a loss may learn by itself
    if names:
        raise CapabilityError(
            f"{named(names)} needs a gradient and is no parameter of {type(network).__name__}, so "
            "that nothing trains it: make it an nn.Parameter, layers in a list an nn.ModuleList, "
            "or call requires_grad_(False) on it"
        )


def check_callers(rule: Estimator, found: Mapping[str, set[str]]) -> None:
    """Refuse layers that torch calls otherwise than they stand, where a rule cannot follow.

    Args:
        found: names of modules to who calls them.

    Raises:
        CapabilityError: torch calls them again on the way back, without what the rule changes; or
            shows them no rows.
    """
    changes = not rule.exact and rule.reach in ("blocks", "normalisations")
    for name, kinds in found.items():
        kind = max(kinds)
        if kind == REENTRANT:
            raise CapabilityError(
                f"{name} is called inside of a reentrant torch.utils.checkpoint, in which no "
                "derivative is found: say use_reentrant=False"
            )
        if "func" in kind:
            raise CapabilityError(
                f"{name} is called inside of {kind}, where no rule sees its rows: call it on the "
                "whole batch"
            )
        if changes:
            raise CapabilityError(
                f"{name} is called inside of torch.utils.checkpoint, which calls it again on the "
                f"way back, without what {type(rule).__name__} changes: take the checkpoint out, "
                "or biograd.Backpropagation or biograd.WeakGradient"
            )


@contextmanager
def taken_apart(network: nn.Module) -> Iterator[None]:
    """Name what cannot run while the graph ends at every layer.

    Raises:
        CapabilityError: a module differentiates in its forward pass.
    """
    try:
        yield
    except RuntimeError as error:
        where = culprit(error, network) or type(network).__name__
        if "grad" not in str(error):
            raise CapabilityError(f"{where}: {brief(str(error))}") from error
        raise CapabilityError(
            f"{where}: {brief(str(error))}: to find who credits each parameter "
            "the layers are taken apart, which a network that differentiates in its forward pass "
            "cannot be: take the derivative out of forward"
        ) from error


def check_one_readout(rule: Estimator, heads: Sequence[str], sites: Sequence[Site]) -> None:
    """Refuse outputs that other layers make beside the last, which the rule takes for the readout.

    Raises:
        CapabilityError: with the layers.
    """
    if heads:
        last = sites[-1].name
        raise CapabilityError(
            f"{named(heads)} goes into no other layer and makes outputs beside {last!r}, which "
            f"{type(rule).__name__} takes for the only readout: let one layer make them all, or, "
            f"where their currents are added, name both as one, sites={{..., {last!r}: "
            f"[{heads[0]!r}, {last!r}]}}"
        )
