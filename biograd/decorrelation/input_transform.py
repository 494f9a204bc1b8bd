"""How a decorrelating matrix acts on a layer: on the rows of its input, or on its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biograd.contracts.plan import module_key


class InputTransform:
    """A forward pre-hook: ``W R`` stands in for ``W`` while the layer is called.

    Where that costs more, it multiplies the rows of the input instead.

    The stand-in lies in the instance's dictionary, which attribute look-up reads before the
    module's parameters; the parameters themselves, their keys and the class stay untouched.

    Without gradients the product is kept as long as autograd's counters of changes stand still;
    a change that goes past them (``weight.data``) is seen at the next call in training mode.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.kept: tuple[list[_Mark], tuple[Tensor, Tensor | None]] | None = None

    def effective(
        self, layer: nn.Module, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``W R`` and the bias; ``weight`` stands in for the layer's own."""
        if weight is not None:
            return self.owner.effective(self.name, layer, weight)
        marks = None if layer.training else self._marks(layer)
        if marks is None:
            self.kept = None
            return self.owner.effective(self.name, layer)
        if self.kept is None or not _unchanged(self.kept[0], marks):
            self.kept = (marks, self.owner.effective(self.name, layer))
        return self.kept[1]

    def _marks(self, layer: nn.Module) -> list[_Mark] | None:
        """Return the state of all that the product depends on; None: it must not be kept."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        key, own = module_key(self.name), layer._parameters
        parts = [own["weight"], own["bias"], self.owner.matrices[key], self.owner.means[key]]
        parts = [part for part in parts if part is not None]
        if not all(isinstance(part, nn.Parameter) and not part.is_inference() for part in parts):
            return None  # swapped for a call (functional_call), or without a counter
        return [(part, part._version, part.data_ptr()) for part in parts]

    def by_rows(self, layer: nn.Module, inputs: Tensor) -> bool:
        """Return whether it costs less to multiply the rows of an input than the weights.

        ``2 d^2`` operations a row forward, as many back to an input that takes credit, and none
        where the update would do the first; ``2 d^2`` a row of the weight forward, and back.
        """
        if not isinstance(layer, nn.Linear) or not layer.training or torch.compiler.is_compiling():
            return False
        graph = torch.is_grad_enabled()
        rows, units = inputs.numel() // max(inputs.shape[-1], 1), layer.out_features
        times = 1 + (graph and inputs.requires_grad) - self.owner.shares(self.name)
        return rows * times < units * (1 + graph)

    def on_rows(self, layer: nn.Module, inputs: Tensor) -> Tensor | None:
        """Return the matrix that multiplies the rows of such inputs; None: it does the weights."""
        matrix = self.owner.matrices[module_key(self.name)]
        return matrix[0] if self.by_rows(layer, inputs) and matrix.dtype == inputs.dtype else None

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        """Act on one of the two, and let the owner see the input."""
        if self.by_rows(layer, inputs[0]):
            self.kept, moved = None, self.owner.moved(self.name, inputs[0])
            self.owner.observe(self.name, inputs[0], moved)
            return (moved, *inputs[1:])
        self.owner.observe(self.name, inputs[0])
        weight, bias = self.effective(layer)
        layer.__dict__["weight"] = weight
        layer.__dict__["bias"] = bias
        return None


_Mark = tuple[Tensor, int, int]
"""A parameter, how often it was changed, and where its values lie."""


def _unchanged(before: list[_Mark], now: list[_Mark]) -> bool:
    """Return whether two lists of marks tell of the same values."""
    return len(before) == len(now) and all(
        old is new and rest == others
        for (old, *rest), (new, *others) in zip(before, now, strict=True)
    )


def uncover(layer: nn.Module, _inputs: object, _output: object) -> None:
    """Take the stand-ins away, behind the call."""
    layer.__dict__.pop("weight", None)
    layer.__dict__.pop("bias", None)
