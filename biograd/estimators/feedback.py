"""What the feedback rules share: a weight beside each layer's own, through which credit passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from biograd.contracts import Plan, Round, Trace, Transport
from biograd.contracts.plan import module_key
from biograd.errors import CapabilityError
from biograd.estimators.estimator import Estimator
from biograd.substrate.network import SynapticLayer


class Buffers(nn.Module):
    """Tensors by the name of a layer or site, saved with every checkpoint and never trained."""

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(module_key(name))

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.register_buffer(module_key(name), value)


class Feedback(Estimator):
    """Send credit to a layer's input through a feedback weight in place of the layer's own.

    ``delta_l = phi'(z_l) * B_{l+1}^T delta_{l+1}``: in a layer of whatever kind, a weight ``B`` of
    the shape of ``W`` stands in for ``W`` when credit passes to the layer's input.  The layer's own
    gradient, and what lies between the layers, is differentiated as usual.  Every layer has one,
    recurrent layers and the readout too, but the first, from whose input no credit is wanted.
    Layers that share a weight share the feedback weight, the first layer then, too.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    may_equal = True  # feedback weights may have been made the layers' own
    divides = "examples"
    passes = "1 forward, 1 backward"
    builds = True

    def __init__(self) -> None:
        super().__init__()
        self.keepers: dict[str, str] = {}
        """Name of a layer to the one under whose name its feedback weight is kept."""

    def build(self, trace: Trace, round: Round) -> None:
        """Make the feedback weights, one for every weight.

        Raises:
            CapabilityError: a layer has no weight that feedback could stand in for.
        """
        fed_back = {id(weight_of(name, round)) for name in layers_with_credit(trace, round)}
        owners: dict[int, str] = {}
        for name, layer in round.layers.items():
            weight = layer._parameters.get("weight")
            if weight is None or id(weight) not in fed_back:
                continue
            self.keepers[name] = owners.setdefault(id(weight), name)
            if self.keepers[name] == name:
                self.make(name, weight.detach(), round)

    def make(self, name: str, weight: Tensor, round: Round) -> None:
        """Make what is kept for one weight."""
        raise NotImplementedError

    def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
        """Return the feedback weight that is kept under the name of a layer."""
        raise NotImplementedError

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose credit takes the feedback weights."""
        made = {name: self.feedback(name, weight, round) for name, weight in self.kept(round)}
        weights = {name: made[keeper] for name, keeper in self.keepers.items()}
        return (Plan(transport=Transport(feedback=weights)),)

    def kept(self, round: Round) -> Iterator[tuple[str, Tensor]]:
        """Yield the names under which feedback weights are kept, each with the forward weight."""
        for name in dict.fromkeys(self.keepers.values()):
            yield name, weight_of(name, round)


def layers_with_credit(trace: Trace, round: Round) -> Iterator[str]:
    """Yield the layers to whose input credit passes: all but the one that sees the data alone.

    A first layer that sees its own output in a later call is not left out.
    """
    first = True
    for site in (*round.hidden, round.readout):
        for name, visits in zip(round.site_layers[site], trace.sites[site].visits, strict=True):
            if not first or (len(visits.outputs) > 1 and visits.credited):
                yield name
            first = False


def weight_of(name: str, round: Round) -> nn.Parameter:
    """Return the weight of a layer.

    Raises:
        CapabilityError: it has none.
    """
    layer = round.layers[name]
    weight = layer._parameters.get("weight")
    if weight is None or (weight.dim() < 2 and not isinstance(layer, SynapticLayer)):
        raise CapabilityError(
            f"{name} ({type(layer).__name__}) has no weight matrix of its own for which feedback "
            "could stand in: name linear or convolutional layers alone, attach(..., sites=[...]), "
            "or take biograd.DirectFeedback"
        )
    return weight


def size_of(weight: Tensor) -> float:
    """Return the root mean square of a weight; that of a usual draw if the weight is zero.

    Connections that do not exist, whose weight is zero, do not count: no feedback passes there.
    """
    there = weight[weight != 0] if bool((weight == 0).any()) else weight
    size = float(there.square().mean().sqrt()) if there.numel() else 0.0
    return size or 1 / math.sqrt(weight[0].numel())


def normal(shape: Sequence[int], round: Round) -> Tensor:
    """Return standard normal numbers from the round's stream."""
    device = round.generator.device
    draw = torch.randn(tuple(shape), generator=round.generator, device=device, dtype=round.dtype)
    return draw.to(round.device)
