"""What a population's current or activity passes in time: normalisation and dropout of a trial."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from biograd.contracts.credit_paths import mapped
from biograd.errors import CapabilityError
from biograd.recipes import Count, Fraction, Positive, validate

BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm1d,
    3: nn.BatchNorm2d,
    4: nn.BatchNorm3d,
}


class TimeNormalisation(nn.Module):
    """Normalise a population's current, ``y = g (x - mean) / sqrt(variance + eps) + b``.

    The gain ``g`` starts at ``alpha threshold``, the shift ``b`` at zero; both are learned.

    =====  =======================================================================================
    batch  threshold-dependent batch normalisation (tdBN): mean and variance of each channel over
           examples, time and grid; in evaluation those of training.  It needs the whole trial
    layer  of the units of each example in each step
    =====  =======================================================================================

    Args:
        shape: of the units, ``(channels, *grid)``, or ``(units,)``: each a channel.
        kind: "batch" or "layer".
        alpha: factor on the threshold; ``1 / sqrt(2)`` where two currents are added.
        threshold: of the neurons.
        steps: of a trial.

    Source: Zheng et al. 2021, arXiv 2011.05280; layer: Ba, Kiros & Hinton 2016, arXiv 1607.06450.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: Literal["batch", "layer"] = "batch",
        alpha: Positive = 1.0,
        threshold: Positive = 1.0,
        steps: Count = 1,
    ) -> None:
        validate(TimeNormalisation, locals())
        super().__init__()
        self.shape, self.kind, self.steps = shape, kind, steps
        # a plain module that sees channels, since copies take their statistics from its input
        self.norm = (
            BATCH_NORMS[len(shape)](shape[0]) if kind == "batch" else nn.LayerNorm(math.prod(shape))
        )
        nn.init.constant_(self.norm.weight, alpha * threshold)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalised currents, as the inputs ``[rows, (steps,) units]``.

        Raises:
            CapabilityError: the statistics are of a trial, and one step arrives alone.
        """
        ways = iter((self.norm, self._by_input))  # credit to the layer before takes its own way
        if self.kind == "layer":
            return mapped(lambda current: next(ways)(current), inputs)
        if self.training and self.steps > 1 and inputs.dim() < 3:
            raise CapabilityError(
                f"batch normalisation over time: one step of {self.steps} arrives alone: take "
                "kind = 'layer' for a population in a loop"
            )
        lies = (-1, *self.shape)
        return mapped(lambda one: next(ways)(one.reshape(lies)).reshape(one.shape), inputs)

    def _by_input(self, current: Tensor) -> Tensor:
        """Return the same, but of the module's parameters and running statistics nothing moves."""
        norm, training = self.norm, self.training
        weight, bias = norm.weight.detach(), norm.bias.detach()
        if isinstance(norm, nn.LayerNorm):
            return functional.layer_norm(current, norm.normalized_shape, weight, bias, norm.eps)
        known = (None, None) if training else (norm.running_mean, norm.running_var)
        return functional.batch_norm(current, *known, weight, bias, training, eps=norm.eps)

    def extra_repr(self) -> str:
        """Return the shape of the units for ``print``."""
        return f"{self.shape}, {self.kind}"


class Dropout(_DropoutNd):
    """Silence units for a whole trial: one mask ``[rows, 1, units]`` for all of its steps.

    The activities that stay are divided by ``1 - p``.  A population that passes on one step at a
    time calls ``begin`` before a trial and ``end`` behind it.

    Args:
        p: share of the units that fall silent.
    """

    def __init__(self, p: Fraction = 0.5) -> None:
        super().__init__(p)
        self._held, self._mask = False, cast("Tensor | None", None)

    def begin(self) -> None:
        """Keep the mask of the first step until the trial ends."""
        self._held, self._mask = True, None

    def end(self) -> None:
        """Forget the mask of the trial."""
        self._held, self._mask = False, None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is passed on of ``[rows, (steps,) units]``."""
        if not self.training or not self.p:
            return inputs
        mask = self._mask
        if mask is None:
            mask = functional.dropout(torch.ones_like(trial(inputs)), self.p)
        if self._held:
            self._mask = mask
        return inputs * mask


def trial(values: Tensor) -> Tensor:
    """Return the first step alone, ``[rows, 1, units]``; ``[rows, units]`` as it is."""
    return values.flatten(1, -2)[:, :1] if values.dim() > 2 else values
