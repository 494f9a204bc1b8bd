"""Rate networks in PyTorch: dense, convolutional and recurrent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biograd.contracts import Site, Transport
from biograd.encoding import Encoding
from biograd.networks.network import Network
from biograd.credit_paths import hand_over, joined, starts
from biograd.recipes import NetworkRecipe

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


class Residual(nn.Sequential):
    """A block with a skip past it, ``h = x + block(x)``; in and out have one shape."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``x + block(x)``."""
        return inputs + super().forward(inputs)


class LengthNormalisation(nn.Module):
    """``h / sqrt(mean h^2)`` of each row: what follows sees the direction of an activity alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return rows of mean square 1; silent rows stay zero."""
        square = inputs.flatten(1).square().mean(1)
        return inputs * (square + 1e-8).rsqrt().view(-1, *[1] * (inputs.dim() - 1))


class RateNetwork(Network):
    """A feed-forward network: 3x3 convolutions of stride 2, dense layers, a linear readout.

    Each block is ``h = dropout(activation(normalise(W x + b)))``; its site is ``W x + b``.  In a
    residual network a dense block whose width is that of its input adds it, ``x + h``.

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
        self.labels = classes if recipe.label_inputs else 0
        units = channels * math.prod(size) if recipe.channels else math.prod(shape) + self.labels
        for width in recipe.hidden:
            self._append(recipe, nn.Linear(units, width), width, nn.BatchNorm1d, names)
            units = width
        self.readout = nn.Linear(units, classes)
        whole = recipe.dropout or recipe.residual  # more follows the activation in a block
        part = "" if whole else ".activity"
        hidden = [
            Site(name, (name,), (False,), f"blocks.{index}{part}")
            for index, name in enumerate(names)
        ]
        self.sites = (*hidden, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))

    def encode(self, inputs: Tensor, stream: torch.Generator) -> Tensor:
        """Return the inputs; behind neutral labels ``1 / classes`` if the recipe asks for them."""
        values = super().encode(inputs, stream)
        if not self.labels:
            return values
        neutral = values.new_full((len(values), self.labels), 1 / self.labels)
        return torch.cat([neutral, values.flatten(1)], 1)

    def _append(
        self,
        recipe: NetworkRecipe,
        layer: nn.Linear | nn.Conv2d,
        width: int,
        batch_norm: type[nn.Module],
        names: list[str],
    ) -> None:
        skip = recipe.residual and isinstance(layer, nn.Linear) and layer.in_features == width
        block = Residual() if skip else nn.Sequential()
        block.add_module("synapse", layer)
        if recipe.normalisation == "batch":
            block.add_module("normalise", batch_norm(width))
        elif recipe.normalisation == "layer":
            groups = nn.GroupNorm(1, width)
            block.add_module(
                "normalise", groups if batch_norm is nn.BatchNorm2d else nn.LayerNorm(width)
            )
        block.add_module("activity", ACTIVATIONS[recipe.activation]())
        if recipe.normalisation == "length":
            block.add_module("length", LengthNormalisation())
        if recipe.dropout:
            block.add_module("dropout", nn.Dropout(recipe.dropout))
        names.append(f"blocks.{len(self.blocks)}.synapse")
        self.blocks.append(block)

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]``."""
        activity = encoded
        for block in self.blocks:
            if isinstance(block.synapse, nn.Linear):
                activity = activity.flatten(1)
            activity = block(activity)
        return self.readout(activity.flatten(1))


class RecurrentPopulation(nn.Module):
    """Rate units in a loop: ``h[t] = activation(I[t] + V h[t-1])``.

    Attributes:
        transport: how credit passes back; a substrate sets it for the time of a pass.  Without a
            membrane, ``Transport.traces`` adds nothing: a current acts in its own step alone.
        handed: states from window to window that a substrate asks for.
        variables: number of variables of the state.
    """

    variables = 1
    transport = Transport()
    handed: list[tuple[Tensor, Tensor]]

    def __init__(self, activation: nn.Module, steps: int) -> None:
        super().__init__()
        self.activation, self.steps = activation, steps

    def forward(self, current: Tensor, recurrent: nn.Module) -> Tensor:
        """Return ``h`` ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``.

        ``recurrent`` maps the activity of the step before to an additional current.
        """
        current = joined(current).expand(-1, self.steps, -1)
        state, states = torch.zeros_like(current[:, 0]), []
        for index in range(self.steps):
            if starts(index, self.transport.window):
                (state,) = hand_over((state,), self.handed if self.transport.slots else None)
            state = self.activation(current[:, index] + joined(recurrent(state)))
            states.append(state)
        return torch.stack(states, 1)

    def extra_repr(self) -> str:
        """Return the number of steps for ``print``."""
        return f"steps={self.steps}"


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
                    "activity": RecurrentPopulation(ACTIVATIONS[recipe.activation](), self.steps),
                }
            )
            self.blocks.append(block)
            name = f"blocks.{index}"
            layers = (f"{name}.synapse", f"{name}.recurrent")
            sites.append(Site(layers[0], layers, (True, False), f"{name}.activity"))
            units = width
        self.readout = nn.Linear(units, classes)
        self.sites = (*sites, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]`` for ``[rows, steps or 1, units]``."""
        activity = encoded
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            activity = block["activity"](block["synapse"](activity), block["recurrent"])
        return self.readout(activity[:, -1])
