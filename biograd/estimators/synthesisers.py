"""Synthesisers: models of the gradient that would arrive at a block's output.

A synthesiser predicts ``g = dL/dh`` of one example from its activity ``h`` and label ``y`` and is
regressed on a target ``t`` that counts as constant.  Several rules are the derivative of such a
regression's loss by ``h``, with a synthesiser that is not trained (Czarnecki et al. 2017)::

    rule                 SG(h, y)               target t       loss      signal
    synthetic gradient   hA + yB + C, learned   dL/dh          |SG-t|^2  SG (+ alpha dloss/dh)
    back-propagation     h                      -dL/dh         -<SG,t>   dloss/dh = dL/dh
    direct feedback      hA, A fixed            -dL/doutputs   -<SG,t>   dloss/dh = dL/doutputs A'
    feedback alignment   hA, A fixed            -dL/dz_next    -<SG,t>   dloss/dh = dL/dz_next A'
    kickback             hA, A = 1              -dL/doutputs   -<SG,t>   dloss/dh = dL/doutputs 1'
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy
import torch
from torch import Tensor, nn

from biograd.registry import Registry

Condition = Literal["label", "activity", "both"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Prediction and target ``[B, ...]`` to one loss a row, ``[B]``."""


def squared_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ``|prediction - target|^2``, summed over all but the rows."""
    return (prediction - target).square().flatten(1).sum(1)


@dataclasses.dataclass(frozen=True)
class Interface:
    """Where a synthesiser stands: what it sees and how many numbers it predicts.

    Attributes:
        units: number of the block's output units.
        labels: length of a label; a class is one-hot.
        condition: whether the label, the activity or both are seen.
        hidden: widths of hidden layers, for a synthesiser that has them.
    """

    units: int
    labels: int
    condition: Condition = "both"
    hidden: tuple[int, ...] = ()


class Synthesiser(nn.Module):
    """Predicts the gradient of an example's loss by its activity; zero before it has learned."""

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        """Return ``SG(h, y)``, ``[..., units]``.

        Args:
            activity: ``h``, ``[..., units]``.
            labels: ``y``, ``[..., labels]``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def implied_loss(self, activity: Tensor, labels: Tensor, points: int = 32) -> Tensor:
        """Return ``int_0^1 <SG(s h, y), h> ds``, the loss that the predictions imply, ``[...]``.

        It is zero at ``h = 0`` and known up to a constant for each label; where the predictions
        are no gradient field, it is their integral along the ray from zero.

        Args:
            activity: ``[..., units]``.
            labels: ``[..., labels]``.
            points: of the Gauss-Legendre rule.
        """
        places, weights = numpy.polynomial.legendre.leggauss(points)
        total = activity.new_zeros(activity.shape[:-1])
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            total += float(weight) * (self(float(place) * activity, labels) * activity).sum(-1)
        return total


class LinearSynthesiser(Synthesiser):
    """``SG(h, y) = hA + yB + C``, from zero; it implies ``1/2 hAh' + (yB + C)h'``."""

    def __init__(self, interface: Interface, stream: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.activity_weight, self.label_weight = _weights(interface, stream, dtype)
        self.bias = _zeros((interface.units,), stream, dtype)

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        """Return ``hA + yB + C``, ``[..., units]``."""
        return _affine(activity, labels, self.activity_weight, self.label_weight, self.bias)

    @torch.no_grad()
    def implied_loss(self, activity: Tensor, labels: Tensor, points: int = 32) -> Tensor:
        """Return ``1/2 hAh' + (yB + C)h'``, ``[...]``; ``points`` is not needed."""
        none = _affine(activity, labels, None, self.label_weight, self.bias)
        return ((self(activity, labels) + none) * activity).sum(-1) / 2


class SigmoidSynthesiser(Synthesiser):
    """``SG(h, y) = d sigmoid(hA + yB + C) + yD``, from zero: for the cross-entropy.

    With two classes the gradient of the cross-entropy by the outputs, ``p - y``, and all that
    linear layers make of it are of this form, however large the outputs; a line fits neither end.

    Why ``yD``: ``d sigmoid(...)`` alone has one sign at every unit, ``p - y`` has the label's.
    """

    def __init__(self, interface: Interface, stream: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.activity_weight, self.label_weight = _weights(interface, stream, dtype)
        self.offset = _weights(interface, stream, dtype)[1]
        self.bias = _zeros((interface.units,), stream, dtype)
        self.scale = _zeros((interface.units,), stream, dtype)

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        """Return ``d sigmoid(hA + yB + C) + yD``, ``[..., units]``."""
        current = _affine(activity, labels, self.activity_weight, self.label_weight, self.bias)
        prediction = self.scale * torch.sigmoid(current)
        return prediction if self.offset is None else prediction + labels @ self.offset


class MultilayerSynthesiser(Synthesiser):
    """A network of ReLU layers on activity and label, its last layer from zero."""

    def __init__(self, interface: Interface, stream: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.condition = interface.condition
        width = interface.units if interface.condition != "label" else 0
        width += interface.labels if interface.condition != "activity" else 0
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for rows, columns in pairwise((width, *interface.hidden, interface.units)):
            self.weights.append(_zeros((rows, columns), stream, dtype))
            self.biases.append(_zeros((columns,), stream, dtype))
        with torch.no_grad():
            for weight in list(self.weights)[:-1]:
                weight.normal_(generator=stream).mul_(math.sqrt(2 / len(weight)))

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction ``[..., units]``."""
        labels = labels.expand(*activity.shape[:-1], -1)
        seen = {"label": (labels,), "activity": (activity,), "both": (activity, labels)}
        values = torch.cat(seen[self.condition], -1)
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = (torch.relu(values) if depth else values) @ weight + bias
        return values


SYNTHESISERS: Registry[Callable[[Interface, torch.Generator, torch.dtype], Synthesiser]] = Registry(
    "biograd.synthesisers",
    {
        "linear": LinearSynthesiser,
        "sigmoid_linear": SigmoidSynthesiser,
        "mlp": MultilayerSynthesiser,
    },
    callables=True,
)


def conspiring_signal(
    synthesiser: Synthesiser,
    activity: Tensor,
    labels: Tensor,
    target: Tensor,
    distance: Distance = squared_distance,
) -> Tensor:
    """Return the derivative of the mean regression loss by the activity, ``[B, ..., units]``.

    It moves the activity to where the synthesiser's prediction comes closer to the target; it is
    zero if the synthesiser does not see the activity.

    Args:
        activity: ``[B, ..., units]``.
        labels: ``[B, ..., labels]``.
        target: ``[B, ...]``, constant, of the prediction's shape.
        distance: of prediction and target.
    """
    with torch.enable_grad():
        activity = activity.detach().requires_grad_()
        loss = distance(synthesiser(activity, labels), target.detach()).mean()
        if not loss.requires_grad:
            return torch.zeros_like(activity)
        (found,) = torch.autograd.grad(loss, activity, allow_unused=True)
        return torch.zeros_like(activity) if found is None else found


def _weights(
    interface: Interface, stream: torch.Generator, dtype: torch.dtype
) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return ``A`` and ``B``, each None where the condition leaves its factor out."""
    shapes = {"activity": interface.units, "label": interface.labels}
    activity, label = (
        _zeros((rows, interface.units), stream, dtype)
        if interface.condition in ("both", name)
        else None
        for name, rows in shapes.items()
    )
    return activity, label


def _zeros(shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=stream.device))


def _affine(
    activity: Tensor,
    labels: Tensor,
    activity_weight: Tensor | None,
    label_weight: Tensor | None,
    bias: Tensor,
) -> Tensor:
    total = bias.expand(activity.shape)
    if activity_weight is not None:
        total = total + activity @ activity_weight
    return total if label_weight is None else total + labels @ label_weight
