"""A user's snnTorch network layer by layer, against the loop of its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import biograd
from biograd.errors import CapabilityError
from biograd.process.switches import COMPILED
from biograd.simulators import gathered
from biograd.simulators.layer_by_layer import stepped

STEPS, ROWS, INPUTS, UNITS = 30, 4, 12, 40


class Precise(torch.autograd.Function):
    """A surrogate of a user's own; snnTorch's give spikes in single precision alone."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return gradients[0] / (10 * distance.abs() + 1) ** 2


def leaky(kind: Any = snn.Leaky, *constants: Any, **settings: Any) -> nn.Module:
    """Return neurons that keep their state themselves."""
    made: nn.Module = kind(*constants, spike_grad=Precise.apply, init_hidden=True, **settings)
    return made


CELLS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "leaky": (lambda: leaky(snn.Leaky, 0.9), True),
    "to zero": (lambda: leaky(snn.Leaky, 0.8, reset_mechanism="zero"), True),
    "no reset": (lambda: leaky(snn.Leaky, 0.8, reset_mechanism="none"), True),
    "each its own": (lambda: leaky(snn.Leaky, torch.linspace(0.5, 0.95, UNITS)), True),
    "threshold": (lambda: leaky(snn.Leaky, 0.9, threshold=0.6), True),
    "synaptic": (lambda: leaky(snn.Synaptic, 0.8, 0.9), True),
    "alpha": (lambda: leaky(snn.Alpha, 0.9, 0.8, reset_mechanism="none"), True),
    "alpha, to zero": (lambda: leaky(snn.Alpha, 0.9, 0.8), False),
    "learned": (lambda: leaky(snn.Leaky, 0.9, learn_beta=True), False),
    "graded": (lambda: leaky(snn.Leaky, 0.9, graded_spikes_factor=2.0), False),
    "no delay": (lambda: leaky(snn.Leaky, 0.9, reset_delay=False), False),
    "lapicque": (lambda: leaky(snn.Lapicque, 0.9), False),
}


@pytest.fixture(params=["0", "1"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "1":
        pytest.importorskip("numba")
    monkeypatch.setenv(COMPILED, request.param)
    monkeypatch.setattr(gathered, "LEAST", 0)
    return str(request.param)


def network(cell: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    last = leaky(snn.Leaky, 0.9, output=True)
    parts = (nn.Linear(INPUTS, UNITS), cell(), nn.Linear(UNITS, UNITS))
    behind = (leaky(snn.Leaky, 0.7), nn.Linear(UNITS, 3), last)
    net = nn.Sequential(*parts, *behind).double()
    with torch.no_grad():  # all populations fire
        for parameter in net.parameters():
            parameter.mul_(6 if parameter.dim() == 2 else 1)
    return net


def loop(net: nn.Module, inputs: Tensor, steps: int | None = None) -> Any:
    """Run as snnTorch's tutorials do."""
    utils.reset(net)
    course = inputs.unbind(0) if steps is None else [inputs] * steps
    found = [net(now) for now in course]
    if isinstance(found[0], tuple):
        return tuple(torch.stack(values) for values in zip(*found, strict=True))
    return torch.stack(found)


def gradients(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outputs)
    return list(torch.autograd.grad(total, leaves, allow_unused=True))


def agree(net: nn.Module, inputs: Tensor, steps: int | None = None) -> None:
    leaves = [inputs, *(p for p in net.parameters() if p.requires_grad)]
    found, expected = biograd.fuse(net)(inputs, steps), loop(net, inputs, steps)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for place, (one, other) in enumerate(pairs):
        assert other.any() and one.shape == other.shape
        if not place:
            assert torch.equal(one, other)  # spikes
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_of_the_loop(way: str, name: str, constant: bool) -> None:
    make, scanned = CELLS[name]
    assert (not stepped(make())) == scanned
    shape = (ROWS, INPUTS) if constant else (STEPS, ROWS, INPUTS)
    inputs = (3 * torch.rand(shape, dtype=torch.float64)).requires_grad_()
    agree(network(make), inputs, STEPS if constant else None)


def test_convolutions_and_poolings(way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(2)),
        leaky(snn.Leaky, 0.8),
        nn.Conv2d(6, 8, 3),
        nn.AvgPool2d(2),
        leaky(snn.Leaky, 0.8),
        nn.Flatten(),
        nn.Linear(32, 5),
        leaky(snn.Leaky, 0.8),
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    inputs = (8 * torch.rand(STEPS, ROWS, 1, 14, 14, dtype=torch.float64)).requires_grad_()
    agree(net, inputs)


def test_a_trial_begins_at_rest_and_weights_are_shared() -> None:
    net = network(CELLS["leaky"][0])
    fused, inputs = biograd.fuse(net), torch.rand(STEPS, ROWS, INPUTS, dtype=torch.float64)
    first = fused(inputs)[1]
    assert torch.equal(fused(inputs)[1], first)
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    assert not torch.equal(fused(inputs)[1], first)


def own_loop() -> nn.Module:
    class Looped(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    return Looped()


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "own forward": (own_loop(), "Looped"),
    "inside": (nn.Sequential(nn.Linear(2, 2), own_loop()), r"1 \(Looped\)"),
    "dropout": (nn.Sequential(nn.Linear(2, 2), nn.Dropout(), CELLS["leaky"][0]()), "Dropout"),
    "batch": (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "BatchNorm1d"),
    "by hand": (nn.Sequential(nn.Linear(2, 2), snn.Leaky(0.9)), "init_hidden"),
    "no neurons": (nn.Sequential(nn.Linear(2, 2)), "no neurons"),
    "no gain": (nn.Sequential(nn.Linear(2, 2), CELLS["learned"][0]()), "learns beta"),
    "flat rows": (nn.Sequential(nn.Flatten(0), CELLS["leaky"][0]()), "Flatten"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_layer_by_layer_is_named(name: str) -> None:
    module, words = REFUSED[name]
    with pytest.raises(CapabilityError, match=words):
        biograd.fuse(module)


def test_state_in_the_middle_is_named() -> None:
    cell = leaky(snn.Leaky, 0.9, output=True)
    with pytest.raises(CapabilityError, match="returns its state"):
        biograd.fuse(nn.Sequential(nn.Linear(2, 2), cell, nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", CELLS)
def test_the_state_that_a_network_keeps_stays(kind: str) -> None:
    first, last = CELLS[kind][0](), leaky(snn.Leaky, 0.9, output=True)
    network = nn.Sequential(
        nn.Linear(INPUTS, 8), leaky(snn.Leaky, 0.9), nn.Linear(8, UNITS), first,
        nn.Linear(UNITS, 3), last,
    )  # fmt: skip
    network(torch.rand(ROWS, INPUTS))
    before = {name: value.detach().clone() for name, value in network.named_buffers()}
    biograd.fuse(network)(torch.rand(STEPS, ROWS, INPUTS) * 3)
    after = dict(network.named_buffers())
    assert after.keys() == before.keys() and any("mem" in name for name in before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
