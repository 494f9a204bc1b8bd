"""Products that gather rows, against the dense product in double precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

import biograd
from biograd.neurons import Leaky
from biograd.process import compiled
from biograd.process.switches import COMPILED
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.simulators import gathered as module
from biograd.simulators.gathered import GatheringLinear, gathered

ROWS, TIME, INPUTS, OUTPUTS = 3, 40, 70, 33
COMPILERS = ("0", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 0)


@pytest.fixture(params=COMPILERS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "1":
        pytest.importorskip("numba")
    monkeypatch.setenv(COMPILED, request.param)
    return str(request.param)


def case(share: float, kind: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    draws = torch.rand(ROWS, TIME, INPUTS, generator=stream, dtype=torch.float64)
    values = torch.randn(ROWS, TIME, INPUTS, generator=stream, dtype=torch.float64)
    spikes = torch.where(draws < share, values if seed else torch.ones_like(values), 0.0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=stream, dtype=torch.float64)
    bias = torch.randn(OUTPUTS, generator=stream, dtype=torch.float64)
    return [one.to(kind).requires_grad_() for one in (spikes, weight, bias)]


def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often rows are gathered."""
    calls: list[int] = []
    apply = module._Gathered.apply

    def counted(*tensors: Any) -> Any:
        calls.append(1)
        return apply(*tensors)

    monkeypatch.setattr(module._Gathered, "apply", counted)
    return calls


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients_are_those_of_the_product(
    way: str,
    seed: int,
    share: float,
    biased: bool,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "LEAST_A_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls = taken(monkeypatch)
    spikes, weight, bias = case(share, seed=seed)
    given = bias if biased else None
    found, expected = gathered(spikes, weight, given), functional.linear(spikes, weight, given)
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    leaves = [spikes, weight, *([bias] if biased else [])]
    credit = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    ours = torch.autograd.grad(found, leaves, credit)
    theirs = torch.autograd.grad(expected, leaves, credit)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_single_precision_differs_by_rounding(way: str) -> None:
    spikes, weight, bias = case(0.03, torch.float32)
    exact = functional.linear(spikes.double(), weight.double(), bias.double())
    assert (gathered(spikes, weight, bias) - exact).norm() < 1e-6 * exact.norm()


def test_tangents_are_those_of_the_product(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = taken(monkeypatch)
    values = [one.detach() for one in case(0.03)]
    for moved in ((0,), (1,), (2,), (0, 1, 2)):
        answers = []
        for product in (gathered, functional.linear):
            with forward_ad.dual_level():
                dual = [
                    forward_ad.make_dual(one, one.cos()) if n in moved else one
                    for n, one in enumerate(values)
                ]
                answers.append(forward_ad.unpack_dual(product(*dual)).tangent)
        torch.testing.assert_close(*answers, rtol=1e-13, atol=1e-13)
    assert len(calls) == 4


def test_second_derivatives_are_those_of_the_product(way: str) -> None:
    spikes, weight, bias = case(0.03)
    assert torch.autograd.gradgradcheck(
        lambda w, x: gathered(x, w, bias[:2]).tanh(),
        (weight[:2].detach().requires_grad_(), spikes.detach()),
    )
    found = []
    for product in (gathered, functional.linear):
        credit = torch.ones(ROWS, TIME, OUTPUTS, dtype=torch.float64).requires_grad_()
        by_weight = torch.autograd.grad(
            product(spikes, weight, bias), weight, credit, create_graph=True
        )[0]
        found.append(torch.autograd.grad((by_weight**2).sum(), credit)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", ["dense", "late", "bfloat16", "autocast", "vmap"])
def test_what_cannot_gain_stays_a_product(
    way: str, shift: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = taken(monkeypatch)
    spikes, weight, bias = (one.detach().float() for one in case(0.03))
    if shift == "dense":
        spikes = torch.rand_like(spikes)
    if shift == "late":  # the rows that are probed are silent
        spikes = torch.rand_like(spikes)
        spikes.flatten(0, -2)[:: ROWS * TIME // 32] = 0
    if shift == "bfloat16":
        spikes, weight, bias = (one.bfloat16() for one in (spikes, weight, bias))
    with torch.autocast("cpu", enabled=shift == "autocast"):
        if shift == "vmap":
            found = torch.func.vmap(gathered, (0, None, None))(spikes, weight, bias)
        else:
            found = gathered(spikes, weight, bias)
        expected = functional.linear(spikes, weight, bias)
    torch.testing.assert_close(found, expected)
    assert not calls


def trained(rule: str, kind: str, recurrent: bool) -> tuple[list[Tensor], Tensor]:
    """Return gradients of a network of biograd in double precision, and its losses."""
    network = biograd.build(
        ModelRecipe(
            network=NetworkRecipe(
                kind="spiking", hidden=(30, 20), dtype="float64", recurrent=recurrent
            ),
            neuron=Leaky(resistance=8.0),
            encoding=EncodingRecipe(kind=kind, duration_ms=12.0, max_rate_hz=60.0),
        ),
        25,
        3,
    )
    engine = biograd.attach(network, biograd.estimators.make(rule))
    inputs = torch.rand(8, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine(inputs, torch.arange(8) % 3).backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None], engine(
        inputs, torch.arange(8) % 3
    ).loss


RULES = ("backprop", "weak", "direct_feedback", "eprop", "ottt", "forward_gradient_weight")


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_rules_find_the_same_gradients(
    way: str, rule: str, recurrent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 0.2)
    monkeypatch.setattr(module, "MOST_IN_TORCH", 0.2)
    calls = taken(monkeypatch)
    found, _ = trained(rule, "poisson", recurrent)
    assert calls
    monkeypatch.setattr(module, "LEAST", 10**12)
    calls.clear()
    expected, _ = trained(rule, "poisson", recurrent)
    assert not calls
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("model", "gathers"), [("spiking", True), ("ann", False)])
def test_layers_that_may_receive_spikes_gather(model: str, gathers: bool) -> None:
    network = copy.deepcopy(biograd.build(model, 20, 3))
    kinds = {type(part) for part in network.modules() if isinstance(part, nn.Linear)}
    assert (GatheringLinear in kinds) == gathers
