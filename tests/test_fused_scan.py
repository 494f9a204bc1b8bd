"""The compiled loops against the operations of torch, and against autograd through the steps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from biograd.neurons import NEURONS, Neuron, fused_scan
from biograd.neurons.coefficients import coefficients
from biograd.neurons.neuron import constants_of
from biograd.process import compiled
from biograd.process.switches import COMPILED
from biograd.simulators.population import Population

STEPS, UNITS, ROWS = 30, 40, 6
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reset to zero": {"reset": "zero"},
    "filtered": {"synaptic_time_constant_ms": 4.0},
    "drawn": {"time_constant_ms": "uniform(5, 20)"},
    "arctan": {"surrogate": "arctan"},
    "gaussian": {"surrogate": "gaussian"},
    "learned": {"trainable": {"time_constant_ms": (0.2, 5.0)}},
}


def cases() -> Iterator[Any]:
    """Yield every linear kind of neuron with the settings that it has."""
    for kind in ("leaky", "alpha", "adaptive_threshold", "adaptive_current", "integrator"):
        fields = {field.name for field in dataclasses.fields(NEURONS[kind])}
        for name, given in SETTINGS.items():
            if given.keys() <= fields:
                yield pytest.param(NEURONS[kind](**given), id=f"{kind}, {name}")


@pytest.fixture(autouse=True)
def compiler() -> None:
    pytest.importorskip("numba")


def made(neuron: Neuron, kind: torch.dtype) -> Population:
    torch.manual_seed(0)
    return Population(neuron, UNITS, STEPS, 1.0).to(kind)


def drive(kind: torch.dtype, constant: bool) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    shape = (ROWS, 1 if constant else STEPS, UNITS)
    return (6 * torch.rand(shape, generator=stream, dtype=kind)).requires_grad_()


def answer(
    population: Population, current: Tensor, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what is passed on, and the gradients by the current and what is learned."""
    monkeypatch.setenv(COMPILED, "1" if compiled else "0")
    passed = population(current)
    weights = torch.linspace(-1, 1, passed.numel(), dtype=passed.dtype).view_as(passed)
    leaves = [current, *population.parameters()]
    return passed.detach(), torch.autograd.grad((passed * weights).sum(), leaves)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("neuron", [*cases()])
def test_compiled_loops_are_the_operations_of_torch(
    neuron: Neuron, constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    population, current = made(neuron, torch.float64), drive(torch.float64, constant)
    found, ours = answer(population, current, monkeypatch, compiled=True)
    expected, theirs = answer(population, current, monkeypatch, compiled=False)
    assert expected.any()
    if neuron.spiking:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["leaky", "adaptive_current"])
def test_tangents_are_those_of_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    population, current = made(NEURONS[kind](), torch.float64), drive(torch.float64, False)
    moved = torch.randn_like(current)
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(COMPILED, switch)
        with forward_ad.dual_level():
            dual = population(forward_ad.make_dual(current.detach(), moved))
            found.append(forward_ad.unpack_dual(dual).tangent)
    assert found[0] is not None and found[0].any()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_windows_cut_credit_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    population, current = (
        made(NEURONS["adaptive_threshold"](), torch.float64),
        drive(torch.float64, False),
    )
    whole = answer(population, current, monkeypatch, compiled=True)[1][0]
    population.transport = dataclasses.replace(population.transport, window=7)
    cut = answer(population, current, monkeypatch, compiled=True)[1][0]
    torch.testing.assert_close(cut, answer(population, current, monkeypatch, False)[1][0])
    assert not torch.allclose(cut, whole)


def test_rounding_may_move_few_spikes_of_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    population, current = made(NEURONS["leaky"](), torch.float32), drive(torch.float32, False)
    found, ours = answer(population, current, monkeypatch, compiled=True)
    expected, theirs = answer(population, current, monkeypatch, compiled=False)
    assert (found != expected).double().mean() < 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_rows_are_the_same_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    population, current = made(NEURONS["leaky"](), torch.float64), drive(torch.float64, False)
    one = answer(population, current, monkeypatch, compiled=True)
    monkeypatch.setattr(compiled, "LEAST_A_THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    several = answer(population, current, monkeypatch, compiled=True)
    assert torch.equal(one[0], several[0]) and torch.equal(one[1][0], several[1][0])


def test_what_the_loops_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron = NEURONS["leaky"]()
    k = coefficients(neuron, constants_of(neuron, 1.0, {}))
    assert k is not None
    like = torch.zeros(2, 1, UNITS)
    monkeypatch.delenv(COMPILED, raising=False)
    assert fused_scan.serves(k, like, STEPS)
    assert not fused_scan.serves(k, like, 1)  # too little work
    assert not fused_scan.serves(k, like.half(), STEPS)
    assert not fused_scan.serves(k, like.to("meta"), STEPS)
    monkeypatch.setenv(COMPILED, "0")
    assert not fused_scan.serves(k, like, STEPS) and os.environ[COMPILED] == "0"


def test_a_batch_without_rows_has_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    population = made(NEURONS["leaky"](), torch.float64)
    current = drive(torch.float64, False)[:0].detach().requires_grad_()
    for fast in (True, False):
        passed, (found,) = answer(population, current, monkeypatch, fast)
        assert passed.shape == found.shape == (0, STEPS, UNITS)
