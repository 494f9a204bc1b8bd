"""Block coordinate descent: weights and hidden values take their best values in turn.

Each of the ``n`` examples has an activity ``V_k`` and a current ``U_k`` of its own behind each of
the ``N`` layers; ``V_0`` are the inputs, ``Y`` the one-hot labels.  A sweep minimises ::

    |V_N - Y|^2 / 2 + sum_k [ gamma/2 |V_k - s_k(U_k)|^2 + rho/2 |U_k - V_{k-1} W_k' - b_k|^2 ]

(``s``: ReLU, at the readout the identity) by one block after another from the outputs down,
``V_k, U_k, (W_k, b_k)``.  ``V_N``, the hidden ``U_k`` and all ``(W_k, b_k)`` are held back by
``alpha/2 |block - what it was|^2``.  Every update is the exact minimum, so that the objective never
rises and there is no learning rate.

Why this is no estimator: it has no forward pass to plan and no gradient to give to an optimiser;
it solves for the weights with all examples at once.

Source: Zeng, Lau, Lin & Yao 2019, Global Convergence of Block Coordinate Descent in Deep Learning,
arXiv 1803.00225.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Objective, Plan
from biograd.errors import CapabilityError
from biograd.randomness import generator
from biograd.recipes import Positive, validate
from biograd.substrate.torch_substrate import TorchSubstrate


@dataclasses.dataclass(frozen=True)
class Penalties:
    """What holds the blocks together.

    Attributes:
        activation: ``gamma``, on ``V - s(U)``.
        current: ``rho``, on ``U - V W' - b``.
        inertia: ``alpha``, on a block's change; above zero a layer's equations have a solution.
    """

    activation: Positive = 1.0
    current: Positive = 1.0
    inertia: Positive = 1.0

    def __post_init__(self) -> None:
        validate(Penalties, dataclasses.asdict(self))


@dataclasses.dataclass
class Link:
    """A layer, and the currents and activities ``[n, units]`` behind it."""

    layer: nn.Linear
    current: Tensor
    activity: Tensor


class BlockCoordinate:
    """Solves for the weights of a chain of dense layers with ReLU between them.

    Args:
        network: any module whose layers are such a chain; its weights are changed in place.
        inputs: all examples, ``[n, ...]``.
        targets: their class numbers ``[n]``, or vectors ``[n, outputs]``.
        penalties: the weights of the terms.

    Raises:
        CapabilityError: the network is not such a chain.

    >>> import biograd
    >>> network = biograd.build("ann", inputs=4, classes=3)
    >>> inputs, targets = torch.rand(30, 4), torch.arange(30) % 3
    >>> descent = BlockCoordinate(network, inputs, targets)
    >>> before = descent.objective(); descent.sweep(); descent.objective() < before
    True
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        penalties: Penalties = Penalties(),
    ) -> None:
        self.penalties = penalties
        self.inputs, self.links = chain(network, inputs, targets)
        outputs = self.links[-1].current
        if targets.dim() < outputs.dim():
            targets = functional.one_hot(targets, outputs.shape[1])
        self.targets = targets.to(outputs)

    @torch.no_grad()
    def sweep(self) -> None:
        """Update every block once, from the outputs down."""
        last, by = self.links[-1], self.penalties
        last.activity = output_activity(self.targets, last.current, last.activity, by)
        last.current = output_current(last.activity, self.response(-1), by)
        self._solve(-1)
        for place in reversed(range(len(self.links) - 1)):
            here, above = self.links[place], self.links[place + 1]
            here.activity = hidden_activity(here.current, above.current, above.layer, by)
            here.current = hidden_current(here.activity, self.response(place), here.current, by)
            self._solve(place)

    @torch.no_grad()
    def objective(self) -> float:
        """Return what a sweep minimises, without the inertia."""
        total = 0.5 * (self.links[-1].activity - self.targets).square().sum()
        for place, link in enumerate(self.links):
            after = link.current if link is self.links[-1] else link.current.relu()
            apart = (link.activity - after).square().sum()
            missed = (link.current - self.response(place)).square().sum()
            total += 0.5 * (self.penalties.activation * apart + self.penalties.current * missed)
        return float(total)

    def before(self, place: int) -> Tensor:
        """Return what a layer sees, ``V_{k-1}``, ``[n, units]``."""
        place %= len(self.links)
        return self.links[place - 1].activity if place else self.inputs

    def response(self, place: int) -> Tensor:
        """Return what a layer answers, ``V_{k-1} W_k' + b_k``, ``[n, units]``."""
        layer = self.links[place].layer
        return functional.linear(self.before(place), layer.weight, layer.bias)

    def _solve(self, place: int) -> None:
        link = self.links[place]
        weight, bias = solved(link.layer, self.before(place), link.current, self.penalties)
        link.layer.weight.copy_(weight)
        if bias is not None:
            link.layer.bias.copy_(bias)


def output_activity(targets: Tensor, current: Tensor, old: Tensor, by: Penalties) -> Tensor:
    """Return ``V_N = (Y + gamma U_N + alpha V_N) / (1 + gamma + alpha)``."""
    total = targets + by.activation * current + by.inertia * old
    return total / (1 + by.activation + by.inertia)


def output_current(activity: Tensor, response: Tensor, by: Penalties) -> Tensor:
    """Return ``U_N = (gamma V_N + rho (V_{N-1} W_N' + b)) / (gamma + rho)``."""
    total = by.activation * activity + by.current * response
    return total / (by.activation + by.current)


def hidden_activity(current: Tensor, above: Tensor, layer: nn.Linear, by: Penalties) -> Tensor:
    """Return ``V_k = (rho W'W + gamma)^-1 (rho W' (U_{k+1} - b) + gamma relu(U_k))``, ``[n, d]``.

    Args:
        current: ``U_k``.
        above: ``U_{k+1}``, behind ``layer``.
    """
    weight = layer.weight
    wanted = above if layer.bias is None else above - layer.bias
    right = by.current * wanted @ weight + by.activation * current.relu()
    system = by.current * weight.T @ weight
    system.diagonal().add_(by.activation)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system.double()))
    return right @ inverse.to(right.dtype)


def hidden_current(activity: Tensor, response: Tensor, old: Tensor, by: Penalties) -> Tensor:
    """Return the ``U`` that minimises ``gamma/2 (V - relu(U))^2 + (rho + alpha)/2 (U - c)^2``.

    ``c`` is the mean of the layer's response and the old ``U``, weighted by ``rho`` and ``alpha``.
    The minimum is the better of the two that lie on either side of zero.
    """
    gamma, weight = by.activation, by.current + by.inertia
    centre = (by.current * response + by.inertia * old) / weight
    below = centre.clamp(max=0)
    above = ((gamma * activity + weight * centre) / (gamma + weight)).clamp(min=0)
    cost_below = gamma * activity.square() + weight * (below - centre).square()
    cost_above = gamma * (activity - above).square() + weight * (above - centre).square()
    return torch.where(cost_above <= cost_below, above, below)


def solved(
    layer: nn.Linear, inputs: Tensor, current: Tensor, by: Penalties
) -> tuple[Tensor, Tensor | None]:
    """Return ``[W b] = (alpha [W b] + rho U' [V 1]) (alpha + rho [V 1]' [V 1])^-1``."""
    old = layer.weight
    if layer.bias is not None:
        inputs = torch.cat((inputs, torch.ones_like(inputs[:, :1])), 1)
        old = torch.cat((old, layer.bias[:, None]), 1)
    wide = inputs.double()  # the rows are nearly dependent: float32 can lose definiteness
    system = by.current * wide.T @ wide
    system.diagonal().add_(by.inertia)
    right = by.current * wide.T @ current.double() + by.inertia * old.T.double()
    found = torch.cholesky_solve(right, torch.linalg.cholesky(system)).T.to(old.dtype)
    return (found[:, :-1], found[:, -1]) if layer.bias is not None else (found, None)


def chain(network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Link]]:
    """Return what the first layer sees, and the layers with their feed-forward values.

    Raises:
        CapabilityError: a layer is not dense or frozen, or does not see the ReLU of the one before.
    """
    substrate = TorchSubstrate(network)
    objective = Objective(lambda outputs, _targets: outputs.flatten(1).sum(1))
    stream = generator(0, "block_coordinate", device=inputs.device)
    try:
        encoded = substrate.encode(inputs, stream)
        trace = substrate.run(Plan(graph=False), encoded, targets, objective, stream)
    finally:
        substrate.close()
    links: list[Link] = []
    first = expected = None
    for site in substrate.sites:
        layer = network.get_submodule(site.modules[0])
        visits = trace.sites[site.name].visits[0]
        seen, found = visits.inputs[0], visits.outputs[0].detach()
        single = len(site.modules) == len(visits.outputs) == 1 and seen.dim() == 2
        if not (isinstance(layer, nn.Linear) and single and layer.weight.requires_grad):
            raise CapabilityError(
                f"block coordinate descent solves for dense layers, called once, not {site.name} "
                f"({type(layer).__name__})"
            )
        plain = functional.linear(seen, layer.weight, layer.bias)
        if not torch.allclose(plain, found) or not (expected is None or seen.equal(expected)):
            raise CapabilityError(
                f"block coordinate descent: {site.name} does not see the ReLU of the layer before "
                "it, and nothing else"
            )
        first = seen if first is None else first
        expected = found.relu()
        links.append(Link(layer, found, expected))
    assert first is not None
    if not trace.outputs.equal(links[-1].current):
        raise CapabilityError(
            f"block coordinate descent: the outputs are not those of {substrate.sites[-1].name}"
        )
    links[-1].activity = links[-1].current
    return first, links
