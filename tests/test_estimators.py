"""Oracles that every estimator meets, and broken estimators that must not meet them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RecurrentCell,
    TrueCredit,
    autograd,
    batch,
    build,
    check_equal,
    check_one_over_b,
    check_unbiased,
    drawn,
    gradients,
    linear_loss,
    linear_stack,
    spiking,
)
from torch import Tensor

import biograd
from biograd.contracts import Round, Trace
from biograd.engine import Engine, attach
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS, Estimator, WeakGradient, make
from biograd.estimators.loss_regression import METHODS

NEURONS: list[dict[str, Any]] = [
    {},
    {"reset": "zero", "surrogate": "arctan"},
    {"synaptic_time_constant_ms": 4.0, "surrogate": "gaussian"},
]
UNBIASED: dict[str, tuple[str, dict[str, Any]]] = {
    "score": ("weak", {"method": "score", "sigma": 1.0, "copies": 33}),
    "baseline": ("weak", {"method": "baseline", "copies": 33}),
    "leave_one_out": ("weak", {"method": "leave_one_out", "copies": 33}),
    "antithetic": ("weak", {"method": "antithetic", "copies": 33}),
    "least_squares": ("weak", {"method": "least_squares", "copies": 33}),
    "anchored": ("weak", {"method": "anchored", "copies": 33}),
    "round_robin": ("weak", {"method": "least_squares", "copies": 33, "sites": "round_robin"}),
    "node_perturbation": ("node_perturbation", {"copies": 33}),
    "measured": ("node_perturbation", {"copies": 33, "activity": "measured"}),
    "weight_perturbation": ("weight_perturbation", {"copies": 65}),
}
EXACT: dict[str, dict[str, Any]] = {
    "finite_difference": {"copies": 11},
    "central_difference": {"copies": 21},
    "orthogonal": {"copies": 11},
    "least_squares": {"copies": 14},
    "anchored": {"copies": 14},
    "quadratic": {"copies": 24},
}
"""On a linear loss of 5 + 5 hidden units."""


def linear_engine(estimator: Estimator, seed: int = 0) -> Engine:
    return attach(drawn(linear_stack()), estimator, loss=linear_loss, seed=seed)


def test_every_method_can_be_named_in_a_recipe() -> None:
    for name in METHODS:
        assert make("weak", {"method": name}).method == name
    with pytest.raises(
        RecipeError, match=r"^a: estimators.weak.method = 'rigde': did you mean 'ridge'"
    ):
        make("weak", {"method": "rigde"}, "a")


def truth(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return autograd(drawn(linear_stack()), inputs, targets, linear_loss)


# 1. The true credit gives the true gradient -------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_true_credit_is_backpropagation(name: str) -> None:
    assert PLAIN
    inputs, targets = batch()
    found = gradients(attach(build(name), TrueCredit()), inputs, targets)
    check_equal(found, autograd(build(name), inputs, targets))


@pytest.mark.parametrize("name", PLAIN)
def test_wrong_credit_is_noticed(name: str) -> None:
    inputs, targets = batch()
    found = gradients(attach(build(name), TrueCredit(factor=1.01)), inputs, targets)
    with pytest.raises(AssertionError):
        check_equal(found, autograd(build(name), inputs, targets))


@pytest.mark.parametrize("kind", ["current", "poisson"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("neuron", NEURONS, ids=["subtract", "zero", "filter"])
@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_true_credit_over_time(
    substrate: str, neuron: dict[str, Any], recurrent: bool, kind: str
) -> None:
    def network() -> biograd.networks.Network:
        return spiking(substrate, {"recurrent": recurrent}, neuron, {"kind": kind})

    inputs, targets = batch()
    inputs = inputs * (3 if kind == "current" else 1)
    engine, reference = attach(network(), TrueCredit()), attach(network(), make("backprop"))
    expected = gradients(reference, inputs, targets)
    check_equal(gradients(engine, inputs, targets), expected)
    assert all(value.any() for name, value in expected.items() if "weight" in name)
    if kind == "current":
        check_equal(expected, autograd(network(), inputs, targets))


@pytest.mark.parametrize("name", PLAIN)
def test_a_single_named_site_keeps_autograd_around_it(name: str) -> None:
    """Credit at one site in the middle; autograd carries on above and below it."""
    inputs, targets = batch()
    probe = attach(build(name), make("backprop"))
    probe(inputs, targets)
    site = probe.hidden[-1]
    found = gradients(attach(build(name), TrueCredit((site,))), inputs, targets)
    check_equal(found, autograd(build(name), inputs, targets))


def test_a_named_weak_site_is_exact_above_below_and_beside_it() -> None:
    """A linear loss behind site "1"; below it a layer that learns by autograd alone."""
    inputs, targets = batch()
    estimator = WeakGradient(8, method="least_squares", sites=("1",))
    check_equal(gradients(linear_engine(estimator), inputs, targets), truth(inputs, targets), 1e-9)


# 2. Expectations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in UNBIASED if n != "measured"])
def test_unbiased(name: str) -> None:
    inputs, targets = batch(32)
    expected = truth(inputs, targets)
    estimator, settings = UNBIASED[name]
    engine = linear_engine(make(estimator, settings))
    if name == "round_robin":  # one site per step: check the two sites in their own steps
        for site in ("0", "1"):
            found = gradients(engine, inputs, targets)
            part = {k: v for k, v in found.items() if k.startswith(site)}
            check_equal(part, {k: expected[k] for k in part}, 1e-9)
        return
    check_unbiased(engine, inputs, targets, expected, 150 if "weight" in name else 120)


def test_measured_activity_is_unbiased_with_one_site() -> None:
    inputs, targets = batch(32)
    network = drawn(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)))
    expected = autograd(network, inputs, targets, linear_loss)
    engine = attach(network, make(*UNBIASED["measured"]), loss=linear_loss)
    check_unbiased(engine, inputs, targets, expected)


@pytest.mark.parametrize("method", EXACT)
def test_exact_on_a_linear_loss(method: str) -> None:
    inputs, targets = batch()
    found = gradients(linear_engine(WeakGradient(method=method, **EXACT[method])), inputs, targets)
    check_equal(found, truth(inputs, targets), 1e-9)


SHRINKING = {
    "orthogonal": 0.6,
    "finite_difference": 0.6,
    "least_squares": 0.6,
    "anchored": 0.6,
    "central_difference": 0.3,
    "ridge": None,
}


@pytest.mark.parametrize("method", SHRINKING)
def test_shrinking_methods_shrink_as_known(method: str) -> None:
    """6 of 10 directions keep 6/10 of the slope, 3 pairs of them half of that; ridge less."""
    inputs, targets = batch(16)
    expected = truth(inputs, targets)
    engine = linear_engine(WeakGradient(7, method=method))
    hidden = [name for name in expected if not name.startswith("2")]
    flat = torch.cat([expected[name].flatten() for name in hidden])
    slopes = []
    for _ in range(60):
        found = gradients(engine, inputs, targets)
        flat_found = torch.cat([found[name].flatten() for name in hidden])
        slopes.append(((flat_found @ flat) / (flat @ flat)).item())
    mean = torch.tensor(slopes).mean().item()
    if method == "ridge":
        assert 0.3 < mean < 0.6
    else:
        assert mean == pytest.approx(SHRINKING[method], abs=0.03)


ORDERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "finite_difference": ("weak", {"method": "finite_difference", "copies": 9}, 1.0),
    "central_difference": ("weak", {"method": "central_difference", "copies": 17}, 2.0),
    "antithetic": ("weak", {"method": "antithetic", "copies": 2001}, 2.0),
    "likelihood_ratio": ("likelihood_ratio", {"antithetic": True, "copies": 2001}, 2.0),
    "weight_perturbation": ("weight_perturbation", {"copies": 2001}, 2.0),
}
"""With noise in opposite pairs or along all axes what is left of a common draw is bias."""


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_the_bias_in_sigma_is_what_the_table_says(name: str) -> None:
    """The same noise at three sizes: the differences to the smallest grow by a power of sigma."""
    rule, settings, order = ORDERS[name]
    inputs, targets = batch()
    found = []
    for sigma in (1e-3, 0.05, 0.1):
        network = drawn(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)))
        engine = attach(network, make(rule, settings | {"sigma": sigma}), seed=7)
        gradient = gradients(engine, inputs, targets)
        hidden = ("0.weight", "0.bias")
        found.append(torch.cat([gradient[key].flatten() for key in hidden]))
    change = [(one - found[0]).norm() for one in found[1:]]
    assert float(torch.log2(change[1] / change[0])) == pytest.approx(order, abs=0.2)
    said = ESTIMATORS[rule].bias
    assert "third order" not in said
    assert "second order in sigma" in said and (
        "finite_difference: first" in said or rule != "weak"
    )


@pytest.mark.parametrize("time_bin", [1, "trial"])
def test_sites_visited_many_times(time_bin: Any) -> None:
    """With a bin per step every step's credit is exact; one bin shares out their sum."""
    inputs, targets = batch()
    cell = drawn(RecurrentCell(linear=True))
    sites = {"state": ("feed", "recurrent"), "readout": ("readout",)}
    count = 12 if time_bin == 1 else 4
    estimator = WeakGradient(count + 3, method="anchored", time_bin=time_bin)
    engine = attach(cell, estimator, loss=linear_loss, sites=sites)
    found = gradients(engine, inputs, targets)
    assert engine.hidden == ("state",)
    expected = autograd(drawn(RecurrentCell(linear=True)), inputs, targets, linear_loss)
    if time_bin == 1:
        check_equal(found, expected, 1e-9)
    assert (found["feed.bias"] - expected["feed.bias"]).abs().max() < 1e-9


def test_trials_of_another_length() -> None:
    """The gradient is shared out among the visits of this batch, not those of the first."""

    class Sequence(RecurrentCell):
        def forward(self, inputs: Tensor) -> Tensor:
            state = inputs.new_zeros(len(inputs), 4)
            for now in inputs.unbind(1):
                state = self.feed(now) + self.recurrent(state)
            return self.readout(state)

    sites = {"state": ("feed", "recurrent"), "readout": ("readout",)}
    estimator = WeakGradient(8, method="anchored", time_bin="trial")
    engine = attach(drawn(Sequence()), estimator, loss=linear_loss, sites=sites)
    targets = batch()[1]
    for steps in (3, 6, 2):
        inputs = batch(features=2 * steps)[0].view(8, steps, 2)
        found = gradients(engine, inputs, targets)["feed.bias"]
        expected = autograd(drawn(Sequence()), inputs, targets, linear_loss)["feed.bias"]
        assert (found - expected).abs().max() < 1e-9
    engine.estimator.time_bin = 1  # type: ignore[assignment]
    with pytest.raises(biograd.CapabilityError, match="trials of one length"):
        engine(inputs, targets)


# 6. The mean over the batch -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_is_the_mean_of_its_halves(name: str) -> None:
    inputs, targets = batch()
    for estimator in (make("backprop"), make("frozen_hidden"), TrueCredit()):
        engine = attach(build(name), estimator)
        whole = gradients(engine, inputs, targets)
        halves = [
            gradients(engine, inputs[part], targets[part]) for part in (slice(0, 4), slice(4, 8))
        ]
        check_equal(whole, {key: (halves[0][key] + halves[1][key]) / 2 for key in whole})
        engine.detach()


@pytest.mark.parametrize("method", EXACT)
def test_exact_methods_take_the_mean_of_halves(method: str) -> None:
    inputs, targets = batch()
    engine = linear_engine(WeakGradient(method=method, **EXACT[method]))
    whole = gradients(engine, inputs, targets)
    first = gradients(engine, inputs[:4], targets[:4])
    second = gradients(engine, inputs[4:], targets[4:])
    check_equal(whole, {key: (first[key] + second[key]) / 2 for key in whole}, 1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_doubled_batch_has_the_same_expectation(name: str) -> None:
    assert ESTIMATORS
    inputs, targets = batch()
    check_one_over_b(linear_engine(make(name)), inputs, targets)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_describe_themselves(name: str) -> None:
    estimator = ESTIMATORS[name]
    assert estimator.needs and estimator.passes and estimator.bias and estimator.reference
    assert estimator.__doc__


# 10. Broken estimators ----------------------------------------------------------------------------


class SignFlipped(WeakGradient):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((tensor, -delta) for tensor, delta in super().credit(traces, round))


class BatchForgotten(WeakGradient):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((z, delta * round.batch) for z, delta in super().credit(traces, round))


class WrongSite(WeakGradient):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        tensors, deltas = zip(*super().credit(traces, round), strict=True)
        yield from zip(tensors, reversed(deltas), strict=True)


@pytest.mark.parametrize("broken", [SignFlipped, BatchForgotten, WrongSite])
def test_broken_estimators_are_not_unbiased(broken: type[WeakGradient]) -> None:
    inputs, targets = batch(32)
    expected = truth(inputs, targets)
    engine = linear_engine(broken(33, method="baseline"))
    with pytest.raises(AssertionError):
        check_unbiased(engine, inputs, targets, expected)


def test_a_forgotten_batch_size_is_noticed() -> None:
    inputs, targets = batch()
    check_one_over_b(linear_engine(WeakGradient(17, method="baseline")), inputs, targets)
    with pytest.raises(AssertionError):
        check_one_over_b(linear_engine(BatchForgotten(17, method="baseline")), inputs, targets)
