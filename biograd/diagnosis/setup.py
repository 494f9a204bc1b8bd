"""What all parts of a probe share: the engine, fixed examples, and the parameters by site."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from biograd.contracts import Plan, Trace
from biograd.engine import Engine
from biograd.randomness import generator
from biograd.substrate.finiteness import check_given, outside


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """The parameters of one site, as places in the list of all that are trained."""

    name: str
    kind: Literal["hidden", "readout", "other"]
    places: tuple[int, ...]
    layer: nn.Module | None = None
    chosen: Tensor | None = None
    """Entries that are compared, of all entries in a row; None: all."""

    def vector(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the entries that are compared, as one vector."""
        flat = torch.cat([gradients[place].detach().reshape(-1) for place in self.places])
        return flat if self.chosen is None else flat[self.chosen]


class Setup:
    """An engine and the examples at which it is probed, encoded alike every time."""

    def __init__(
        self, engine: Engine, inputs: Tensor, targets: Tensor, index: Tensor | None
    ) -> None:
        engine.prepare(inputs, targets)
        self.engine, self.network = engine, engine.network
        check_given(self.network, outside(self.network, ()), inputs, engine.step)
        self.inputs, self.targets, self.index = inputs, targets, index
        self.device = engine.streams["noise"].device
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.spiking = bool(getattr(self.network, "spiking", False))
        self.groups = self._find_groups()
        self.hidden = [group.name for group in self.groups if group.kind == "hidden"]

    def _find_groups(self) -> list[ParameterGroup]:
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        sites, groups = self.engine.substrate.sites, []
        for site in sites:
            layers = [self.network.get_submodule(name) for name in site.modules]
            found = tuple(
                places.pop(id(parameter))
                for layer in layers
                for parameter in layer.parameters()
                if id(parameter) in places  # a tied weight belongs to the first of its layers
            )
            kind: Literal["hidden", "readout"] = "readout" if site is sites[-1] else "hidden"
            if found:
                groups.append(ParameterGroup(site.name, kind, found, layers[0]))
        if places:
            groups.append(ParameterGroup("elsewhere", "other", tuple(places.values())))
        return groups

    def stream(self, name: str) -> torch.Generator:
        """Return a fresh random stream of the probe's own."""
        return generator(self.engine.seed, "probe", name, device=self.device)

    def run(self, plan: Plan) -> Trace:
        """Run one plan on the examples, encoded as in every draw."""
        engine = self.engine
        if engine.decorrelate is not None:
            engine.decorrelate.begin()
        encoded = engine.substrate.encode(self.inputs, self.stream("encoding"))
        stream = self.stream("dropout")
        return engine.substrate.run(plan, encoded, self.targets, engine.objective, stream)

    def weights(self, group: ParameterGroup) -> list[Tensor]:
        """Return a group's weights without its biases; these if it has nothing else."""
        found = [self.parameters[place].detach() for place in group.places]
        return [value for value in found if value.dim() > 1] or found

    def weight_norm(self, group: ParameterGroup) -> float:
        """Return the norm of a group's weights."""
        return math.sqrt(sum(float(v.double().square().sum()) for v in self.weights(group)))


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients by all parameters, zero where there is none; ``.grad`` stays."""
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(p) if g is None else g for g, p in pairs]
