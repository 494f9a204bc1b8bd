"""What one step found, and the surface whose gradient is its credit."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from biograd.substrate.kept import graph_ended


@dataclasses.dataclass(frozen=True)
class Result:
    """What one step found.

    Attributes:
        surrogate: scalar whose value is the mean clean loss and whose gradient is the credit.
        outputs: clean outputs ``[B, ...]``.
        losses: ``[S, B]``, one loss per copy and example, copy 0 clean; of the copies and examples
            of this rank.
        passes: times that an example went forward, all plans together (``Plan.passes``).
        state: the network and the attributes in which it keeps a state from pass to pass, if any.
    """

    surrogate: Tensor
    outputs: Tensor
    losses: Tensor
    passes: int
    state: tuple[nn.Module, tuple[str, ...]] | None = None

    @property
    def loss(self) -> Tensor:
        """The mean clean loss, without a graph."""
        return self.losses[0].mean()

    @property
    def informative(self) -> float:
        """Share of the noisy copies whose loss differs from the clean one; 1 without copies."""
        if len(self.losses) == 1:
            return 1.0
        return float((self.losses[1:] != self.losses[:1]).float().mean())

    def backward(self) -> None:
        """Add the credit to the ``.grad`` of every parameter.

        Raises:
            CapabilityError: the network's state leads back into the step before.
        """
        with nullcontext() if self.state is None else graph_ended(*self.state):
            self.surrogate.backward()


def surface(loss: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return a scalar whose value is the loss and whose gradient is its own and the pairs'."""
    given = [(tensor, c.detach().to(tensor.dtype)) for tensor, c in pairs if tensor.requires_grad]
    if not given:
        return loss
    tensors, shaped = [t for t, _ in given], [c.expand_as(t) for t, c in given]
    return cast(Tensor, _Surface.apply(len(tensors), loss, *tensors, *shaped))


class _Surface(torch.autograd.Function):
    """A loss that hands cotangents back: no product with the tensors is computed for that."""

    @staticmethod
    def forward(ctx: Any, count: int, loss: Tensor, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given[count:])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = gradients
        cotangents = ctx.saved_tensors
        credit = (scale * cotangent for cotangent in cotangents)
        return None, scale, *credit, *[None] * len(cotangents)
