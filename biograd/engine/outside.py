"""What becomes of parameters that the rule does not credit: they stay, or learn exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from biograd.contracts import Trace
from biograd.engine.accounting import Outside
from biograd.estimators.weight_perturbation import gradients


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
