"""Rate networks in PyTorch: dense, convolutional and recurrent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biograd.contracts import Site
from biograd.encoding import Encoding
from biograd.networks.network import Network
from biograd.recipes import NetworkRecipe

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


class RateNetwork(Network):
    """A feed-forward network: 3x3 convolutions of stride 2, dense layers, a linear readout.

    Each block is ``h = dropout(activation(normalise(W x + b)))``; its site is ``W x + b``.

    Args:
        shape: of one datum, ``(C, H, W)`` or ``(features,)``; convolutions need the former.
    """

    def __init__(self, recipe: NetworkRecipe, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        names: list[str] = []
        channels, size = (shape[0], shape[1:]) if recipe.channels else (0, ())
        for width in recipe.channels:
            layer = nn.Conv2d(channels, width, 3, stride=2, padding=1)
            self._append(recipe, layer, width, nn.BatchNorm2d, names)
            channels, size = width, tuple(-(-length // 2) for length in size)
        units = channels * math.prod(size) if recipe.channels else math.prod(shape)
        for width in recipe.hidden:
            self._append(recipe, nn.Linear(units, width), width, nn.BatchNorm1d, names)
            units = width
        self.readout = nn.Linear(units, classes)
        self.sites = tuple(Site(name, (name,), (False,)) for name in [*names, "readout"])
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))

    def _append(
        self,
        recipe: NetworkRecipe,
        layer: nn.Linear | nn.Conv2d,
        width: int,
        batch_norm: type[nn.Module],
        names: list[str],
    ) -> None:
        block = nn.Sequential()
        block.add_module("synapse", layer)
        if recipe.normalisation == "batch":
            block.add_module("normalise", batch_norm(width))
        elif recipe.normalisation == "layer":
            groups = nn.GroupNorm(1, width)
            block.add_module(
                "normalise", groups if batch_norm is nn.BatchNorm2d else nn.LayerNorm(width)
            )
        block.add_module("activity", ACTIVATIONS[recipe.activation]())
        if recipe.dropout:
            block.add_module("dropout", nn.Dropout(recipe.dropout))
        names.append(f"blocks.{len(self.blocks)}.synapse")
        self.blocks.append(block)

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]``."""
        activity = encoded
        for block in self.blocks:
            if isinstance(block.get_submodule("synapse"), nn.Linear):
                activity = activity.flatten(1)
            activity = block(activity)
        return self.readout(activity.flatten(1))


class RecurrentRateNetwork(Network):
    """A recurrent network: ``h[t] = activation(W x[t] + V h[t-1] + b)``, read out at the end.

    The site of a layer is the sum ``W x[t] + V h[t-1] + b`` in every step.
    """

    def __init__(self, recipe: NetworkRecipe, encoding: Encoding, classes: int) -> None:
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps
        self.blocks = nn.ModuleList()
        units = encoding.units
        sites = []
        for index, width in enumerate(recipe.hidden):
            block = nn.ModuleDict(
                {
                    "synapse": nn.Linear(units, width),
                    "recurrent": nn.Linear(width, width, bias=False),
                    "activity": ACTIVATIONS[recipe.activation](),
                }
            )
            self.blocks.append(block)
            name = f"blocks.{index}"
            sites.append(
                Site(f"{name}.synapse", (f"{name}.synapse", f"{name}.recurrent"), (True, False))
            )
            units = width
        self.readout = nn.Linear(units, classes)
        self.sites = (*sites, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]`` for ``[rows, steps or 1, units]``."""
        activity = encoded
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            drive = block["synapse"](activity)
            drive = drive.expand(-1, self.steps, -1)
            state = torch.zeros_like(drive[:, 0])
            states = []
            for index in range(self.steps):
                state = block["activity"](drive[:, index] + block["recurrent"](state))
                states.append(state)
            activity = torch.stack(states, 1)
        return self.readout(activity[:, -1])
