"""Layers as a graph: what ``hidden``, ``channels``, ``recurrent`` and ``residual`` expand to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from biograd.circuit.circuit import Circuit
from biograd.circuit.delays import delayed
from biograd.circuit.graph import INPUT, SKIP, Block, Projection
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.populations import make_population, normalised, reading
from biograd.encoding import Encoding
from biograd.errors import RecipeError
from biograd.neurons import Rate
from biograd.recipes import ModelRecipe, NetworkRecipe
from biograd.simulators.gathered import GatheringLinear
from biograd.substrate.normalisation import Dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
"""Of rate units without time, where a layer's own module is enough."""


class LengthNormalisation(nn.Module):
    """``h / sqrt(mean h^2)`` of each row: what follows sees the direction of an activity alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return rows of mean square 1; silent rows stay zero."""
        square = inputs.flatten(1).square().mean(1)
        return inputs * (square + 1e-8).rsqrt().view(-1, *[1] * (inputs.dim() - 1))


class Labelled(Circuit):
    """A network with one more input for each class in front of the data.

    Args:
        labels: number of them.
    """

    def __init__(
        self, parts: Any, readout: nn.Module, filtered: nn.Module | None, labels: int
    ) -> None:
        super().__init__(parts, readout, filtered=filtered)
        self.labels = labels

    def encode(self, inputs: Tensor, stream: torch.Generator) -> Tensor:
        """Return the inputs behind neutral labels ``1 / classes``."""
        values = super().encode(inputs, stream)
        neutral = values.new_full((len(values), self.labels), 1 / self.labels)
        return torch.cat([neutral, values.flatten(1)], 1)


@dataclasses.dataclass
class _Place:
    """How far the layers have come: where they come from, and how it lies."""

    source: str
    units: int
    grid: tuple[int, ...] | None
    lies: bool = False
    """Whether the units lie in more than one axis."""


class Layers:
    """Expands the layers of a recipe to a graph.

    Args:
        recipe: of the model.
        shape: of a datum.
        encoding: None: without time.
        outputs: number of them.
        timed: whether there is an output in every step.
    """

    def __init__(
        self,
        recipe: ModelRecipe,
        shape: tuple[int, ...],
        encoding: Encoding | None,
        outputs: int,
        timed: bool,
    ) -> None:
        self.recipe, self.network, self.encoding = recipe, recipe.network, encoding
        self.outputs, self.timed, self.parts = outputs, timed, list[Block | Projection]()
        self.skips = False
        self.labels = outputs if self.network.label_inputs else 0
        shape = shape if encoding is None else encoding.shape
        units = math.prod(shape) + self.labels if encoding is None else encoding.units
        lies = len(shape) == 3 and (encoding is None or encoding.units == math.prod(shape))
        if self.network.channels and not lies:
            raise RecipeError(f"network.channels: convolutions need data (C, H, W), not {shape}")
        self.place = _Place(
            INPUT, units, shape if lies else None, len(shape) > 1 and not self.labels
        )

    def circuit(self) -> Circuit:
        """Return the network."""
        for width in self.network.channels:
            self._convolution(width)
        pooled = self.network.pooling if self.network.channels else 1
        if not (self.network.hidden or self.network.channels):
            raise RecipeError("network.hidden = []: give a layer, here or by network.channels")
        for width in self.network.hidden:
            self._dense(width, pooled)
            pooled = 1
        before = None if self.network.hidden else self._before(pooled, dense=True)
        if self.network.residual and not self.skips:
            raise RecipeError(
                "network.residual: has no effect: no dense layer is as wide as what it receives"
            )
        units = self.place.units
        if self.encoding is None:
            readout: nn.Module = nn.Linear(units, self.outputs)
            flat = nn.Flatten() if before is None and self.place.lies else before
            if self.labels:
                return Labelled(self.parts, readout, flat, self.labels)
            return Circuit(self.parts, readout, filtered=flat)
        readout, filtered, behind = reading(
            self.recipe, self.encoding, self.timed, units, self.outputs
        )
        if before is not None:
            filtered = before if filtered is None else nn.Sequential(before, filtered)
        simulator = self.network.substrate
        return Circuit(self.parts, readout, self.encoding, filtered, behind, simulator=simulator)

    def _before(self, pooling: int, dense: bool) -> nn.Module | None:
        """Return what is done to the source's activity, and note how it then lies."""
        parts: list[nn.Module] = []
        if pooling > 1:
            assert self.place.grid is not None
            pool = Pooling(self.place.grid, pooling, kind=self.network.pool)
            self.place.grid = pool.target_shape
            self.place.units = math.prod(pool.target_shape)
            if self.encoding is None:
                kinds = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}
                if self.network.pool not in kinds:
                    raise RecipeError("network.pool = 'sum': only in time; take 'average'")
                parts.append(kinds[self.network.pool](pooling))
            else:
                parts.append(pool)
        if dense and self.encoding is None and self.place.lies:
            parts.append(nn.Flatten())
        return None if not parts else parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def _convolution(self, width: int) -> None:
        network, first = self.network, self.place.source == INPUT
        before = self._before(1 if first else network.pooling, dense=False)
        grid = self.place.grid
        assert grid is not None
        layer: nn.Module
        target = Convolution(grid, width, network.kernel, network.stride)
        if self.encoding is None:
            layer = nn.Conv2d(
                grid[0], width, network.kernel, stride=network.stride, padding=network.kernel // 2
            )
        else:
            layer = target
        self._block(layer, width, math.prod(target.target_shape), before, target.target_shape)

    def _dense(self, width: int, pooling: int) -> None:
        before = self._before(pooling, dense=True)
        kind = nn.Linear if self.encoding is None else GatheringLinear
        layer: nn.Module = kind(self.place.units, width)
        if self.encoding is not None:
            layer = delayed(layer, self.network.delays, self.encoding, 0, "network.delays")
        skip = self.network.residual and self.place.units == width
        self._block(layer, width, width, before, None, skip)

    def _block(
        self,
        layer: nn.Module,
        width: int,
        units: int,
        before: nn.Module | None,
        grid: tuple[int, ...] | None,
        skip: bool = False,
    ) -> None:
        network, path = self.network, f"blocks.{self.index}"
        source = self.place.source
        self.parts.append(Projection(f"{path}.synapse", source, path, layer, before=before))
        if network.recurrent:
            loop = GatheringLinear(units, units, bias=False)
            self.parts.append(Projection(f"{path}.recurrent", path, path, loop, lag=1))
        cells, spiking = self._cells(units, path)
        self.parts.append(
            Block(
                path,
                cells,
                f"{path}.synapse",
                self._normalised(width, grid),
                self._after(),
                whole=bool(network.dropout or network.residual),
                spiking=spiking,
            )
        )
        if skip:
            self.skips = True
            passed = Projection(f"{path}.skip", source, path, None, SKIP, before=before)
            self.parts.append(passed)
        self.place = _Place(path, units, grid, grid is not None)

    @property
    def index(self) -> int:
        """The number of blocks so far."""
        return sum(isinstance(part, Block) for part in self.parts)

    def _cells(self, units: int, path: str) -> tuple[nn.Module, bool]:
        """Return the neurons of a block, and whether they pass on spikes."""
        network = self.network
        if self.encoding is None:
            return ACTIVATIONS[network.activation](), False
        neuron: Any = Rate(network.activation) if network.kind == "rate" else self.recipe.neuron
        if len(neuron.ports) > 1:
            raise RecipeError(
                f"neuron.kind = {neuron.kind!r}: has the ports {', '.join(neuron.ports)}: needs "
                "network.kind = 'circuit', whose projections say to which they lead"
            )
        return make_population(
            neuron,
            self.recipe.population if network.kind == "spiking" else None,
            units,
            self.encoding,
            network.substrate,
            f"{path}.activity",
            where="neuron",
            own=self.recipe.neuron,
        )

    def _normalised(self, width: int, grid: tuple[int, ...] | None) -> dict[str, nn.Module]:
        kind = self.network.normalisation
        if kind == "none" or kind == "length":
            return {}
        if self.encoding is not None:
            shape = (width,) if grid is None else grid
            neuron: Any = self.recipe.neuron if self.network.kind == "spiking" else Rate()
            steps = self.encoding.steps
            return {"normalise": normalised(kind, shape, neuron, steps)}
        if kind == "batch":
            return {"normalise": (nn.BatchNorm1d if grid is None else nn.BatchNorm2d)(width)}
        layer = nn.LayerNorm(width) if grid is None else nn.GroupNorm(1, width)
        return {"normalise": layer}

    def _after(self) -> dict[str, nn.Module]:
        network, found = self.network, dict[str, nn.Module]()
        if network.normalisation == "length":
            found["length"] = LengthNormalisation()
        if network.dropout:
            static = self.encoding is None
            found["dropout"] = (nn.Dropout if static else Dropout)(network.dropout)
        return found


def check_shape(network: NetworkRecipe) -> None:
    """Refuse keys of ``[network]`` that do not go together.

    Raises:
        RecipeError: with the key.
    """
    timed = network.kind == "spiking" or network.recurrent
    if timed and network.normalisation == "length":
        raise RecipeError("network.normalisation = 'length': only without time; take 'layer'")
    if timed and not (network.hidden or network.channels):
        raise RecipeError("network.hidden = []: a network in time needs a hidden layer")
    if network.label_inputs and (timed or network.channels):
        raise RecipeError("network.label_inputs: only for dense feed-forward rate networks")
