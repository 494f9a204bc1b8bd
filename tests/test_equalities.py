"""One gradient, however it is computed: scaled losses, parts of a batch, compiled modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks_for_tests import batch, build, check_equal, gradients, kept_gradients
from torch import Tensor, nn

from biograd.engine import Engine, attach
from biograd.estimators import ESTIMATORS, make
from biograd.ranks.parallel import Share, sharing

TOGETHER = [name for name, rule in ESTIMATORS.items() if rule.divides == "examples"]


def engine(name: str, network: nn.Module | None = None) -> Engine:
    """Return an engine that has taken one step, so that nothing is at its initial zero."""
    made = attach(build("mlp") if network is None else network, make(name), seed=3)
    inputs, targets = batch(16)
    made.prepare(inputs, targets)
    return made


def step(made: Engine, rows: slice = slice(None)) -> dict[str, Tensor]:
    inputs, targets = batch(16)
    index = torch.arange(16)[rows]
    made.network.zero_grad()
    made(inputs[rows], targets[rows], index).backward()
    return kept_gradients(made.network)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_scaled_loss_has_scaled_gradients(name: str) -> None:
    """Loss scaling of mixed precision: all credit goes through the one scalar."""
    plain = step(engine(name))
    made = engine(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = torch.optim.SGD(made.parameters(), lr=0.0)
    inputs, targets = batch(16)
    made.network.zero_grad()
    result = made(inputs, targets, torch.arange(16))
    scaler.scale(result.surrogate).backward()
    assert not same(kept_gradients(made.network), plain)
    scaler.unscale_(optimiser)
    check_equal(kept_gradients(made.network), plain, 1e-12)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.allclose(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", TOGETHER)
def test_a_batch_is_the_mean_of_its_parts(name: str) -> None:
    """Three shares, each with its rows of what is drawn for the whole batch, weighted by rows."""
    whole, parts = step(engine(name)), []
    for rank in range(3):
        own = Share.of(16, rank, 3)
        with sharing(own):
            parts.append((own.weight, step(engine(name), own.rows)))
    mean = {key: sum(weight * part[key] for weight, part in parts) for key in whole}
    check_equal(mean, whole, 1e-12)
    with pytest.raises(AssertionError):
        check_equal(parts[0][1], whole, 1e-12)


FAST = ("direct_feedback", "forward_gradient_activity")
COMPILED: list[Any] = [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in ESTIMATORS
]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_equals_eager(name: str) -> None:
    torch.compiler.reset()
    network = build("mlp")
    network.compile(backend="aot_eager")
    check_equal(step(engine(name, network)), step(engine(name)), 1e-12)


def test_the_helper_sees_a_difference() -> None:
    expected = gradients(attach(build("mlp"), make("backprop")), *batch())
    with pytest.raises(AssertionError):
        check_equal(gradients(attach(build("mlp", 1), make("backprop")), *batch()), expected)
