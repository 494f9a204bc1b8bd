"""Layer-wise decoupling against its equations, and what must be refused or noticed."""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_for_tests import (
    Gradients,
    autograd,
    batch,
    build,
    check_equal,
    drawn,
    gradients,
    kept_gradients,
    spiking,
)
from torch import Tensor, nn

import biograd
from biograd.contracts import Objective, Plan, Round, Trace
from biograd.engine import Engine, attach
from biograd.errors import BiogradError, CapabilityError, DataError
from biograd.estimators import Decoupling, Estimator, PredictiveCoding, make, target_store
from biograd.estimators.target_store import TargetStore, mapped
from biograd.randomness import generator
from biograd.substrate.torch_substrate import TorchSubstrate
from biograd.tasks.classes import cross_entropy, squared_error

Losses = {"cross_entropy": cross_entropy, "squared_error": squared_error}
ROWS = torch.arange(8)


def network() -> nn.Sequential:
    """Return 6-5-4-3 units, tanh, float64."""
    layers = (nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return drawn(nn.Sequential(*layers))  # type: ignore[return-value]


def far(seed: int = 1) -> dict[str, Tensor]:
    """Return targets that are not the activities."""
    stream = generator(seed, "targets")
    sizes = {"0": 5, "2": 4}
    return {n: torch.randn(8, d, generator=stream, dtype=torch.float64) for n, d in sizes.items()}


def traced(targets: dict[str, Tensor], loss: str = "cross_entropy", slots: bool = True) -> Trace:
    substrate = TorchSubstrate(network())
    inputs, labels = batch()
    objective = Objective(Losses[loss])
    substrate.run(Plan(), inputs, labels, objective)
    return substrate.run(Plan(clamp=targets, slots=slots), inputs, labels, objective)


def relaxed(
    made: nn.Module, targets: dict[str, Tensor], rho: float, loss: str = "cross_entropy"
) -> Tensor:
    """Return ``J``, summed over the examples, straight from its definition."""
    inputs, labels = batch()
    parts = list(made.children())
    first, second = parts[1](parts[0](inputs)), parts[3](parts[2](targets["0"]))
    total = Losses[loss](parts[4](targets["2"]), labels).sum()
    for target, activity in ((targets["0"], first), (targets["2"], second)):
        total = total + rho / 2 * (target - activity).square().sum()
    return total


def relative(found: Gradients, expected: Gradients) -> float:
    """Return the size of the difference, relative to that of the expected gradient."""
    apart = sum(float((found[n] - e).square().sum()) for n, e in expected.items())
    return math.sqrt(apart / sum(float(e.square().sum()) for e in expected.values()))


# The objective and its derivatives ----------------------------------------------------------------


@pytest.mark.parametrize("loss", Losses)
@pytest.mark.parametrize("rho", [0.3, 20.0])
def test_targets_move_down_the_objective(loss: str, rho: float) -> None:
    """``z - moved(z)`` is ``eta/rho`` times the finite difference of ``J``."""
    targets, width = far(), 1e-5
    moved = Decoupling(order="jacobi", rate=0.25).moved(traced(targets, loss), rho)
    for name, values in targets.items():
        slope = torch.empty_like(values)
        for place in range(values.numel()):
            ends = []
            for sign in (1, -1):
                shifted = values.clone()
                shifted.view(-1)[place] += sign * width
                ends.append(relaxed(network(), targets | {name: shifted}, rho, loss))
            slope.view(-1)[place] = ((ends[0] - ends[1]) / (2 * width)).detach()
        found = (values - moved[name]) * rho / 0.25
        assert (found - slope).abs().max() < 1e-7 * max(1.0, slope.abs().max())
        assert (found + slope).abs().max() > 1e-2  # uphill is noticed


@pytest.mark.parametrize("order", ["jacobi", "top_down"])
def test_moves_equal_formulas_by_hand(order: str) -> None:
    """``dJ/dz_t = e_t - J_t' e_{t+1}``, ``J_t = diag(1 - h_{t+1}^2) W``, at the top the loss."""
    rho, rate, targets = 3.0, 0.6, far()
    made, (inputs, labels) = network(), batch()
    w1, w2, w3 = (made[place].weight.detach() for place in (0, 2, 4))
    b1, b2, b3 = (made[place].bias.detach() for place in (0, 2, 4))
    h1, h2 = torch.tanh(inputs @ w1.T + b1), torch.tanh(targets["0"] @ w2.T + b2)
    outputs = targets["2"] @ w3.T + b3
    e1, e2 = rho * (targets["0"] - h1), rho * (targets["2"] - h2)
    delta = outputs.softmax(1) - nn.functional.one_hot(labels, 3)
    z2 = targets["2"] - rate / rho * (e2 + delta @ w3)
    if order == "top_down":
        e2 = rho * (z2 - h2)
    z1 = targets["0"] - rate / rho * (e1 - (e2 * (1 - h2**2)) @ w2)
    found = Decoupling(order=order, rate=rate).moved(traced(targets), rho)  # type: ignore[arg-type]
    assert (found["0"] - z1).abs().max() < 1e-12 and (found["2"] - z2).abs().max() < 1e-12
    other = Decoupling(order="jacobi" if order == "top_down" else "top_down", rate=rate)
    assert (other.moved(traced(targets), rho)["0"] - z1).abs().max() > 1e-3


@pytest.mark.parametrize("loss", Losses)
def test_layers_receive_the_gradient_of_the_objective(loss: str) -> None:
    """Kept targets of an earlier visit; ``J / B`` by its definition, differentiated by autograd."""
    inputs, labels = batch()
    estimator = Decoupling(2.5, rate=0.3, steps=2)
    engine = attach(network(), estimator, loss=loss)
    engine(inputs, labels, ROWS)
    with torch.no_grad():
        for parameter in engine.network.parameters():
            parameter.mul_(1.3)
    found = with_rows(engine)
    assert estimator.store is not None
    targets = estimator.store.find(ROWS, inputs)[0]
    expected = network()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(1.3)
    (relaxed(expected, targets, 2.5, loss) / 8).backward()
    check_equal(found, kept_gradients(expected), 1e-12)


def with_rows(engine: Engine, rows: Tensor = ROWS) -> Gradients:
    """Return the gradients of one step on a batch whose rows in the data set are known."""
    inputs, targets = batch()
    engine.network.zero_grad()
    engine(inputs[rows], targets[rows], rows).backward()
    return kept_gradients(engine.network)


def test_at_rest_the_errors_are_the_deltas_of_back_propagation() -> None:
    """``-e_t = J_t' (-e_{t+1})``, the derivatives taken at the targets."""
    rho, made = 30.0, network()
    inputs, labels = batch()
    estimator = PredictiveCoding(rho, steps=200)
    engine = attach(made, estimator)
    engine(inputs, labels)
    assert engine._last is not None
    last = engine._last[0][-1]
    e1, e2 = (
        rho * (z - last.sites[name].activity.detach())  # type: ignore[union-attr]
        for name, z in last.plan.clamp.items()
    )
    outputs = made[4](last.plan.clamp["2"]).detach()
    delta = (outputs.softmax(1) - nn.functional.one_hot(labels, 3)) @ made[4].weight
    assert (-e2 - delta).abs().max() < 1e-10 and delta.abs().max() > 1e-2
    h2 = last.sites["2"].activity
    assert h2 is not None
    below = (-e2 * (1 - h2**2)) @ made[2].weight
    assert (-e1 - below).abs().max() < 1e-10 and below.abs().max() > 1e-3


# Back-propagation in the limit --------------------------------------------------------------------

LIMIT = ("mlp", "grouped_convolution", "convolution_1d", "dropout", "batch_norm")


def limits(name: str, estimator: str, settings: dict[str, Any]) -> list[float]:
    """Return the relative difference from back-propagation for three values of ``rho``."""
    inputs, targets = batch()
    expected = gradients(attach(build(name), make("backprop"), seed=3), inputs, targets)
    found = []
    for rho in (1e3, 1e4, 1e5):
        rule = make(estimator, {"stiffness": rho, **settings})
        found.append(relative(with_rows(attach(build(name), rule, seed=3)), expected))
    return found


@pytest.mark.parametrize("estimator", ["decoupling", "predictive_coding"])
@pytest.mark.parametrize("name", LIMIT)
def test_stiff_targets_give_back_propagation(name: str, estimator: str) -> None:
    """The difference falls as ``1 / rho``."""
    found = limits(name, estimator, {"steps": 12})
    assert found[-1] < 1e-3
    for one, next_one in pairwise(found):
        assert next_one == pytest.approx(one / 10, rel=0.2)


def test_moving_all_targets_at_once_comes_to_the_same() -> None:
    settings = {"order": "jacobi", "rate": 0.4, "steps": 300}
    found = limits("mlp", "predictive_coding", settings)
    assert found[-1] < 1e-3 and found[1] == pytest.approx(found[0] / 10, rel=0.2)
    few = limits("mlp", "predictive_coding", settings | {"steps": 2})
    assert few[-1] > 0.1  # the error has not settled


@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_spiking_layers_give_surrogate_back_propagation(substrate: str, recurrent: bool) -> None:
    def made() -> nn.Module:
        return spiking(substrate, {"recurrent": recurrent})

    inputs, targets = batch()
    inputs = 3 * inputs
    expected = gradients(attach(made(), make("backprop")), inputs, targets)
    rule = PredictiveCoding(1e6)
    assert relative(gradients(attach(made(), rule), inputs, targets), expected) < 1e-3
    rule = PredictiveCoding(10.0)
    assert relative(gradients(attach(made(), rule), inputs, targets), expected) > 1e-2


class Uphill(PredictiveCoding):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        loss, *pairs = super().credit(traces, round)
        yield loss
        yield from ((activity, -delta) for activity, delta in pairs)


class TargetsForgotten(PredictiveCoding):
    def moved(self, trace: Trace, rho: float) -> dict[str, Tensor]:
        return dict(trace.plan.clamp)


class NoSum(PredictiveCoding):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        loss, *pairs = super().credit(traces, round)
        yield loss
        yield from ((activity, delta / 2) for activity, delta in pairs)


@pytest.mark.parametrize("broken", [Uphill, TargetsForgotten, NoSum])
def test_broken_decoupling_is_not_back_propagation(broken: type[PredictiveCoding]) -> None:
    inputs, targets = batch()
    expected = autograd(network(), inputs, targets)
    right = gradients(attach(network(), PredictiveCoding(1e5)), inputs, targets)
    assert relative(right, expected) < 1e-3
    assert relative(gradients(attach(network(), broken(1e5)), inputs, targets), expected) > 0.1


@pytest.mark.parametrize("estimator", ["decoupling", "predictive_coding"])
def test_a_network_of_one_layer_is_back_propagation(estimator: str) -> None:
    def made() -> nn.Module:
        return drawn(nn.Sequential(nn.Linear(6, 3)))

    check_equal(with_rows(attach(made(), make(estimator))), autograd(made(), *batch()), 1e-12)


def test_frozen_layers_stay_out() -> None:
    made = network()
    made[0].requires_grad_(False)
    found = with_rows(attach(made, Decoupling(1e5)))
    expected = autograd(network(), *batch())
    assert not found["0.weight"].any()
    del found["0.weight"], found["0.bias"]
    assert relative(found, {name: expected[name] for name in found}) < 1e-3


# Predictive coding --------------------------------------------------------------------------------


def test_predictive_coding_by_hand() -> None:
    """Squared error, precision 1: ``dz_t = eta (J_t' e_{t+1} - e_t)``, then ``dW ~ f' e x'``."""
    made, (inputs, labels) = network(), batch()
    w1, w2, w3 = (made[place].weight.detach() for place in (0, 2, 4))
    b1, b2, b3 = (made[place].bias.detach() for place in (0, 2, 4))
    label = nn.functional.one_hot(labels, 3).double()
    mu1 = torch.tanh(inputs @ w1.T + b1)
    x1, x2 = mu1, torch.tanh(mu1 @ w2.T + b2)
    for _ in range(7):
        mu2, mu3 = torch.tanh(x1 @ w2.T + b2), x2 @ w3.T + b3
        e1, e2, e3 = x1 - mu1, x2 - mu2, label - mu3
        x1, x2 = x1 + 0.1 * ((e2 * (1 - mu2**2)) @ w2 - e1), x2 + 0.1 * (e3 @ w3 - e2)
    mu2, mu3 = torch.tanh(x1 @ w2.T + b2), x2 @ w3.T + b3
    g1, g2, g3 = (x1 - mu1) * (1 - mu1**2), (x2 - mu2) * (1 - mu2**2), label - mu3
    expected = {
        "0.weight": -g1.T @ inputs / 8,
        "0.bias": -g1.mean(0),
        "2.weight": -g2.T @ x1 / 8,
        "2.bias": -g2.mean(0),
        "4.weight": -g3.T @ x2 / 8,
        "4.bias": -g3.mean(0),
    }
    rule = PredictiveCoding(1.0, order="jacobi", rate=0.1, steps=7)
    engine = attach(made, rule, loss="squared_error")
    for _ in range(2):  # the second visit starts afresh
        found = gradients(engine, inputs, labels)
        check_equal(found, expected, 1e-12)
    backprop = autograd(network(), inputs, labels, squared_error)
    assert relative(found, backprop) > 1e-2


def test_decoupling_starts_where_predictive_coding_does_and_then_keeps() -> None:
    settings = {"stiffness": 2.0, "order": "jacobi", "rate": 0.2, "steps": 1}
    fresh = attach(network(), make("predictive_coding", settings))
    kept = attach(network(), make("decoupling", settings))
    first = with_rows(fresh)
    check_equal(with_rows(kept), first, 1e-12)
    check_equal(with_rows(fresh), first, 1e-12)
    assert relative(with_rows(kept), first) > 1e-2


@pytest.mark.parametrize("estimator", ["decoupling", "predictive_coding"])
def test_what_a_step_reports_is_feed_forward(estimator: str) -> None:
    inputs, targets = batch()
    engine = attach(network(), make(estimator, {"stiffness": 0.5}))
    for _ in range(3):
        result = engine(inputs, targets, ROWS)
    outputs = network()(inputs)
    assert torch.equal(result.outputs, outputs)
    assert torch.equal(result.losses[0], cross_entropy(outputs, targets))


def test_the_gap_is_measured() -> None:
    rule = PredictiveCoding(0.5)
    engine = attach(network(), rule)
    engine(*batch())
    assert engine._last is not None
    last = engine._last[0][-1]
    for name, target in last.plan.clamp.items():
        activity = last.sites[name].activity
        assert activity is not None
        activity = activity.detach()
        expected = float((target - activity).square().sum() / target.square().sum())
        assert rule.measures()[f"constraint_gap.{name}"] == pytest.approx(expected, rel=1e-12)
        assert expected > 1e-3
    stiff = PredictiveCoding(1e4)
    attach(network(), stiff)(*batch())
    assert all(0 < value < 1e-6 for value in stiff.measures().values())


# Targets of one's own -----------------------------------------------------------------------------


def test_targets_belong_to_examples_not_to_places() -> None:
    """Other batches, another order: each example goes on from its own targets."""
    order, settings = torch.randperm(8, generator=generator(5)), {"rate": 0.3, "steps": 1}
    inputs = batch()[0]

    def targets(*parts: Tensor) -> dict[str, Tensor]:
        rule = Decoupling(3.0, **settings)
        engine = attach(network(), rule)
        for part in parts:
            with_rows(engine, part)
        assert rule.store is not None
        found, seen = rule.store.find(ROWS, inputs)
        assert seen.all()
        return found

    together = targets(ROWS, ROWS)
    apart = targets(order[:3], order[3:], order[5:], order[:5])
    assert all(torch.allclose(apart[n], together[n], rtol=1e-12) for n in together)
    once = targets(ROWS)
    assert not any(torch.allclose(once[n], together[n], rtol=1e-3) for n in together)


def test_a_batch_without_rows_is_refused() -> None:
    engine = attach(network(), Decoupling())
    with pytest.raises(CapabilityError, match=r"engine\(inputs, targets, index\)"):
        engine(*batch())


@pytest.mark.parametrize(
    "index", [ROWS.double(), ROWS[:5], ROWS[None], ROWS - 1, ROWS > 2], ids=str
)
def test_rows_that_are_none_are_refused(index: Tensor) -> None:
    engine = attach(network(), Decoupling())
    with pytest.raises(CapabilityError, match="index must hold the row"):
        engine(*batch(), index)


def test_altered_data_are_refused() -> None:
    inputs, targets = batch()
    engine = attach(network(), Decoupling())
    engine(inputs, targets, ROWS)
    engine(inputs.flip(0), targets.flip(0), ROWS.flip(0))
    altered = inputs.clone()
    altered[5] = altered[5].flip(0)  # mirrored, as augmentation does it
    with pytest.raises(DataError, match=r"^example 5 is not the datum that it was.*predictive"):
        engine(altered, targets, ROWS)
    attach(network(), PredictiveCoding())(altered, targets)


def test_spikes_are_not_kept() -> None:
    inputs, targets = batch()
    with pytest.raises(CapabilityError, match="cannot keep spikes"):
        attach(spiking(), Decoupling())(inputs, targets, ROWS)


def test_sites_with_a_local_loss_have_no_target() -> None:
    """The blocks before and behind the local loss are relaxed, each within its own part."""
    local = pytest.importorskip("biograd.local")

    def made(rule: Estimator) -> Engine:
        deep = drawn(
            nn.Sequential(
                *(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()),
                *(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)),
            )
        )
        return attach(deep, rule, local=local.LocalLosses(sites=("2",)), seed=3)

    expected = with_rows(made(make("backprop")))
    rule = Decoupling(1e5)
    assert relative(with_rows(made(rule)), expected) < 1e-3
    assert rule.store is not None and rule.store.names == ("0", "4")


# The store ----------------------------------------------------------------------------------------


def store(rows: int = 0) -> TargetStore:
    made = TargetStore()
    made.shape({"a.b": (2, 3), "c": (4,)}, torch.float32)
    if rows:
        index = torch.arange(rows)
        made.find(index, data(index))
        made.keep(index, data(index), values(index))
    return made


def data(index: Tensor) -> Tensor:
    return torch.stack([torch.sin(index + 1.0), torch.cos(index + 2.0)], 1)


def values(index: Tensor) -> dict[str, Tensor]:
    return {
        "a.b": index.view(-1, 1, 1).expand(-1, 2, 3) + 0.5,
        "c": -index.view(-1, 1).expand(-1, 4),
    }


def test_rows_grow_on_demand_and_survive() -> None:
    made = store()
    for rows in (3, 40, 1000):
        index = torch.arange(rows // 2, rows)
        assert not made.find(index, data(index))[1].any()
        made.keep(index, data(index), values(index))
    index = torch.tensor([999, 1, 25, 700])
    found, seen = made.find(index, data(index))
    assert seen.tolist() == [True, True, True, True] and made.rows == 1000
    assert all(torch.equal(found[n], values(index)[n].float()) for n in found)
    assert not made.find(torch.tensor([10]), torch.ones(1, 2))[1].any()


def test_a_state_brings_its_rows() -> None:
    first, again = store(7), store(3)
    again.load_state_dict(first.state_dict())
    assert again.rows == 7 and set(first.state_dict()) == set(again.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    fewer = store(12)
    fewer.load_state_dict(first.state_dict())
    assert fewer.rows == 7 and not any("." in name for name, _ in first.named_buffers())
    index = torch.tensor([9])
    assert not fewer.find(index, data(index))[1].any()


def test_the_store_stays_on_the_processor() -> None:
    made = store(4).to(torch.float64)
    assert made.find(torch.tensor([1]), data(torch.tensor([1])))[0]["c"].dtype == torch.float32


def test_files_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = mapped((5, 3), torch.float64)
    assert not made.any() and made.shape == (5, 3)
    made.fill_(2.0)
    assert made.sum() == 30 and not list(tmp_path.iterdir())


def test_a_full_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target_store, "_reserve", full)
    with pytest.raises(BiogradError, match=r"no room for 8 MB of targets in .*TMPDIR"):
        mapped((1_000_000, 2), torch.float32)


def test_the_next_step_after_a_checkpoint_is_the_same() -> None:
    def made() -> Engine:
        engine = attach(network(), Decoupling(5.0, rate=0.3), seed=3)
        engine.prepare(*batch())
        return engine

    def step(engine: Engine) -> Tensor:
        result = engine(*batch(), ROWS)
        result.backward()
        with torch.no_grad():
            for parameter in engine.network.parameters():
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
        engine.network.zero_grad()
        engine.update()
        return result.losses

    first = made()
    for _ in range(3):
        step(first)
    state, weights = first.state(), {k: v.clone() for k, v in first.network.state_dict().items()}
    expected = [step(first) for _ in range(3)]
    again, without = made(), made()
    for engine in (again, without):
        engine.network.load_state_dict(weights)
    again.load_state(state)
    assert [torch.equal(step(again), losses) for losses in expected] == [True] * 3
    assert not torch.equal([step(without) for _ in range(3)][-1], expected[-1])


# Training -----------------------------------------------------------------------------------------


def train(tmp_path: Path, estimator: str, seed: int, *settings: str, **more: Any) -> Any:
    return biograd.train(
        "ann",
        "digits",
        estimator=estimator,
        seed=seed,
        path=tmp_path / f"{estimator}{seed}.h5",
        settings=settings,
        device="cpu",
        **more,
    )


def test_the_gap_goes_into_the_run_file(tmp_path: Path) -> None:
    with train(tmp_path, "decoupling", 0, epochs=2) as run:
        found = run.scalars("epoch")
    gaps = [name for name in found if name.startswith("constraint_gap.")]
    assert len(gaps) == 2
    assert all(0 < value < 1 for name in gaps for value in found[name])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("estimator", ["decoupling", "predictive_coding"])
def test_digits_are_within_a_point_of_back_propagation(tmp_path: Path, estimator: str) -> None:
    found = {}
    for name in (estimator, "backprop"):
        accuracies = []
        for seed in range(3):
            with train(tmp_path, name, seed) as run:
                accuracies.append(run.summary["test_accuracy"])
        found[name] = sum(accuracies) / 3
    assert found[estimator] >= found["backprop"] - 0.01


class Scaled(nn.Module):
    """A network whose first layer receives what a parameter outside of all layers makes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.first(inputs * self.scale)))
        return found


def test_what_learns_before_kept_targets_is_refused_at_once() -> None:
    inputs, targets, rows = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]), torch.arange(5)
    engine = attach(Scaled(), Decoupling(), outside="exact")
    with pytest.raises(CapabilityError, match="what first receives would change"):
        engine(inputs, targets, rows)
    for rule, outside in ((Decoupling(), "freeze"), (PredictiveCoding(), "exact")):
        engine = attach(Scaled(), rule, outside=outside)  # type: ignore[arg-type]
        for _ in range(2):
            engine(inputs, targets, rows).backward()
            with torch.no_grad():
                for parameter in engine.parameters():
                    parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
            engine.update()
