"""Recurrent populations in one scan, against the same trials step by step through autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import biograd
from biograd.contracts import Transport
from biograd.neurons import NEURONS, Leaky, Neuron
from biograd.process.switches import COMPILED
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.simulators import gathered
from biograd.simulators.population import Population

STEPS, UNITS, ROWS = 25, 41, 4
CELLS: dict[str, Neuron] = {
    "leaky": Leaky(resistance=8.0),
    "filtered, to zero": Leaky(resistance=8.0, reset="zero", synaptic_time_constant_ms=4.0),
    "learned": Leaky(resistance=8.0, trainable={"time_constant_ms": (0.2, 5.0)}),
    "drawn": Leaky(resistance=8.0, time_constant_ms="uniform(5, 20)"),
    "gaussian": Leaky(resistance=8.0, surrogate="gaussian"),
    "adaptive_threshold": NEURONS["adaptive_threshold"](resistance=8.0),
}


@pytest.fixture(params=["0", "1"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "1":
        pytest.importorskip("numba")
    monkeypatch.setenv(COMPILED, request.param)
    return str(request.param)


def made(neuron: Neuron, bias: bool = True) -> tuple[Population, nn.Linear, Tensor]:
    torch.manual_seed(0)
    cells, loop = Population(neuron, UNITS, STEPS, 1.0), nn.Linear(UNITS, UNITS, bias=bias)
    current = 0.6 * torch.randn(ROWS, STEPS, UNITS, dtype=torch.float64) + 0.2
    return cells.double(), loop.double(), current.requires_grad_()


def by_steps(cells: Population, current: Tensor, loop: nn.Module) -> Tensor:
    return cells._by_steps(cells.trials(current), loop)


def gradients(
    run: Callable[..., Tensor], cells: Population, current: Tensor, loop: nn.Linear
) -> tuple[Tensor, list[Tensor]]:
    passed = run(cells, current, loop)
    credit = torch.linspace(-1, 1, passed.numel(), dtype=torch.float64).view_as(passed)
    leaves = [current, *loop.parameters(), *cells.parameters()]
    return passed.detach(), list(torch.autograd.grad((passed * credit).sum(), leaves))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", CELLS)
def test_spikes_and_gradients_are_those_of_the_steps(
    way: str, name: str, window: int | None
) -> None:
    cells, loop, current = made(CELLS[name], bias=window is None)
    if window:
        cells.transport = Transport(window=window)
    found, ours = gradients(lambda *given: given[0](*given[1:]), cells, current, loop)
    expected, theirs = gradients(by_steps, cells, current, loop)
    assert 0.01 < float(expected.mean()) < 0.9
    assert torch.equal(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13 * float(other.abs().max()))


def test_a_wrong_loop_is_seen(way: str) -> None:
    cells, loop, current = made(CELLS["leaky"])
    _, ours = gradients(lambda *given: given[0](*given[1:]), cells, current, loop)
    with torch.no_grad():
        loop.weight.mul_(1.01)
    _, theirs = gradients(by_steps, cells, current, loop)
    assert (ours[0] - theirs[0]).norm() > 1e-4 * theirs[0].norm()


def test_tangents_are_those_of_the_steps(way: str) -> None:
    cells, loop, current = made(CELLS["leaky"])
    answers = []
    for run in (lambda *given: given[0](*given[1:]), by_steps):
        with forward_ad.dual_level(), torch.no_grad():
            given = forward_ad.make_dual(current.detach(), current.detach().cos())
            weight = forward_ad.make_dual(loop.weight.detach(), loop.weight.detach().sin())
            loop.__dict__["weight"] = weight
            answers.append(forward_ad.unpack_dual(run(cells, given, loop)).tangent)
            del loop.__dict__["weight"]
    torch.testing.assert_close(*answers, rtol=1e-11, atol=1e-12)


RULES = ("backprop", "weak", "node_perturbation", "weight_perturbation", "feedback_alignment")
RULES += ("direct_feedback", "eprop", "ottt", "forward_gradient_activity")
RULES += ("forward_gradient_weight", "sltt")


@pytest.mark.parametrize("rule", RULES)
def test_rules_find_what_they_find_step_by_step(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "LEAST", 0)
    monkeypatch.setenv(COMPILED, "1" if RULES.index(rule) % 3 else "0")
    answers, taken, whole = [], [], Population._takes_loop
    for fused in (True, False):

        def takes(cells: Population, *given: object, fused: bool = fused) -> bool:
            taken.append(fused and whole(cells, *given))  # type: ignore[arg-type]
            return taken[-1]

        monkeypatch.setattr(Population, "_takes_loop", takes)
        recipe = ModelRecipe(
            network=NetworkRecipe(kind="spiking", hidden=(50, 40), recurrent=True, dtype="float64"),
            neuron=Leaky(resistance=8.0),
            encoding=EncodingRecipe(kind="poisson", duration_ms=22.0, max_rate_hz=200.0),
        )
        network = biograd.build(recipe, 25, 3)
        engine = biograd.attach(network, biograd.estimators.make(rule))
        inputs = torch.rand(6, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        engine(inputs, torch.arange(6) % 3).backward()
        answers.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert any(taken) and answers[0].keys() == answers[1].keys()
    assert any("recurrent" in name for name in answers[0])
    for name, other in answers[1].items():
        scale = float(other.abs().max())
        torch.testing.assert_close(answers[0][name], other, rtol=1e-9, atol=1e-12 * scale + 1e-15)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_whoever_watches_the_layer_sees_every_step(way: str, hook: str) -> None:
    cells, loop, current = made(CELLS["leaky"])
    seen: list[torch.Size] = []
    getattr(loop, hook)(lambda _module, inputs, *_: seen.append(inputs[0].shape))
    cells(current, loop)
    assert len(seen) == STEPS and set(seen) == {torch.Size([ROWS, UNITS])}
