"""Sign symmetry: feedback weights have the signs of the forward weights, not their sizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from biograd.contracts import Round
from biograd.estimators.feedback import Buffers, Feedback, normal, size_of
from biograd.recipes import Positive, validate


class SignSymmetry(Feedback):
    """Send credit back through weights of the forward weights' signs: ``B = M * sign(W)``.

    ========  ==================================================================================
    uniform   ``M = s``, one number for each layer (uSF)
    batch     ``M = s |n|`` with ``n`` standard normal, drawn anew in every step (brSF)
    fixed     ``M = s |n|``, drawn once (frSF)
    ========  ==================================================================================

    ``s`` is ``scale`` times the root mean square of ``W`` at the start, so that ``B`` is as large
    as ``W`` was.

    Args:
        magnitudes: "uniform", "batch" or "fixed".
        scale: root mean square of ``B`` relative to that of ``W`` at the start.
    """

    bias = "sizes of the weights are lost, their signs kept"
    reference = "Liao, Leibo & Poggio 2016, arXiv 1510.05067"

    def __init__(
        self,
        magnitudes: Literal["uniform", "batch", "fixed"] = "uniform",
        scale: Positive = 1.0,
    ) -> None:
        validate(SignSymmetry, locals())
        super().__init__()
        self.magnitudes, self.scale = magnitudes, scale
        self.sizes = Buffers()

    def make(self, name: str, weight: Tensor, round: Round) -> None:
        """Note how large the weight is now; draw the fixed magnitudes."""
        size = torch.full_like(weight.flatten()[0], self.scale * size_of(weight))
        drawn = normal(weight.shape, round).abs() if self.magnitudes == "fixed" else 1
        self.sizes[name] = size * drawn

    def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
        """Return ``M * sign(W)`` for the weights as they are now."""
        feedback = self.sizes[name] * weight.detach().sign()
        if self.magnitudes == "batch":
            feedback = feedback * normal(weight.shape, round).abs()
        return feedback
