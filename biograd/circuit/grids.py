"""Convolution and pooling of units that lie in a grid, ``(channels, height, width)`` or its kin."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.checking import Count, Range, validate
from biograd.errors import RecipeError
from biograd.substrate.network import SynapticLayer

Grid = tuple[Count, ...]
CONVOLUTIONS = {2: functional.conv1d, 3: functional.conv2d, 4: functional.conv3d}


class Convolution(SynapticLayer):
    """A convolution over units that lie in a grid, time step by time step.

    Args:
        shape: of the source, ``(channels, *grid)`` with one, two or three axes of the grid.
        channels: of the target.
        kernel: its size along every axis of the grid.
        bias: whether every channel has a bias.
        padding: zeros around the grid: "same" (``kernel // 2``), "valid" (none) or their number.

    Raises:
        RecipeError: the kernel does not fit into the grid.
    """

    def __init__(
        self,
        shape: Grid,
        channels: Count,
        kernel: Count = 3,
        stride: Count = 1,
        bias: bool = True,
        padding: Literal["same", "valid"] | Annotated[int, Range(0)] = "same",
    ) -> None:
        validate(Convolution, locals())
        super().__init__()
        self.shape, self.stride, self.padding = shape, stride, margin(padding, kernel)
        self.target_shape = grid(shape, channels, kernel, stride, padding)
        axes = [kernel] * (len(shape) - 1)
        self.weight = nn.Parameter(torch.zeros(channels, shape[0], *axes))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., units]`` for ``[..., C H W]``."""
        images = inputs.reshape(-1, *self.shape)
        convolve = CONVOLUTIONS[len(self.shape)]
        found = convolve(images, self.weight, self.bias, stride=self.stride, padding=self.padding)
        return found.reshape(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Return shapes for ``print``."""
        return f"{self.shape} to {self.target_shape}, stride={self.stride}, padding={self.padding}"


class Pooling(nn.Module):
    """The mean, maximum or sum of windows of a grid, step by step; it has no weights.

    Units beyond the last whole window are left out.

    Args:
        shape: of the source, ``(channels, *grid)`` with one, two or three axes of the grid.
        kernel: size of a window along every axis of the grid.
        stride: from window to window; None: they touch.
        kind: "average", "max" or "sum".

    Attributes:
        target_shape: ``(channels, *grid)`` of the target.
        keeps_spikes: whether spikes, 0 or 1, come out as spikes.

    Raises:
        RecipeError: no window fits into the grid.
    """

    def __init__(
        self,
        shape: Grid,
        kernel: Count = 2,
        stride: Count | None = None,
        kind: Literal["average", "max", "sum"] = "average",
    ) -> None:
        validate(Pooling, locals())
        super().__init__()
        self.shape, self.kernel, self.stride, self.kind = shape, kernel, stride or kernel, kind
        self.target_shape = grid(shape, sum(shape[:1]), kernel, self.stride, "valid")
        self.keeps_spikes = kind == "max"

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is passed on, ``[..., target units]``, for ``[..., units]``."""
        images = inputs.reshape(-1, *self.shape)
        axes = len(self.shape) - 1
        kernel: Grid = (self.kernel,) * axes
        stride: Grid = (self.stride,) * axes
        if axes == 1:  # torch cannot add up along one axis alone
            images, kernel, stride = images.unsqueeze(2), (1, *kernel), (1, *stride)
        found = self._pooled(images, kernel, stride)
        return found.reshape(*inputs.shape[:-1], math.prod(self.target_shape))

    def _pooled(self, images: Tensor, kernel: Grid, stride: Grid) -> Tensor:
        plane = len(kernel) == 2
        if self.kind == "max":
            return (functional.max_pool2d if plane else functional.max_pool3d)(
                images, kernel, stride
            )
        size = 1 if self.kind == "sum" else None
        pool = functional.avg_pool2d if plane else functional.avg_pool3d
        return pool(images, kernel, stride, divisor_override=size)

    def extra_repr(self) -> str:
        """Return kind, shapes and sizes for ``print``."""
        sizes = f"kernel={self.kernel}, stride={self.stride}"
        return f"{self.kind}, {self.shape} to {self.target_shape}, {sizes}"


def grid(
    shape: Grid,
    channels: int,
    kernel: int,
    stride: int,
    padding: Literal["same", "valid"] | int = "same",
) -> Grid:
    """Return the shape of a convolution's or pooling's target.

    Args:
        shape: of the source, ``(channels, *grid)``.

    Raises:
        RecipeError: the units lie in no grid of one to three axes, or the kernel does not fit.

    >>> grid((1, 8, 8), 4, kernel=3, stride=2), grid((2, 9), 2, kernel=2, stride=2, padding=0)
    ((4, 4, 4), (2, 4))
    """
    if len(shape) not in CONVOLUTIONS:
        raise RecipeError(f"{shape}: units in no grid (channels, and one to three axes)")
    spare = 2 * margin(padding, kernel) - kernel
    sizes = [(size + spare) // stride + 1 for size in shape[1:]]
    if min(sizes) < 1:
        raise RecipeError(f"kernel = {kernel} does not fit into the grid {shape[1:]}")
    return channels, *sizes


def margin(padding: Literal["same", "valid"] | int, kernel: int) -> int:
    """Return the number of zeros on each side of a grid."""
    if isinstance(padding, str):
        return {"same": kernel // 2, "valid": 0}[padding]
    return padding
