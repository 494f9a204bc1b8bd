"""What cannot be a step is refused in one line before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import biograd
from biograd.errors import BiogradError, CapabilityError
from biograd.estimators import ESTIMATORS, make

X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
Y, INDEX = torch.arange(8) % 3, torch.arange(8)


class Bent(nn.Module):
    """Two layers whose outputs are given another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(6, 5), nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.b(torch.tanh(self.a(x))))


class Accumulate(torch.autograd.Function):
    """A running sum, which mixes units and whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.cumsum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(1).cumsum(1).flip(1)


class Sums(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = Accumulate.apply(values)
        return found


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("rule", [n for n, r in ESTIMATORS.items() if r.needs & {
    "jvp_site", "jvp_parameter"}])  # fmt: skip
def test_missing_jvp_is_named_with_its_module(rule: str) -> None:
    network = mlp()
    network[1] = Sums()
    engine = biograd.attach(network, make(rule))
    with pytest.raises(CapabilityError, match=r"differentiates forward, and 1 \(Sums\) cannot"):
        engine.prepare(X, Y)
    biograd.attach(mlp(), make(rule)).prepare(X, Y)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda o: (o, None), "returned tuple: .* returns that part alone"),
        (lambda o: {"outputs": o}, "returned dict"),
        (lambda o: o.sum(), r"returned outputs \[\] for 8 rows"),
        (lambda o: o.expand(4, 8, 3), r"not the steps: .*Outputs\(time_first=True\)"),
        (lambda o: o.reshape(24), r"returned outputs \[24\] for 8 rows"),
    ],
)
def test_outputs_of_another_form(form: Callable[[Tensor], Any], message: str) -> None:
    for rule in ("backprop", "weak", "feedback_alignment"):
        with pytest.raises(CapabilityError, match=message):
            biograd.attach(Bent(form), make(rule))(X, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "the batch is empty"),
        (X, Y[:5], "8 inputs, .* for 5 targets"),
        (X.numpy(), Y, "inputs must be a tensor .* not ndarray"),
        (X, Y.tolist(), "targets must be a tensor .* not list"),
        (X[:, :4], Y, r"cannot take a step: 0 \(Linear\): .*\(inputs \[8, 4\]"),
        (X.double(), Y, r"cannot take a step: 0 \(Linear\): .*torch\.float64"),
        (X, Y + 7, r"class 7, known are 0 to 2"),
        (X, Y[:, None], r"targets \[8, 1\] are no classes for outputs"),
    ],
)
def test_batch_that_cannot_be_taken(x: Any, y: Any, message: str) -> None:
    with pytest.raises(BiogradError, match=message) as found:
        biograd.attach(mlp(), biograd.Backpropagation())(x, y)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_whole_targets_of_any_type(kind: torch.dtype) -> None:
    for rule in ("backprop", "forward_forward", "synthetic_gradient", "target_projection"):
        losses = [
            float(biograd.attach(mlp(), make(rule))(X, y, INDEX).loss) for y in (Y, Y.to(kind))
        ]
        assert losses[0] == losses[1]


def test_replaced_layer_is_named() -> None:
    engine = biograd.attach(mlp(), biograd.Backpropagation())
    engine(X, Y)
    engine.network[2] = nn.Linear(5, 3)  # type: ignore[operator]
    with pytest.raises(CapabilityError, match="2 was replaced after attach"):
        engine(X, Y)


def test_moved_network_is_refused() -> None:
    engine = biograd.attach(mlp(), biograd.Backpropagation())
    engine.network.to("meta")
    with pytest.raises(CapabilityError, match="moved from cpu to meta after attach"):
        engine(X, Y)


@pytest.mark.parametrize("decorrelated", [False, True])
@pytest.mark.parametrize("rule", ESTIMATORS)
def test_double_after_attach(rule: str, decorrelated: bool) -> None:
    given = {"decorrelate": biograd.Decorrelation("kappa", rate=1e-3)} if decorrelated else {}
    engine = biograd.attach(mlp(), make(rule), **given)  # type: ignore[arg-type]
    engine(X, Y, INDEX).backward()
    engine.update()
    engine.network.zero_grad()
    engine.network.double()
    for _ in range(2):
        engine(X.double(), Y, INDEX).backward()
        engine.update()
    assert all(p.grad is None or p.grad.dtype is torch.float64 for p in engine.network.parameters())
