"""Convolution and pooling of units in a grid, against torch's own on images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from biograd.circuit.grids import Convolution, Pooling
from biograd.errors import RecipeError
from biograd.randomness import generator

SHAPES: dict[tuple[int, ...], Any] = {
    (2, 9): functional.conv1d,
    (2, 5, 6): functional.conv2d,
    (2, 4, 5, 3): functional.conv3d,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "values"), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (3, 2)])
def test_a_convolution_is_torchs(
    shape: tuple[int, ...], padding: Any, kernel: int, stride: int
) -> None:
    layer = Convolution(shape, 4, kernel, stride, padding=padding).double()
    layer.weight.data, layer.bias.data = random(*layer.weight.shape), random(4)  # type: ignore[union-attr]
    inputs, zeros = random(3, 2, math.prod(shape)), {"same": kernel // 2, "valid": 0}
    images = inputs.view(6, *shape)
    number = zeros.get(padding, padding)
    expected = SHAPES[shape](images, layer.weight, layer.bias, stride=stride, padding=number)
    assert layer.target_shape == expected.shape[1:]
    assert torch.equal(layer(inputs), expected.view(3, 2, -1))
    assert torch.allclose(layer(inputs[:, 1]), layer(inputs)[:, 1], atol=1e-13)


def windows(image: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """Return the windows of one channel, row by row."""
    starts = [range(0, size - kernel + 1, stride) for size in image.shape]
    return [
        image[tuple(slice(start, start + kernel) for start in place)]
        for place in itertools.product(*starts)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["average", "max", "sum"])
def test_a_pooling_by_hand(
    shape: tuple[int, ...], kernel: int, stride: int | None, kind: Any
) -> None:
    layer, inputs = Pooling(shape, kernel, stride, kind), random(3, math.prod(shape))
    make = {"average": Tensor.mean, "max": Tensor.amax, "sum": Tensor.sum}[kind]
    expected = [
        [make(w) for channel in row for w in windows(channel, kernel, stride or kernel)]
        for row in inputs.view(3, *shape)
    ]
    found = layer(inputs)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    assert found.shape[1] == math.prod(layer.target_shape)
    assert not list(layer.parameters()) and layer.keeps_spikes == (kind == "max")
    stepwise = layer(torch.stack([inputs, 2 * inputs], 1))
    assert torch.allclose(stepwise[:, 1], 2 * found)


def test_a_sum_of_spikes_is_their_number() -> None:
    spikes = (torch.rand(4, 2 * 9 * 9, generator=generator(0)) < 0.5).float()
    found = Pooling((2, 9, 9), 3, kind="sum")(spikes)
    assert torch.equal(found, found.round()) and found.sum() == spikes.sum()


def test_what_does_not_fit_is_refused() -> None:
    for make in (
        lambda: Pooling((2, 3, 3), 4),
        lambda: Convolution((2, 3, 3), 4, 5, padding="valid"),
    ):
        with pytest.raises(RecipeError, match=r"kernel = \d does not fit into the grid \(3, 3\)"):
            make()
    with pytest.raises(RecipeError, match="units in no grid"):
        Pooling((7,), 2)
