"""The weights with which a layer acts when a linear transform of its input is attached to it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class InputTransform(Protocol):
    """A forward pre-hook that multiplies a layer's input by a matrix."""

    def effective(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias that act on the untransformed input."""
        ...


def effective_parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of ``layer``, with any attached input transform folded in.

    A simulator that does not call the layer at every step needs them before it starts.
    """
    for hook in layer._forward_pre_hooks.values():
        effective = getattr(hook, "effective", None)
        if effective is not None:
            return effective(layer)
    return layer.weight, layer.bias  # type: ignore[return-value]
