"""Projections between populations that are not plain linear layers."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.errors import RecipeError
from biograd.networks.network import SynapticLayer
from biograd.recipes import ProjectionRecipe

Sign = Literal["both", "excitatory", "inhibitory"]


class Masked(SynapticLayer):
    """A linear layer of which only some connections exist: ``(M * W) x + b``.

    A weight that does not exist is zero, receives no gradient, whatever the rule, and so stays
    zero.  With a sign the layer is ``+-(M * |W|) x + b``.

    Args:
        mask: which connections exist, ``[outputs, inputs]``.
        bias: whether there is a bias.
        sign: of the weights that act.
        density: share of the connections that ``choose`` lets exist; None: the mask stays.
    """

    mask: Tensor

    def __init__(
        self, mask: Tensor, bias: bool = True, sign: Sign = "both", density: float | None = None
    ) -> None:
        super().__init__()
        self.sign, self.density = sign, density
        self.register_buffer("mask", mask.bool())
        self.weight = nn.Parameter(torch.zeros(mask.shape))
        self.bias = nn.Parameter(torch.zeros(len(mask))) if bias else None
        self._guard()

    @property
    def fan_in(self) -> float:
        """The mean number of connections that an output has."""
        return max(1.0, float(self.mask.sum(1).double().mean()))

    def choose(self, stream: torch.Generator) -> None:
        """Draw which connections exist."""
        if self.density is not None:
            draws = torch.rand(self.mask.shape, generator=stream, dtype=torch.float64)
            self.mask.copy_(draws < self.density)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., outputs]`` for ``[..., inputs]``."""
        weight = self.weight if self.sign == "both" else self.weight.abs()
        if self.sign == "inhibitory":
            weight = -weight
        return functional.linear(inputs, weight * self.mask, self.bias)

    def _guard(self) -> None:
        """Take away what rules credit to weights that do not exist."""
        self.weight.register_hook(lambda gradient: gradient * self.mask)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Guard the weight of a copy: hooks are not copied."""
        super().__setstate__(state)
        self._guard()

    def extra_repr(self) -> str:
        """Return sizes, density and sign for ``print``."""
        outputs, inputs = self.mask.shape
        sign = "" if self.sign == "both" else f", {self.sign}"
        return f"{inputs}, {outputs}, density={self.mask.double().mean():.3g}{sign}"


class Convolution(SynapticLayer):
    """A convolution of square kernels over units that lie in a grid, time step by time step.

    Args:
        shape: of the source, ``(channels, height, width)``.
        channels: of the target.
        bias: whether every channel has a bias.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.stride, self.padding = shape, stride, kernel // 2
        self.weight = nn.Parameter(torch.zeros(channels, shape[0], kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.target_shape = grid(shape, channels, kernel, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., units]`` for ``[..., C H W]``."""
        images = inputs.reshape(-1, *self.shape)
        found = functional.conv2d(
            images, self.weight, self.bias, stride=self.stride, padding=self.padding
        )
        return found.reshape(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Return shapes for ``print``."""
        return f"{self.shape} to {self.target_shape}, stride={self.stride}"


def grid(
    shape: tuple[int, int, int], channels: int, kernel: int, stride: int
) -> tuple[int, int, int]:
    """Return the shape of a convolution's target.

    Args:
        shape: of the source, ``(channels, height, width)``.

    >>> grid((1, 8, 8), 4, kernel=3, stride=2)
    (4, 4, 4)
    """
    margin = 2 * (kernel // 2) - kernel
    height, width = ((size + margin) // stride + 1 for size in shape[1:])
    return channels, height, width


class OneToOne(SynapticLayer):
    """Each unit to the one at its place: ``w x``, without a bias.

    Args:
        units: number of them, before and behind the layer.
    """

    bias = None

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., units]`` for ``[..., units]``."""
        return inputs * self.weight[:, 0]

    def extra_repr(self) -> str:
        """Return the number of units for ``print``."""
        return f"{len(self.weight)}"


def connect(recipe: ProjectionRecipe, name: str, source: tuple[int, ...], units: int) -> nn.Module:
    """Return the layer of a projection, its weights zero.

    Args:
        recipe: what kind of projection.
        name: of the projection, for messages.
        source: shape of the source's units.
        units: neurons of the target.

    Raises:
        RecipeError: the shapes do not fit.
    """
    count = math.prod(source)
    if recipe.kind == "convolution":
        return _convolution(recipe, name, source, units)
    if recipe.kind == "masked":
        nothing = torch.zeros(units, count)
        return Masked(nothing, recipe.bias, recipe.sign, recipe.density)
    if recipe.sign != "both":
        return Masked(torch.ones(units, count), recipe.bias, recipe.sign)
    return nn.Linear(count, units, bias=recipe.bias)


def _convolution(
    recipe: ProjectionRecipe, name: str, source: tuple[int, ...], units: int
) -> Convolution:
    if len(source) != 3:
        raise RecipeError(
            f"projections.{name}.kind = 'convolution': the units of {recipe.source!r} lie in no "
            "grid (channels, height, width)"
        )
    if recipe.sign != "both":
        raise RecipeError(f"projections.{name}.sign: the weights of a convolution have either sign")
    shape = (source[0], source[1], source[2])
    target = grid(shape, recipe.channels, recipe.kernel, recipe.stride)
    if math.prod(target) != units:  # before any memory is asked for
        raise RecipeError(
            f"projections.{name}: the convolution has {math.prod(target)} outputs {target}, but "
            f"populations.{recipe.target}.units = {units}"
        )
    return Convolution(shape, recipe.channels, recipe.kernel, recipe.stride, recipe.bias)
