"""Projections between populations that are not plain linear layers."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from biograd.circuit import sparse
from biograd.circuit.grids import Convolution, grid
from biograd.errors import RecipeError
from biograd.randomness import generator
from biograd.recipes import Count, ProjectionRecipe, Range, validate
from biograd.simulators.gathered import GatheringLinear, gathered
from biograd.substrate.network import SynapticLayer

Sign = Literal["both", "excitatory", "inhibitory"]


Share = Annotated[float, Range(0, 1, above=True)]
"""Share of the connections that exist."""


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
        self, mask: Tensor, bias: bool = True, sign: Sign = "both", density: Share | None = None
    ) -> None:
        validate(Masked, locals())
        if mask.dim() != 2 or not mask.numel() or not bool(((mask == 0) | (mask == 1)).all()):
            raise RecipeError(f"Masked: mask {list(mask.shape)}: must be [outputs, inputs] of 0, 1")
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
        return gathered(inputs, signed(self.weight, self.sign) * self.mask, self.bias)

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


class Sparse(SynapticLayer):
    """A linear layer that stores only the connections that exist: ``W x + b``.

    It computes what ``Masked`` does, and gradients, without any matrix ``[outputs, inputs]``.
    With a sign the layer is ``+-|W| x + b``.

    Args:
        connections: the share of all pairs that ``choose`` connects, drawn without repetition; or
            the pairs ``(target, source)`` themselves, ``[connections, 2]``, in any order.
        bias: whether there is a bias.
        sign: of the weights that act.

    Attributes:
        weight: one for each connection, ``[connections]``, sorted by target, then by source.
        connections: the pairs to which the weights belong, ``[connections, 2]``.

    Raises:
        RecipeError: no pairs, one that lies outside, or one that is there twice.
    """

    connections: Tensor

    def __init__(
        self,
        inputs: Count,
        outputs: Count,
        connections: Share | Tensor,
        bias: bool = True,
        sign: Sign = "both",
    ) -> None:
        validate(Sparse, locals())
        super().__init__()
        self.shape, self.sign = (outputs, inputs), sign
        self.density = None if isinstance(connections, Tensor) else connections
        if isinstance(connections, Tensor):
            pairs = _sorted_pairs(connections, self.shape)
        else:
            count = max(1, round(connections * outputs * inputs))
            pairs = sparse.drawn(self.shape, count, generator(0, "connections"))
        self.register_buffer("connections", pairs)
        self.weight = nn.Parameter(torch.zeros(len(pairs)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def fan_in(self) -> float:
        """The mean number of connections that an output has."""
        return max(1.0, len(self.weight) / self.shape[0])

    @property
    def pattern(self) -> sparse.Pattern:
        """Which connections exist, as products need it; made anew when ``connections`` change."""
        mark = self.connections, self.connections._version
        kept = self.__dict__.get("_pattern")
        if kept is None or kept[0] is not mark[0] or kept[1] != mark[1]:
            kept = (*mark, sparse.Pattern.of(self.connections, self.shape))
            self.__dict__["_pattern"] = kept
        found: sparse.Pattern = kept[2]
        return found

    def choose(self, stream: torch.Generator) -> None:
        """Draw which connections exist."""
        if self.density is not None:
            self.connections.copy_(sparse.drawn(self.shape, len(self.weight), stream))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., outputs]`` for ``[..., inputs]``."""
        found = sparse.product(signed(self.weight, self.sign), inputs, self.pattern)
        return found if self.bias is None else found + self.bias

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made from the connections."""
        return {key: value for key, value in self.__dict__.items() if key != "_pattern"}

    def extra_repr(self) -> str:
        """Return sizes, number of connections and sign for ``print``."""
        sign = "" if self.sign == "both" else f", {self.sign}"
        return f"{self.shape[1]}, {self.shape[0]}, connections={len(self.weight)}{sign}"


def _sorted_pairs(pairs: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return pairs (target, source) by target, then by source, and check them."""
    if pairs.dim() != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.is_floating_point():
        raise RecipeError(
            f"Sparse: connections {tuple(pairs.shape)}, {pairs.dtype}: give pairs (target, source)"
        )
    for target, source in pairs[((pairs < 0) | (pairs >= pairs.new_tensor(shape))).any(1)].tolist():
        raise RecipeError(f"Sparse: connection ({target}, {source}) lies outside of {shape}")
    found, times = pairs.long().unique(dim=0, return_counts=True)
    for target, source in found[times > 1].tolist():
        raise RecipeError(f"Sparse: connection ({target}, {source}) is there twice")
    return found


def signed(weight: Tensor, sign: Sign) -> Tensor:
    """Return the weight that acts."""
    if sign == "both":
        return weight
    return weight.abs() if sign == "excitatory" else -weight.abs()


class OneToOne(SynapticLayer):
    """Each unit to the one at its place: ``w x + b``, with a sign ``+-|w| x + b``.

    Args:
        units: number of them, before and behind the layer.
        bias: whether there is a bias.
        sign: of the weights that act.
    """

    def __init__(self, units: Count, bias: bool = False, sign: Sign = "both") -> None:
        validate(OneToOne, locals())
        super().__init__()
        self.sign = sign
        self.weight = nn.Parameter(torch.ones(units, 1))
        self.bias = nn.Parameter(torch.zeros(units)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents ``[..., units]`` for ``[..., units]``."""
        found = inputs * signed(self.weight, self.sign)[:, 0]
        return found if self.bias is None else found + self.bias

    def extra_repr(self) -> str:
        """Return the number of units and the sign for ``print``."""
        return f"{len(self.weight)}" + ("" if self.sign == "both" else f", {self.sign}")


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
    if recipe.kind == "one_to_one":
        if count != units:
            raise RecipeError(
                f"projections.{name}.kind = 'one_to_one': leads from {count} units to {units}"
            )
        return OneToOne(units, recipe.bias, recipe.sign)
    if recipe.kind == "sparse":
        return Sparse(count, units, recipe.density, recipe.bias, recipe.sign)
    if recipe.kind == "masked":
        nothing = torch.zeros(units, count)
        return Masked(nothing, recipe.bias, recipe.sign, recipe.density)
    if recipe.sign != "both":
        return Masked(torch.ones(units, count), recipe.bias, recipe.sign)
    return GatheringLinear(count, units, bias=recipe.bias)


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
    target = grid(shape, recipe.channels, recipe.kernel, recipe.stride, recipe.padding)
    if math.prod(target) != units:  # before any memory is asked for
        raise RecipeError(
            f"projections.{name}: the convolution has {math.prod(target)} outputs {target}, but "
            f"populations.{recipe.target}.units = {units}"
        )
    return Convolution(
        shape, recipe.channels, recipe.kernel, recipe.stride, recipe.bias, recipe.padding
    )
