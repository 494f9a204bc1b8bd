"""LocalMixer: a network of patches and groups of channels, made for local losses.

An image is cut into ``P`` patches.  With ``N`` layer normalisation without parameters, ``G`` groups
of channels and ``[...]`` a current, i.e. a site::

    block 0    a = relu [N linear(N x)];        h = relu [N group linear(N a)]
    block k    a = relu [N token mixing(N h)];  b = relu [N linear(N a)]
               h = relu([N group linear(N b)] + h)
    readout    [linear(N (mean of h over the patches))]

Token mixing is one ``P x P`` matrix for all channels, the linear layer one for all patches, the
group linear layer one for each group.  Normalisation is over the channels, around a group linear
layer over those of each group.

Source: Ren, Kornblith, Liao & Hinton 2022, arXiv 2210.03310.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Site
from biograd.errors import RecipeError
from biograd.recipes import MixerRecipe
from biograd.substrate.network import Network, SynapticLayer


class TokenMixing(SynapticLayer):
    """Mixes the patches, alike in all channels: ``[rows, P, C]`` to the same shape."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(patches, patches))
        self.bias = nn.Parameter(torch.empty(patches))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``W x + b`` along the patches."""
        return functional.linear(inputs.transpose(1, 2), self.weight, self.bias).transpose(1, 2)


class GroupLinear(SynapticLayer):
    """Mixes the channels of each group: ``[rows, P, C]`` to the same shape.

    Args:
        channels: ``C``; the weight is ``[C, C / G]``, one row for each output channel.
        groups: ``G``.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels, channels // groups))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``W_g x_g + b_g`` of all groups side by side."""
        grouped = inputs.unflatten(-1, (self.groups, -1))
        weight = self.weight.unflatten(0, (self.groups, -1))
        outputs = torch.einsum("npgi,goi->npgo", grouped, weight).flatten(-2)
        return outputs if self.bias is None else outputs + self.bias


class Normalisation(nn.Module):
    """Layer normalisation over the channels of each group, without parameters."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Return groups of mean 0 and variance 1."""
        grouped = inputs.unflatten(-1, (self.groups, -1))
        return functional.layer_norm(grouped, grouped.shape[-1:]).flatten(-2)


class MixerBlock(nn.Module):
    """One block; see the module's formulas.

    Args:
        inputs: number of input channels.
        mixing: whether it mixes patches and adds its input (all blocks but the first).
    """

    def __init__(self, recipe: MixerRecipe, inputs: int, mixing: bool) -> None:
        super().__init__()
        self.mixing = mixing
        if mixing:
            self.tokens = TokenMixing(recipe.patches**2)
            self.tokens_current = Normalisation()
        self.channels = nn.Linear(inputs, recipe.channels)
        self.channels_current = Normalisation()
        self.groups = GroupLinear(recipe.channels, recipe.groups)
        self.groups_current = Normalisation(recipe.groups)
        self.normalise, self.normalise_groups = Normalisation(), Normalisation(recipe.groups)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the synaptic layers in the order of the data flow."""
        return ("tokens", "channels", "groups") if self.mixing else ("channels", "groups")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activity ``[rows, P, C]``."""
        values = self.normalise(inputs)
        if self.mixing:
            values = torch.relu(self.tokens_current(self.tokens(values)))
            values = self.normalise(values)
        values = torch.relu(self.channels_current(self.channels(values)))
        values = self.groups_current(self.groups(self.normalise_groups(values)))
        return torch.relu(values + inputs if self.mixing else values)


class LocalMixer(Network):
    """The whole network; its local losses act at the ends of its blocks.

    Args:
        shape: of one datum, ``(channels, H, W)``; with one patch, any shape.

    Attributes:
        ends: names of the sites that end a block.

    Raises:
        RecipeError: patches or groups do not divide what they should.
    """

    def __init__(self, recipe: MixerRecipe, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        _check(recipe, shape)
        self.patches, self.shape = recipe.patches, shape
        inputs = math.prod(shape) // recipe.patches**2
        self.blocks = nn.ModuleList(
            MixerBlock(recipe, inputs if number == 0 else recipe.channels, number > 0)
            for number in range(recipe.blocks)
        )
        self.normalise = Normalisation()
        self.readout = nn.Linear(recipe.channels, outputs)
        self.sites = (*self._hidden(), Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{number}" for number in range(recipe.blocks))
        self.ends = tuple(f"{name}.groups" for name in self.populations)

    def _hidden(self) -> list[Site]:
        sites = []
        for number, block in enumerate(self.blocks):
            for layer in block.layers:  # type: ignore[union-attr]
                name = f"blocks.{number}.{layer}"
                activity = f"blocks.{number}" if layer == "groups" else None
                sites.append(Site(name, (name,), (False,), activity, f"{name}_current"))
        return sites

    def patchified(self, inputs: Tensor) -> Tensor:
        """Return the patches ``[rows, P, pixels]`` of images ``[rows, channels, H, W]``."""
        if self.patches == 1:
            return inputs.flatten(1).unsqueeze(1)
        channels, *sides = self.shape
        lengths = [length // self.patches for length in sides]
        parts = inputs.reshape(-1, channels, self.patches, lengths[0], self.patches, lengths[1])
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(len(inputs), self.patches**2, -1)

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, outputs]``."""
        activity = self.patchified(encoded)
        for block in self.blocks:
            activity = block(activity)
        return self.readout(self.normalise(activity.mean(1)))


def _check(recipe: MixerRecipe, shape: tuple[int, ...]) -> None:
    if recipe.channels % recipe.groups or recipe.channels == recipe.groups:
        raise RecipeError(
            f"mixer.groups = {recipe.groups}: {recipe.channels} channels cannot be divided into so "
            "many groups of two or more"
        )
    cut = recipe.patches > 1
    if cut and (len(shape) != 3 or any(length % recipe.patches for length in shape[1:])):
        raise RecipeError(
            f"mixer.patches = {recipe.patches}: data of shape {shape} cannot be cut into so many "
            "patches on each side"
        )
    if math.prod(shape) == recipe.patches**2:
        raise RecipeError(
            f"mixer.patches = {recipe.patches}: each patch would be one number, which its "
            "normalisation sets to zero"
        )
