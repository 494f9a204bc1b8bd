"""Copies of an engine train on as it would, and by themselves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd.engine import Engine
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, make
from biograd.local import LocalLosses

X = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
Y, INDEX = torch.arange(16) % 3, torch.arange(16)
PARTS: dict[str, Callable[[], dict[str, object]]] = {
    "alone": dict,
    "decorrelated": lambda: {"decorrelate": biograd.Decorrelation("kappa", rate=1e-3)},
    "local": lambda: {"local": LocalLosses()},
}
WAYS: dict[str, Callable[[Engine], Engine]] = {
    "copied": copy.deepcopy,
    "pickled": lambda engine: pickle.loads(pickle.dumps(engine)),
}


def trained(engine: Engine, steps: int = 2) -> Tensor:
    optimiser = torch.optim.SGD(engine.parameters(), lr=0.1)
    for _ in range(steps):
        engine(X, Y, INDEX).backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
    return weights(engine)


def weights(engine: Engine) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in engine.network.parameters()])


def attached(rule: str, parts: str = "alone") -> Engine:
    torch.manual_seed(0)
    hidden = (nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 10), nn.Tanh())
    network = nn.Sequential(*hidden, nn.Linear(10, 3))
    engine = biograd.attach(network, make(rule), seed=2, **PARTS[parts]())  # type: ignore[arg-type]
    engine.prepare(X, Y)
    return engine


CASES = [(rule, parts) for rule in ESTIMATORS for parts in ("alone", "decorrelated")]
CASES += [(rule, "local") for rule in ("backprop", "weak", "forward_gradient_activity")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rule", "parts"), CASES)
def test_copy_trains_on_as_the_engine(rule: str, parts: str, way: str) -> None:
    engine = attached(rule, parts)
    trained(engine)
    twin, before = WAYS[way](engine), weights(engine)
    found = trained(twin)
    assert torch.equal(weights(engine), before) and not torch.equal(found, before)
    assert torch.equal(trained(engine), found)


@pytest.mark.parametrize("way", WAYS)
def test_copy_drops_the_graph_of_the_last_step(way: str) -> None:
    engine = attached("backprop")
    engine(X, Y).backward()
    twin = WAYS[way](engine)
    assert engine._last is not None and twin._last is None
    assert twin.detach() is twin.network and not twin.network[0]._forward_hooks  # type: ignore[index]
    assert engine.network[0]._forward_hooks  # type: ignore[index]


def test_copy_of_the_network_alone_has_no_engine() -> None:
    engine = attached("backprop")
    trained(engine)
    twin = copy.deepcopy(engine.network)
    seen = engine.substrate.sites  # a pass of the copy leaves the engine as it is
    twin.eval()
    twin(X)
    assert engine.substrate.sites is seen and not engine.substrate.recording


def test_state_of_the_last_graph_is_named() -> None:
    class Memory(nn.Module):
        kept: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.kept = torch.tanh(x)
            return self.kept

    network = nn.Sequential(nn.Linear(6, 5), Memory(), nn.Linear(5, 3))
    engine = biograd.attach(network, biograd.Backpropagation())
    engine(X, Y)
    with pytest.raises(CapabilityError, match=r"copied: 1\.kept holds a tensor of the last"):
        copy.deepcopy(engine)
