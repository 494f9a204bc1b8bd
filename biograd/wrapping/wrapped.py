"""The circuit of an existing network: outputs by population, and weights on their way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biograd.circuit.circuit import Circuit
from biograd.circuit.graph import Block, Listened, Projection
from biograd.circuit.readouts import Counts
from biograd.encoding import Encoding
from biograd.errors import CapabilityError
from biograd.wrapping.synapses import Way
from biograd.wrapping.write_back import Written, write


class Origins:
    """The synapses from which projections were read, by path; copies of a circuit share them.

    Another process does not have them.

    Attributes:
        lost: whether they stayed in another process.
    """

    def __init__(self, ways: Mapping[str, Way] | None = None, lost: bool = False) -> None:
        self.ways, self.lost = dict(ways or {}), lost

    def __deepcopy__(self, _memo: object) -> Origins:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Origins, (None, True)


class WrappedCircuit(Circuit):
    """A ``brian2.Network`` as a circuit; ``biograd.wrap`` makes it.

    Attributes:
        columns: what is read, ``"group.variable"``, to its columns of the outputs, where these are
            the groups' own; empty behind a linear readout.
        origins: the synapses of the user's.
    """

    def __init__(
        self,
        parts: Sequence[Block | Projection],
        reading: tuple[nn.Module, nn.Module | None, nn.Module | None],
        encoding: Encoding,
        heard: Sequence[Listened],
    ) -> None:
        readout, filtered, behind = reading
        super().__init__(parts, readout, encoding, filtered, behind, heard, "brian2")
        self.origins = Origins()
        self.columns: dict[str, slice] = {}
        if isinstance(readout, Counts):
            first = 0
            for one in self.heard:
                last = first + self.layer(one.path.removeprefix("cells.")).units
                self.columns[one.name] = slice(first, last)
                first = last

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return outputs ``[..., units]`` by what is read, ``"group.variable"``.

        Raises:
            CapabilityError: a linear readout has mixed them.
        """
        if not self.columns:
            raise CapabilityError(
                "split: the outputs are those of a linear readout: wrap the network without classes"
            )
        return {name: outputs[..., part] for name, part in self.columns.items()}

    @torch.no_grad()
    def courses(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return all groups' spikes and the variables that are read, ``[B, steps, units]``.

        By ``"group.variable"``; variables in SI units.
        """
        found: dict[str, Tensor] = {}
        for path, passed in self.activity(inputs).items():
            name = path.removeprefix("cells.")
            outputs = self.layer(name).model.outputs
            parts = passed.chunk(len(outputs), -1)
            found |= {f"{name}.{output}": part for output, part in zip(outputs, parts, strict=True)}
        return found

    def write_back(self, variables: Mapping[str, str] | None = None) -> Written:
        """Put the weights that were learned into the ``Synapses`` from which they came.

        Of each synapse whose weight is another than it was, the variable is set for which a spike
        adds what was learned; all others keep their values to the bit.  Nothing is written if
        something cannot be.

        Args:
            variables: by synapses, the variable that is to be set where ``on_pre`` has several.

        Raises:
            CapabilityError: no variable can hold a learned weight; the synapses and the reason.
            RecipeError: no such synapses or variable.
        """
        if self.origins.lost:
            raise CapabilityError(
                "write_back: this copy of the circuit came from another process, the network did "
                "not: load its state_dict into the circuit that wrap gave"
            )
        learned = {}
        for path, way in self.origins.ways.items():
            (one,) = (p for p in self.graph.projections if p.path == path)
            scale = self.layer(one.target.removeprefix("cells.")).model.scales[one.port]
            weight = self.get_parameter(f"{path}.weight").detach().cpu().double()
            learned[path] = (way, weight.numpy(), scale)
        return dataclasses.replace(write(learned, variables or {}), left=self._left())

    def _left(self) -> tuple[str, ...]:
        """Return what of the circuit has no place in the network."""
        entries = [p for p in self.graph.projections if p.path not in self.origins.ways]
        found = [one.path for one in entries if _learns(self.get_submodule(one.path))]
        found += ["readout"] if _learns(self.readout) else []
        for one in self.graph.blocks.values():
            found += [f"{one.path}: {name}" for name in getattr(one.cells, "factors", ())]
        return tuple(found)


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
