"""A rule on a small network: what the check of learning rules looks at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biograd import networks
from biograd.contracts import Plan, Transport
from biograd.engine import attach
from biograd.errors import CheckFailed
from biograd.estimators import Estimator
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, construct

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "rate": {"network": {"hidden": (10, 8), "activation": "tanh", "dtype": "float64"}},
    "spiking": {
        "network": {"kind": "spiking", "hidden": (10, 8), "gain": 2.0, "dtype": "float64"},
        "neuron": {"resistance": 8.0},
        "encoding": {"duration_ms": 8.0},
    },
}
"""Recipes of the networks on which rules are tried."""
FEATURES, CLASSES, ROWS = 6, 3, 24
RATE = 1e-2
"""Learning rate of Adam."""
SEEDS = (0, 1, 2)
"""Losses are means over these: a rule that draws noise may be unlucky once."""
DRAWS = 8
"""Steps without an update whose gradients are added up."""


class SmallTraining:
    """A rule on a small network, and the same 24 examples in every step."""

    def __init__(
        self, make: Callable[[], Estimator], kind: str, seed: int = 0, narrow: bool = False
    ) -> None:
        recipe = construct(ModelRecipe, NETWORKS[kind], "check")
        if narrow:
            network = dataclasses.replace(recipe.network, hidden=recipe.network.hidden[:1])
            recipe = dataclasses.replace(recipe, network=network)
        self.network = networks.build(recipe, FEATURES, CLASSES, seed)
        stream = generator(0, "check")
        self.targets = torch.arange(ROWS) % CLASSES
        centres = torch.rand(CLASSES, FEATURES, generator=stream, dtype=torch.float64)
        spread = torch.rand(ROWS, FEATURES, generator=stream, dtype=torch.float64)
        self.inputs = 0.8 * centres[self.targets] + 0.5 * spread
        self.engine = attach(self.network, make(), seed=seed)

    def restart(self) -> None:
        """Begin with a new optimiser."""
        self.optimiser = torch.optim.Adam(self.engine.parameters(), RATE)

    def prepare(self) -> SmallTraining:
        """Prepare the engine, and return itself."""
        self.engine.prepare(self.inputs, self.targets)
        self.restart()
        return self

    def gradients(self, rows: Sequence[int] = range(ROWS)) -> dict[str, Tensor]:
        """Run one step on these examples and return what it found, without an update."""
        self.optimiser.zero_grad()
        index = torch.tensor([*rows])
        try:
            result = self.engine(self.inputs[index], self.targets[index], index)
            result.backward()
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise CheckFailed(f"a step changes in place what it is given: {error}") from error
        self.passes = result.passes
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.network.named_parameters()
        }

    def hidden(self) -> list[nn.Parameter]:
        """Return all parameters but the readout's."""
        readout = self.engine.substrate.sites[-1].modules
        layers = [self.network.get_submodule(name) for name in readout]
        others = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return [p for p in self.network.parameters() if id(p) not in others]

    def weights(self) -> list[Tensor]:
        """Return the weights of the layers from the first to the last, without a graph."""
        layers = [name for site in self.engine.substrate.sites for name in site.modules]
        found = (self.network.get_submodule(name).get_parameter("weight") for name in layers)
        return [weight.detach() for weight in found]

    @torch.no_grad()
    def make_positive(self) -> None:
        """Make the weights behind the first hidden layer excite."""
        for weight in self.weights()[1:]:
            weight.abs_()

    def trained(self) -> list[str]:
        """Return the names of the weights that the rule credits: hidden ones, if it does those."""
        hidden = {id(parameter) for parameter in self.hidden()}
        hides = self.engine.estimator.learns_hidden
        named = self.network.named_parameters()
        return [name for name, p in named if p.dim() > 1 and (id(p) in hidden) == hides]

    def train(self, steps: int, sign: int = 1, held: bool = False) -> None:
        """Follow the rule, or its opposite; ``held``: with hidden layers alone."""
        hidden = self.hidden()
        for _ in range(steps):
            self.gradients()
            for parameter in self.network.parameters():
                if held and not any(parameter is other for other in hidden):
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad *= sign
            self.optimiser.step()
            self.engine.update()

    def followed(self) -> float:
        """Return what the hidden layers shall lower, a mean over some steps without an update."""
        if not self.engine.estimator.objective:
            return self.loss()
        values = []
        for _ in range(DRAWS):
            self.gradients()
            assert self.engine._last is not None
            values.append(self.engine.estimator.followed(*self.engine._last))
        found = [value for value in values if value is not None]
        return float(torch.stack(found).mean()) if found else math.nan

    @torch.no_grad()
    def loss(self) -> float:
        """Return the loss as it is now."""
        self.network.eval()
        found = nn.functional.cross_entropy(self.network(self.inputs), self.targets)
        self.network.train()
        return float(found)

    def transports(self) -> list[Transport]:
        """Return how the plans of one more step let credit pass."""
        substrate, found = self.engine.substrate, list[Transport]()
        run = substrate.run

        def watched(plan: Plan, *given: Any, **more: Any) -> Any:
            found.append(plan.transport)
            return run(plan, *given, **more)

        substrate.run = watched  # type: ignore[method-assign]
        try:
            self.gradients()
        finally:
            del substrate.run  # the class has its own
        return found

    def alignment(self) -> float:
        """Return the mean cosine of feedback and forward weights; 1 if there are none.

        A derivative of spikes of its own that is negative counts as -1.
        """
        found = []
        for transport in self.transports():
            for name, fed_back in transport.feedback.items():
                forward = self.network.get_submodule(name).get_parameter("weight").detach()
                found.append(nn.functional.cosine_similarity(
                    fed_back.detach().flatten(), forward.flatten(), dim=0))  # fmt: skip
            if transport.derivative is not None:
                distance = torch.linspace(-2, 2, 41, dtype=torch.float64)
                found.append(transport.derivative(distance).sum().sign())
        return float(torch.stack(found).mean()) if found else 1.0

    def saved(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of network and engine."""
        parts = {"network": self.network.state_dict(), "engine": self.engine.state()}
        return {name: {k: v.clone() for k, v in part.items()} for name, part in parts.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what ``saved`` returned."""
        self.network.load_state_dict(dict(state["network"]))
        self.engine.load_state(state["engine"])
        self.restart()
