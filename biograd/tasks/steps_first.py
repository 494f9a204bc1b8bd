"""Losses of snnTorch: of outputs with the steps first, and one number for a batch."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from biograd.errors import CapabilityError

HOME = "snntorch.functional"


def is_steps_first(loss: object) -> bool:
    """Return whether a loss is one of ``snntorch.functional``."""
    return type(loss).__module__.startswith(HOME) and not isinstance(loss, type)


@dataclasses.dataclass(frozen=True)
class StepsFirst:
    """A loss of snnTorch for each example, of outputs ``[B, T, C]``.

    The loss itself takes ``[T, B, C]`` and returns the mean over the batch; without reduction it
    returns one number for each example, or for each of its outputs, whose mean is taken.  Whether
    the mean of the examples is what the loss itself returns is seen in every call.

    Args:
        loss: as ``snntorch.functional.ce_rate_loss()``.
    """

    loss: Any

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``[B]``.

        Raises:
            CapabilityError: outputs without steps, or a loss that is not a mean over examples.
        """
        name = getattr(self.loss, "__name__", type(self.loss).__name__)
        if outputs.dim() < 3:
            raise CapabilityError(
                f"{name} takes the outputs of every step, not {list(outputs.shape)}: let the "
                "network return the course [B, T, C], or take loss = 'cross_entropy'"
            )
        course = outputs.transpose(0, 1)
        found = _unreduced(self.loss)(course, targets)
        if found.dim() and len(found) == len(outputs):
            each = found.flatten(1).mean(1) if found.dim() > 1 else found
            with torch.no_grad():
                mean = self.loss(course, targets).to(each.dtype)
            if torch.allclose(each.mean(), mean, rtol=1e-4, atol=1e-6, equal_nan=True):
                return each.to(outputs.dtype)
        raise CapabilityError(
            f"{name}: its value is not the mean of one loss for each example"
            + (f" (reduction = {self.loss.reduction!r})" if _sums(self.loss) else "")
            + ": take reduction = 'mean', or a function that returns one loss a row"
        )


def _sums(loss: Any) -> bool:
    return getattr(loss, "reduction", "mean") != "mean"


def _unreduced(loss: Any) -> Any:
    """Return a copy of a loss that does not reduce over the batch."""
    made = copy.copy(loss)
    made.reduction = "none"
    inner = getattr(loss, "loss_fn", None)
    if inner is not None and hasattr(inner, "reduction"):
        made.loss_fn = copy.copy(inner)
        made.loss_fn.reduction = "none"
    return made
