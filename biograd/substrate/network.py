"""What every network of biograd is: layers in the order of the data flow, with named sites."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from biograd.contracts import Site
from biograd.contracts.trial_part import TrialPart
from biograd.encoding import Encoding
from biograd.randomness import generator

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The synaptic layers: their outputs are sites, their inputs can be decorrelated."""


class SynapticLayer(nn.Module):
    """A synaptic layer of another kind: its output is a site, its input stays as it is.

    Attributes:
        weight: one row for each output, or for each output of a group, ``[outputs, fan-in]``.
        bias: ``[outputs]``.
        mask: which weights exist, a buffer; a layer without it has all.
        longest: how many steps back its output depends on its input; None: it sees a step alone.
    """

    longest: int | None = None
    weight: Tensor
    bias: Tensor | None

    @property
    def fan_in(self) -> float:
        """The number of inputs on which an output depends."""
        return self.weight[0].numel()

    def choose(self, stream: torch.Generator) -> None:
        """Draw what is drawn before the weights."""


class Network(nn.Module):
    """A network that names its sites and populations.

    Attributes:
        sites: where noise enters and credit is delivered; the last is the readout.
        populations: dotted names of the modules whose outputs are the units' activity.
        encoding: turns a datum into a current or spike train; None for a static rate network.
        steps: number of time steps of a trial, 1 without time.
        spiking: whether the activities are spikes ``[rows, steps, units]``, not the course of
            another variable.
        ends: names of the sites that end a block of several sites; empty: every hidden site does.
        part: the part of a trial that is run; None: the whole trial.
    """

    sites: tuple[Site, ...] = ()
    populations: tuple[str, ...] = ()
    encoding: Encoding | None = None
    steps: int = 1
    spiking: bool = False
    ends: tuple[str, ...] = ()
    part: TrialPart | None = None

    def encode(self, inputs: Tensor, stream: torch.Generator) -> Tensor:
        """Return what all copies of the batch share, ``[B, steps or 1, units]`` with time."""
        dtype = next(self.parameters()).dtype
        inputs = inputs.to(dtype)
        return inputs if self.encoding is None else self.encoding(inputs, stream)

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, outputs]`` for encoded inputs."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs ``[B, outputs]``; a random encoding always draws the same."""
        return self.simulate(self.encode(inputs, generator(0, "forward", device=inputs.device)))

    def spikes_into(self, layer: str) -> bool:
        """Return whether a synaptic layer receives spikes, 0 or 1, and not analogue values.

        Args:
            layer: its dotted name.
        """
        first = layer == self.sites[0].modules[0]
        return self.spiking and (not first or (self.encoding is not None and self.encoding.spikes))

    def fires(self, population: str) -> bool:
        """Return whether a population's activity is spikes."""
        return self.spiking

    @torch.no_grad()
    def activity(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each population's activity: ``[B, units]``, or spikes ``[B, steps, units]``."""
        with recorded(self, self.populations) as outputs:
            self(inputs)
        return {
            name: torch.stack(parts, 1) if len(parts) > 1 else parts[0]
            for name, parts in outputs.items()
        }


@contextmanager
def recorded(module: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of the named submodules while the context is open."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in names:

        def keep(_module: nn.Module, _args: object, output: Tensor, name: str = name) -> None:
            outputs[name].append(output.detach())

        handles.append(module.get_submodule(name).register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def initialise(module: nn.Module, seed: int, gain: float, readout: str) -> None:
    """Draw the weights of all synaptic layers: normal, standard deviation ``gain / sqrt(fan_in)``.

    Each layer has its own stream, named after it, so that two networks whose layers agree start
    from the same draw.  The readout has gain 1; biases, and weights that do not exist, are zero.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, (*LAYERS, SynapticLayer)):
            continue
        mask, fan_in = None, float(layer.weight[0].numel())
        if isinstance(layer, SynapticLayer):
            layer.choose(generator(seed, "mask", name))
            mask, fan_in = getattr(layer, "mask", None), layer.fan_in
        stream = generator(seed, "weights", name)
        draw = torch.randn(layer.weight.shape, generator=stream, dtype=torch.float64)
        scale = (1.0 if name == readout else gain) / math.sqrt(fan_in)
        layer.weight.copy_(draw * scale if mask is None else draw * scale * mask)
        if layer.bias is not None:
            layer.bias.zero_()
