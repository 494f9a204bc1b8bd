"""What a network costs: operations for an example at inference, and the memory of the process.

A spike that arrives at a synapse costs one addition, a *synaptic operation*; an analogue value a
multiplication and an addition, a *multiply-accumulate*, whether it is zero or not.  With ``s`` the
number of spikes that a unit sends to a layer, ``F`` its fan-out there (the weights that exist and
are not zero), and ``n`` how often a layer of analogue input is computed, ::

    synaptic operations    = sum over layers that receive spikes of sum_i s_i F_i
    multiply-accumulates   = sum over the other layers of n sum_i F_i

Both are a proxy for energy, ``E ~ e_sop synaptic operations + e_mac multiply-accumulates``: in
45 nm CMOS with 32-bit floating-point numbers 0.9 pJ and 4.6 pJ (Horowitz 2014,
doi:10.1109/ISSCC.2014.6757323).  They say nothing of the neurons' own updates, of biases and
normalisation, of the encoding, and of moving weights in memory, which often costs most.

A pooling costs an addition, or a comparison, for each value that arrives in a window: a synaptic
operation if it is a spike, else a multiply-accumulate.  Means and sums of spikes are analogue
values for the layer behind, maxima are spikes.

Why operations and not spikes: a spike costs as many additions as it has synapses.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biograd.circuit.grids import Pooling
from biograd.circuit.readouts import Readout
from biograd.events.event_network import EventNetwork
from biograd.neurons.stepped import SteppedPopulation
from biograd.randomness import generator
from biograd.simulators.population import Population
from biograd.substrate.effective import effective_parameters, respond
from biograd.substrate.network import LAYERS, Network, SynapticLayer


@dataclasses.dataclass
class Operations:
    """Operations for one example, from the inputs to the outputs.

    Attributes:
        multiply_accumulates: of layers that receive analogue values.
        synaptic_operations: of layers that receive spikes; None if there are none.
    """

    multiply_accumulates: float = 0.0
    synaptic_operations: float | None = None


@torch.no_grad()
def operations(network: nn.Module, inputs: Tensor) -> Operations:
    """Return the mean operations for one of the ``inputs`` ``[B, ...]``, in evaluation mode.

    A layer counts in every call: a recurrent one in each step, one that receives a constant
    current once for the whole trial.  Zeros around an image cost nothing.  What a ``Readout``
    makes of spikes counts as those spikes.  In a module that is not biograd's a layer receives
    spikes if some population spikes there and all values that arrive are 0 or 1.
    """
    training = network.training
    network.eval()
    try:
        return (
            _event_driven(network, inputs)
            if isinstance(network, EventNetwork)
            else (_Meter(network, len(inputs)).read(inputs))
        )
    finally:
        network.train(training)


class _Meter:
    """Looks at what every synaptic layer receives, and counts."""

    def __init__(self, network: nn.Module, rows: int) -> None:
        self.network, self.rows, self.found = network, rows, Operations()
        self.spiking = any(map(_fires, network.modules()))
        self.read_out: tuple[Tensor, Tensor] | None = None
        self.graded: Tensor | None = None

    def read(self, inputs: Tensor) -> Operations:
        """Run the network on ``inputs`` and return what was counted."""
        handles = []
        for name, part in self.network.named_modules():
            if isinstance(part, (*LAYERS, SynapticLayer)):
                handles.append(part.register_forward_hook(self._layer(name)))
            elif isinstance(part, Pooling):
                handles.append(part.register_forward_hook(self._pooling))
            elif isinstance(part, Readout):
                handles.append(part.register_forward_hook(self._readout))
        try:
            self.network(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return self.found

    def _layer(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(layer: nn.Module, inputs: Any, _output: Any) -> None:
            values = inputs[0]
            spikes = self._binary(values)
            if self.read_out is not None and values is self.read_out[0]:
                values, spikes = self.read_out[1], True
            if isinstance(self.network, Network):
                spikes = self.network.spikes_into(name)
            spikes = spikes and values is not self.graded
            count(self.found, layer, values, self.rows, spikes)

        return look

    def _pooling(self, pooling: nn.Module, inputs: Any, output: Tensor) -> None:
        """Count what arrives in the windows of a pooling, and note what it makes of spikes."""
        assert isinstance(pooling, Pooling)
        (values,), spikes = inputs, self._binary(inputs[0])
        windows = Pooling(pooling.shape, pooling.kernel, pooling.stride, "sum")
        _add(self.found, windows(values if spikes else torch.ones_like(values)), self.rows, spikes)
        self.graded = None if pooling.keeps_spikes else output

    def _readout(self, readout: nn.Module, inputs: Any, output: Tensor) -> None:
        """Note how many spikes a readout saw of each unit."""
        (course,) = inputs
        if self._binary(course):
            first = getattr(readout, "kind", "") == "first_spike"
            self.read_out = output, course.amax(1) if first else course.sum(1)

    def _binary(self, values: Tensor) -> bool:
        return self.spiking and bool(((values == 0) | (values == 1)).all())


def count(found: Operations, layer: nn.Module, values: Tensor, rows: int, spikes: bool) -> None:
    """Add one call of a layer.

    The fan-out needs no formula of its own: the layer's response, with ones for its weights, to
    ``s`` is ``sum_i s_i F_i`` in all.

    Args:
        values: what the layer receives, ``[rows, ...]``; for spikes, their numbers.
        rows: number of examples.
        spikes: whether it receives spikes.
    """
    weight, _ = effective_parameters(layer)
    there = (weight != 0).float()
    values = values.float() if spikes else torch.ones_like(values, dtype=torch.float32)
    _add(found, _response(layer, there, values), rows, spikes)


def _add(found: Operations, response: Tensor, rows: int, spikes: bool) -> None:
    """Add the operations of all rows, ``[rows, ...]``, to those for one example."""
    total = float(response.double().abs().sum()) / rows
    if spikes:
        found.synaptic_operations = (found.synaptic_operations or 0.0) + total
    else:
        found.multiply_accumulates += total


def _response(layer: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return what a layer with another weight, and without a bias, makes of its inputs."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(inputs, weight)
    if isinstance(layer, LAYERS):  # also where the layer's weight is a parametrisation
        return layer._conv_forward(inputs, weight, None)  # type: ignore[operator]
    return respond(layer, weight, inputs)


def _event_driven(network: EventNetwork, inputs: Tensor) -> Operations:
    """Count from the spike times: the layers themselves are called on traces of single spikes."""
    found, rows = Operations(), len(inputs)
    encoded = network.encode(inputs, generator(0, "forward", device=inputs.device))
    first = network.spikes_into(network.sites[0].modules[0])
    counts = [(encoded < network.membrane.duration).sum(-1) if first else encoded]
    counts += [times.isfinite().sum(-1) for times in network.spike_times(inputs).values()]
    layers = [network.get_submodule(site.modules[0]) for site in network.sites]
    for place, (layer, values) in enumerate(zip(layers, counts, strict=True)):
        count(found, layer, values, rows, first or place > 0)
    return found


def _fires(part: nn.Module) -> bool:
    """Return whether a module is a population that passes on spikes."""
    snntorch = sys.modules.get("snntorch")
    if snntorch is not None and isinstance(part, snntorch.SpikingNeuron):
        return True
    if isinstance(part, Population):
        return part.neuron.spiking
    model = getattr(part, "model", None)  # of a population of Brian2's
    output = "spikes" if model is None else model.recipe.output
    return isinstance(part, SteppedPopulation) and bool(output == "spikes")


def peak_memory() -> int | None:
    """Return the most bytes that the process has occupied so far; None where nobody counts.

    Why not ``getrusage`` on Linux: there the peak of the process that started this one counts too.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
