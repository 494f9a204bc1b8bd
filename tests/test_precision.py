"""Rules on networks of 16 bits, in double precision and inside of torch.autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, make
from biograd.local import LocalLosses

X = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
MANY = {
    "weak": {"copies": 65},
    "node_perturbation": {"copies": 65},
    "likelihood_ratio": {"copies": 65},
    "weight_perturbation": {"copies": 129, "sigma": 0.05},
}
TYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST = {"float64": 0.999999}
"""Least cosine with the gradient in float32, else 0.995."""
COARSE = {("predictive_coding", "bfloat16"), ("predictive_coding", "autocast")}


@pytest.fixture(autouse=True)
def _same_draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw in float32 whatever type is asked for, so that all types see the same noise."""
    for name in ("randn", "rand"):
        monkeypatch.setattr(torch, name, _in_float32(getattr(torch, name)))
    yield


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*shape: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        found = function(*shape, dtype=torch.float32, **options)
        return found if dtype is None else found.to(dtype)

    return drawn


def gradient(
    rule: biograd.Estimator, kind: str, cache: bool = True, steps: int = 2, **options: Any
) -> Tensor:
    """Return the network's gradient in the last step, the weights as they were."""
    torch.manual_seed(0)
    hidden = (nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh())
    network = nn.Sequential(*hidden, nn.Linear(10, 3)).to(TYPES.get(kind, torch.float32))
    x = X.to(next(network.parameters()).dtype)
    engine = biograd.attach(network, rule, seed=1, **options)
    for _ in range(steps):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, kind == "autocast", cache_enabled=cache):
            result = engine(x, Y, torch.arange(16))
        result.backward()
        engine.update()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([part.flatten().double() for part in found])


def check_alike(found: Tensor, expected: Tensor, least: float) -> None:
    assert torch.cosine_similarity(found, expected, 0) > least
    assert 0.95 < found.norm() / expected.norm() < 1.05


@pytest.mark.parametrize("kind", [*TYPES, "autocast"])
@pytest.mark.parametrize("rule", ESTIMATORS)
def test_gradient_is_that_of_float32(rule: str, kind: str) -> None:
    if (rule, kind) in COARSE:
        with pytest.raises(CapabilityError, match=r"site 0: stiffness 100 .*bfloat16 rounds away"):
            gradient(make(rule), kind)
        return
    settings = MANY.get(rule, {})
    expected = gradient(make(rule, settings), "float32")
    check_alike(gradient(make(rule, settings), kind), expected, LEAST.get(kind, 0.995))


def test_weight_perturbation_knows_no_stale_casts() -> None:
    rule = MANY["weight_perturbation"]
    kept = gradient(make("weight_perturbation", rule), "autocast", cache=True)
    check_alike(kept, gradient(make("weight_perturbation", rule), "autocast", cache=False), 0.9999)


def test_stale_casts_hide_a_change_in_place() -> None:
    """The negative control: what the engine forgets, torch would keep."""
    layer = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
@pytest.mark.parametrize("method", ["ridge", "orthogonal", "least_squares", "central_difference"])
def test_linear_algebra_is_in_float32(method: str, kind: str) -> None:
    rule = {"method": method, "copies": 65 if method == "least_squares" else 13}
    expected = gradient(make("weak", rule), "float32")
    check_alike(gradient(make("weak", rule), kind), expected, 0.99)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
@pytest.mark.parametrize("tangents", ["orthogonal", "local", "ntk"])
def test_tangents_are_in_float32(tangents: str, kind: str) -> None:
    rule = {"tangents": tangents}
    expected = gradient(make("forward_gradient_activity", rule), "float32")
    check_alike(gradient(make("forward_gradient_activity", rule), kind), expected, 0.99)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
@pytest.mark.parametrize("rule", ["backprop", "weak", "weight_perturbation"])
def test_local_losses_are_in_float32(rule: str, kind: str) -> None:
    settings = MANY.get(rule, {})
    expected = gradient(make(rule, settings), "float32", local=LocalLosses())
    found = gradient(make(rule, settings), kind, local=LocalLosses())
    check_alike(found, expected, 0.995)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["kappa", "copi", "scaled", "foldiak"])
def test_decorrelation_learns_in_float32(name: str, kind: str) -> None:
    """A matrix of 16 bits would round small updates away."""
    found = []
    for one in ("float32", kind):
        decorrelation = biograd.Decorrelation(name, rate=1e-3, centre=True)
        gradient(make("backprop"), one, steps=4, decorrelate=decorrelation)
        matrix = decorrelation.matrices["2"].detach()[0]
        found.append(matrix - torch.eye(len(matrix)))
    assert found[1].dtype is torch.float32
    check_alike(found[1].flatten(), found[0].flatten(), 0.99)
