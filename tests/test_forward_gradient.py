"""Forward gradients and the likelihood ratio: exact slopes, expectations and variances."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RANDOM,
    Gradients,
    autograd,
    batch,
    build,
    check_equal,
    check_unbiased,
    drawn,
    gradients,
    kept_gradients,
    linear_loss,
    linear_stack,
    opaque,
    spiking,
)
from torch import Tensor, nn

import biograd
from biograd.contracts import ParameterNoise, Plan, Round, Site, Trace, bin_lengths
from biograd.contracts.parameter_noise import NUMBERS as DIRECTIONS
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import (
    ForwardGradientActivity,
    ForwardGradientWeight,
    LikelihoodRatio,
    WeightPerturbation,
    make,
)
from biograd.estimators.likelihood_ratio import SIGN
from biograd.estimators.loss_regression import centred_ranks
from biograd.estimators.tangents import TANGENTS
from biograd.local import LocalLosses
from biograd.randomness import generator

RANDOM_TANGENTS = [name for name, kind in TANGENTS.items() if not kind.guess]
GUESSES = [name for name, kind in TANGENTS.items() if kind.guess]
SPIKING = [
    (substrate, recurrent, neuron, kind)
    for substrate in ("torch", "snntorch")
    for recurrent in (False, True)
    for neuron in ({}, {"reset": "zero"}, {"synaptic_time_constant_ms": 4.0})
    for kind in ("current", "poisson")
]


# 1. The slope is the gradient's inner product with the tangent ------------------------------------


def trial(engine: Engine, plan: Callable[[Round], Plan]) -> tuple[Round, Trace]:
    """Return the trace of one plan, whose graph is whole."""
    inputs, targets = batch()
    engine.prepare(inputs, targets)
    encoded = engine.substrate.encode(inputs, generator(1))
    round = engine._round(encoded, targets, None, generator(2))
    run = engine.substrate.run
    return round, run(plan(round), encoded, targets, engine.objective, generator(3))


def tangents(round: Round, time_bin: int | None) -> dict[str, Tensor]:
    found = {}
    for name in round.hidden:
        shape = round.shapes[name]
        count = len(bin_lengths(shape.steps, time_bin))
        size = (2, round.batch, count, *shape.units)
        found[name] = torch.randn(size, generator=round.generator, dtype=round.dtype)
    return found


def inner_products(trace: Trace, batch: int) -> Tensor:
    """Return ``<gradient, tangent>`` ``[m, B]``, the gradients found by back-propagation."""
    assert trace.plan.tangents
    total: Tensor | float = 0.0
    for name, tangent in trace.plan.tangents.items():
        site = trace.sites[name]
        visits = site.visits[0]
        lengths = torch.tensor(bin_lengths(site.shape.steps, trace.plan.time_bin))
        deltas = torch.autograd.grad(trace.loss * batch, visits.outputs, retain_graph=True)
        delta = deltas[0] if visits.time else torch.stack(deltas, 1)
        steps = tangent.repeat_interleave(lengths, 2)
        if delta.shape[1] == 1 < steps.shape[2]:
            steps = tangent  # one constant current, one bin
        total = total + (delta * steps).flatten(2).sum(2)
    assert isinstance(total, Tensor)
    return total


def check_slopes(network: nn.Module, time_bin: int | None = None, factor: float = 1.0) -> None:
    engine = attach(network, make("backprop"))
    round, trace = trial(engine, lambda r: Plan(tangents=tangents(r, time_bin), time_bin=time_bin))
    assert trace.slopes is not None and trace.slopes.abs().max() > 1e-2
    error = (factor * trace.slopes - inner_products(trace, round.batch)).abs().max()
    assert error <= 1e-12 * trace.slopes.abs().max().clamp_min(1)


def check_parameter_slopes(network: nn.Module) -> None:
    engine, directions = attach(network, make("backprop")), ParameterNoise((5, 6), (1.0, -0.5))
    round, trace = trial(engine, lambda _: Plan(parameter_tangents=directions))
    truth = torch.autograd.grad(trace.loss, round.parameters)
    assert trace.slopes is not None
    for copy, scale in enumerate(directions.scales):
        draws = directions.draw(copy, round.parameters)
        expected = sum((g * scale * v).sum() for g, v in zip(truth, draws, strict=True))
        assert abs(trace.slopes[copy].mean() - expected) <= 1e-12 * max(1, abs(expected))


@pytest.mark.parametrize("name", [*PLAIN, "dropout"])
def test_slopes(name: str) -> None:
    check_slopes(build(name))
    check_parameter_slopes(build(name))


@pytest.mark.parametrize(("substrate", "recurrent", "neuron", "kind"), SPIKING)
def test_slopes_over_time(
    substrate: str, recurrent: bool, neuron: dict[str, Any], kind: str
) -> None:
    def network() -> nn.Module:
        return spiking(substrate, {"recurrent": recurrent}, neuron, {"kind": kind})

    check_slopes(network())
    check_parameter_slopes(network())
    if kind == "poisson":  # in bins: of a constant current only the sum over bins is known
        check_slopes(network(), 1)
        check_slopes(network(), 7)


def test_wrong_slopes_are_noticed() -> None:
    with pytest.raises(AssertionError):
        check_slopes(build("mlp"), factor=1 + 1e-9)


# 2. Expectations ----------------------------------------------------------------------------------

UNBIASED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"activity_{name}": ("forward_gradient_activity", {"copies": 6, "tangents": name})
        for name in RANDOM_TANGENTS
    },
    "activity_each": ("forward_gradient_activity", {"copies": 4, "sites": "each"}),
    "activity_shared": ("forward_gradient_activity", {"copies": 20, "shared": True}),
    "activity_sparse": ("forward_gradient_activity", {"copies": 6, "sparse": True}),
    **{
        f"weight_{name}": ("forward_gradient_weight", {"copies": 16, "directions": name})
        for name in DIRECTIONS
    },
    "weight_forward": ("forward_gradient_weight", {"copies": 16, "readout": "forward"}),
}


@pytest.mark.parametrize(
    ("name", "network"), [*((name, "mlp") for name in UNBIASED), ("activity_normal", "residual")]
)
def test_unbiased_on_any_loss(name: str, network: str) -> None:
    """No smoothing, no linear loss: the cross-entropy of a network of tanh and ReLU."""
    inputs, targets = batch(32)
    engine = attach(build(network), make(*UNBIASED[name]))
    check_unbiased(engine, inputs, targets, autograd(build(network), inputs, targets))


def test_unbiased_over_time() -> None:
    def network() -> nn.Module:
        return spiking("torch", {"hidden": (4,), "recurrent": True}, encoding={"duration_ms": 4.0})

    inputs, targets = batch(32)
    inputs = 3 * inputs
    engine = attach(network(), ForwardGradientActivity(20, time_bin=1))
    check_unbiased(engine, inputs, targets, autograd(network(), inputs, targets))


def test_one_site_at_a_time() -> None:
    """Round robin: in its step a site's mean is the gradient, the other's credit is zero."""
    inputs, targets = batch(32)
    truth = autograd(build("mlp"), inputs, targets)
    estimator = ForwardGradientActivity(5, "orthogonal", sites="round_robin")
    engine = attach(build("mlp"), estimator)
    first = gradients(engine, inputs, targets)  # 5 units, 5 orthogonal directions: exact
    check_equal({n: first[n] for n in truth if "0" in n}, {n: truth[n] for n in truth if "0" in n})
    assert not first["2.weight"].any()


@pytest.mark.parametrize("sites", ["all", "each"])
def test_as_many_orthogonal_directions_as_units_are_exact(sites: str) -> None:
    inputs, targets = batch()
    network = drawn(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)))
    copies = 10 if sites == "all" else 5
    engine = attach(
        network,
        make(
            "forward_gradient_activity",
            {"copies": copies, "tangents": "orthogonal", "sites": sites},
        ),
    )
    found = gradients(engine, inputs, targets)
    check_equal(found, autograd(network, inputs, targets), 1e-12)


def test_the_readout_is_exact() -> None:
    inputs, targets = batch()
    truth = autograd(build("mlp"), inputs, targets)
    for name in ("forward_gradient_activity", "forward_gradient_weight", "likelihood_ratio"):
        found = gradients(attach(build("mlp"), make(name)), inputs, targets)
        last = [key for key in truth if key.startswith("4")]
        check_equal({key: found[key] for key in last}, {key: truth[key] for key in last}, 1e-12)
        assert (found["0.weight"] - truth["0.weight"]).abs().max() > 1e-3


def test_directions_of_parameters_are_not_stored() -> None:
    engine = attach(build("mlp"), ForwardGradientWeight(7))
    engine(*batch())
    assert engine._last is not None
    ((trace,), _) = engine._last
    assert trace.plan.parameter_tangents is not None
    assert len(set(trace.plan.parameter_tangents.seeds)) == 7
    held = [v for v in vars(trace.plan.parameter_tangents).values() if isinstance(v, Tensor)]
    assert not held and not list(engine.estimator.buffers())


class SignFlipped(ForwardGradientActivity):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((z, -delta) for z, delta in super().credit(traces, round))


class OtherExample(ForwardGradientActivity):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((z, delta.roll(1, 0)) for z, delta in super().credit(traces, round))


class BatchForgotten(ForwardGradientWeight):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((p, delta * round.batch) for p, delta in super().credit(traces, round))


class OtherDirection(ForwardGradientWeight):
    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((p, delta.flip(0)) for p, delta in super().credit(traces, round))


@pytest.mark.parametrize("broken", [SignFlipped, OtherExample, BatchForgotten, OtherDirection])
def test_broken_estimators_are_not_unbiased(broken: Callable[[int], Any]) -> None:
    inputs, targets = batch(32)
    engine = attach(build("mlp"), broken(20))
    with pytest.raises(AssertionError):
        check_unbiased(engine, inputs, targets, autograd(build("mlp"), inputs, targets))


# 3. Variances -------------------------------------------------------------------------------------

FAN_IN, FAN_OUT = 4, 6


def shallow() -> nn.Module:
    """One hidden layer without biases: ``p q`` parameters below the exact readout."""
    return drawn(nn.Sequential(nn.Linear(FAN_IN, FAN_OUT, bias=False), nn.Tanh(), nn.Linear(6, 3)))


def pool(rows: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Return examples, targets and the gradient ``[rows, p q]`` that each one gives."""
    inputs, _ = batch(rows, features=FAN_IN)
    targets = torch.ones(rows, dtype=torch.long)  # one class, so that the mean is not small
    per_row = [
        autograd(shallow(), inputs[i : i + 1], targets[i : i + 1])["0.weight"].flatten()
        for i in range(rows)
    ]
    return inputs, targets, torch.stack(per_row)


def law(count: float, rows: int, shared: bool, normal: bool = True) -> float:
    """Return the variance per element for ``count`` directions' dimensions, see the class."""
    _, _, truth = pool()
    spread = truth.var(0, correction=0).mean().item()
    square = truth.mean(0).square().mean().item()
    more, less = (count + 2, count + 1) if normal else (count, count - 1)
    return more / rows * spread + (less if shared else less / rows) * square


COPIES = 40


def sampled(estimator: Any, rows: int, steps: int) -> Tensor:
    """Return the first layer's estimates ``[draws, p q]`` for examples drawn from the pool.

    Each of the 40 copies of a step counts as an estimate of its own.
    """
    inputs, targets, _ = pool()
    engine, stream, found = attach(shallow(), estimator), generator(3), []
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (rows,), generator=stream)
        estimator.copies = COPIES
        engine(inputs[chosen], targets[chosen])
        assert engine._last is not None
        ((trace,), round) = engine._last
        estimator.copies = 1
        for copy in range(COPIES):
            ((_, credit),) = estimator.credit([single(trace, copy)], round)
            found.append(credit.T @ inputs[chosen] if trace.plan.tangents else credit)
    return torch.stack(found).flatten(1)


def single(trace: Trace, copy: int) -> Trace:
    """Return the trace of one copy's directions alone."""
    part, plan = slice(copy, copy + 1), trace.plan
    assert trace.slopes is not None
    if plan.tangents:
        plan = dataclasses.replace(plan, tangents={n: u[part] for n, u in plan.tangents.items()})
    if plan.parameter_tangents:
        own = dataclasses.replace(
            plan.parameter_tangents, seeds=plan.parameter_tangents.seeds[part], scales=(1.0,)
        )
        plan = dataclasses.replace(plan, parameter_tangents=own)
    return dataclasses.replace(trace, plan=plan, slopes=trace.slopes[part])


def sampled_rows(estimator: Any, rows: int, draws: int) -> Tensor:
    """Return the same in one step, for directions that are independent for each example."""
    inputs, targets, _ = pool()
    chosen = torch.randint(len(inputs), (rows * draws,), generator=generator(3))
    engine = attach(shallow(), estimator)
    engine(inputs[chosen], targets[chosen])
    assert engine._last is not None
    ((_, credit),) = estimator.credit(*engine._last)
    single = rows * draws * credit[:, :, None] * inputs[chosen][:, None]
    return single.view(draws, rows, -1).mean(1)


def check_variance(found: Tensor, expected: float) -> None:
    _, _, truth = pool()
    error = (found - truth.mean(0)).square().mean().item()
    assert error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("tangent", ["normal", "rademacher"])
def test_variance_of_independent_directions_on_activities(tangent: str) -> None:
    """``(q + 2)/N V + (q + 1)/N S``; for signs ``q/N V + (q - 1)/N S``."""
    found = sampled_rows(ForwardGradientActivity(tangents=tangent), 3, 5000)  # type: ignore[arg-type]
    check_variance(found, law(FAN_OUT, 3, False, tangent == "normal"))


def test_variance_of_shared_directions_on_activities() -> None:
    """``(q + 2)/N V + (q + 1) S``."""
    found = sampled(ForwardGradientActivity(shared=True), 3, 150)
    check_variance(found, law(FAN_OUT, 3, True))
    with pytest.raises(AssertionError):
        check_variance(found, law(FAN_OUT, 3, False))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_variance_of_shared_directions_on_weights(direction: str) -> None:
    """``(p q + 2)/N V + (p q + 1) S``: a batch shares its directions."""
    found = sampled(ForwardGradientWeight(directions=direction), 3, 70)  # type: ignore[arg-type]
    check_variance(found, law(FAN_IN * FAN_OUT, 3, True, direction == "normal"))


def test_variance_of_independent_directions_on_weights() -> None:
    """``(p q + 2)/N V + (p q + 1)/N S``: batches of one example, ``N`` of them accumulated."""
    found = sampled(ForwardGradientWeight(), 1, 90)
    check_variance(found, law(FAN_IN * FAN_OUT, 1, False))
    found = found.view(-1, 3, COPIES, FAN_IN * FAN_OUT).mean(1).flatten(0, 1)
    check_variance(found, law(FAN_IN * FAN_OUT, 3, False))


def test_copies_average() -> None:
    """``m`` directions divide the part of the variance that the directions make."""
    _, _, truth = pool()
    spread = truth.var(0, correction=0).mean().item()
    expected = spread / 3 + (law(FAN_OUT, 3, False) - spread / 3) / 4
    check_variance(sampled_rows(ForwardGradientActivity(4), 3, 3000), expected)


def test_each_site_by_itself_varies_less() -> None:
    """Other sites' units do not add to the slope."""
    inputs, targets = batch(16)
    truth = autograd(build("mlp"), inputs, targets)["0.weight"]
    errors = {}
    for sites in ("all", "each"):
        engine = attach(build("mlp"), ForwardGradientActivity(sites=sites))  # type: ignore[arg-type]
        found = [gradients(engine, inputs, targets)["0.weight"] for _ in range(300)]
        errors[sites] = (torch.stack(found) - truth).square().mean().item()
    assert errors["each"] < 0.9 * errors["all"]


# 4. Sparse directions -----------------------------------------------------------------------------


def test_sparse_credit_is_that_of_zero_directions_at_silent_units() -> None:
    """The slope does not know of directions at silent units: setting them to zero changes only
    the credit there."""
    network = drawn(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)))
    inputs, targets = batch(32)
    inputs = inputs - 0.5
    sparse, dense = (
        gradients(attach(network, ForwardGradientActivity(3, sparse=flag), seed=1), inputs, targets)
        for flag in (True, False)
    )
    kept = (network[0](inputs) > 0).double()  # type: ignore[operator]
    assert 0.2 < kept.mean() < 0.8
    engine = attach(network, ForwardGradientActivity(3), seed=1)
    engine(inputs, targets)
    assert engine._last is not None
    (trace,), round = engine._last
    assert trace.plan.tangents and trace.slopes is not None
    masked = {name: u * kept[:, None] for name, u in trace.plan.tangents.items()}
    run = engine.substrate.run(Plan(tangents=masked), inputs, targets, engine.objective)
    assert run.slopes is not None and torch.allclose(run.slopes, trace.slopes, rtol=1e-12)
    credit = (run.slopes[:, :, None] * masked["0"][:, :, 0]).mean(0) / round.batch
    assert torch.allclose(sparse["0.weight"], credit.T @ inputs, atol=1e-14)
    assert not torch.allclose(sparse["0.weight"], dense["0.weight"])


def test_sparse_directions_vary_less_than_dense_ones() -> None:
    network = drawn(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)))
    inputs, targets = batch(32)
    inputs = inputs - 0.5
    truth = autograd(network, inputs, targets)["0.weight"]
    errors = []
    for flag in (True, False):
        engine = attach(network, ForwardGradientActivity(sparse=flag))
        found = [gradients(engine, inputs, targets)["0.weight"] for _ in range(200)]
        errors.append((torch.stack(found) - truth).square().mean().item())
        engine.detach()
    assert errors[0] < 0.9 * errors[1]


def test_sparse_over_time() -> None:
    """In each bin the neurons that did not spike have no credit."""
    network = spiking("torch", {"hidden": (12,)}, encoding={"kind": "poisson"})
    engine = attach(network, ForwardGradientActivity(sparse=True, time_bin=4))
    engine(*batch())
    assert engine._last is not None
    traces, round = engine._last
    site = traces[-1].sites[engine.hidden[0]]
    ((_, credit),) = engine.estimator.credit(traces, round)
    assert site.activity is not None
    spikes = site.activity.unflatten(1, (-1, 4)).sum(2).repeat_interleave(4, 1)
    assert 0.05 < (spikes > 0).double().mean() < 0.95
    assert torch.equal(credit != 0, spikes > 0)


def test_sparse_needs_one_output_for_each_unit() -> None:
    network = drawn(
        nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 3),
        )
    )
    engine = attach(network, ForwardGradientActivity(sparse=True))
    with pytest.raises(CapabilityError, match="do not match one to one"):
        engine(*batch())


# 5. Guesses ---------------------------------------------------------------------------------------


def directions_of(engine: Engine) -> dict[str, Tensor]:
    """Return the directions of the last step, ``[B, ...]`` for each site."""
    assert engine._last is not None
    plan = engine._last[0][-1].plan
    assert plan.tangents
    return {name: part[0] for name, part in plan.tangents.items()}


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("auxiliary", [0, 7])
def test_a_guess_projects_the_gradient(guess: str, auxiliary: int) -> None:
    """``(<g, v> / |v|^2) v`` for each example, ``v`` over all sites."""
    inputs, targets = batch()
    engine = attach(
        build("mlp"),
        ForwardGradientActivity(tangents=guess, auxiliary=auxiliary),  # type: ignore[arg-type]
    )
    engine(inputs, targets)
    units = {name: part.flatten(1) for name, part in directions_of(engine).items()}
    both = torch.cat(list(units.values()), 1)
    assert torch.allclose(both.norm(dim=1), torch.ones(8, dtype=torch.float64))
    _, whole = trial(attach(build("mlp"), make("backprop")), lambda _: Plan())
    deltas = [
        torch.autograd.grad(whole.loss, whole.sites[n].visits[0].outputs[0], retain_graph=True)[0]
        for n in units
    ]
    expected = (torch.cat(deltas, 1) * both).sum(1, keepdim=True) * both
    assert engine._last is not None
    pairs = list(engine.estimator.credit(*engine._last))[: len(units)]
    assert torch.allclose(torch.cat([d for _, d in pairs], 1), expected, atol=1e-14)


def test_a_perfect_guess_is_the_gradient() -> None:
    """An auxiliary readout with the network's own weights guesses the gradient itself."""
    network = drawn(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)))
    inputs, targets = batch()
    for sites in ("all", "each"):
        estimator = ForwardGradientActivity(tangents="fixed_ntk", sites=sites)  # type: ignore[arg-type]
        engine = attach(network, estimator)
        engine.prepare(inputs, targets)
        (weight,) = estimator.tangents.buffers()
        found = gradients(engine, inputs, targets)
        truth = autograd(network, inputs, targets)
        assert (found["0.weight"] - truth["0.weight"]).abs().max() > 1e-3
        weight.copy_(network[2].weight.detach())  # type: ignore[arg-type]
        check_equal(gradients(engine, inputs, targets), truth, 1e-12)
        engine.detach()


def test_which_readouts_stay_and_which_learn() -> None:
    inputs, targets = batch()
    state, moved = {}, {}
    for guess in GUESSES:
        estimator = ForwardGradientActivity(tangents=guess)  # type: ignore[arg-type]
        engine = attach(build("mlp"), estimator)
        engine(inputs, targets)
        first = directions_of(engine)
        engine(inputs, targets)
        moved[guess] = any(not torch.equal(v, first[n]) for n, v in directions_of(engine).items())
        state[guess] = (len(list(estimator.parameters())), len(list(estimator.buffers())))
    assert moved == {"local": False, "ntk": True, "fixed_ntk": False}  # no optimiser has moved
    assert state == {"local": (2, 0), "ntk": (0, 0), "fixed_ntk": (0, 2)}


def test_auxiliary_readouts_learn_with_the_users_optimiser() -> None:
    """Their gradient is that of their own loss, and no credit of theirs reaches the network."""
    inputs, targets = batch(32)
    estimator = ForwardGradientActivity(tangents="local")
    engine = attach(build("mlp"), estimator)
    with pytest.raises(CapabilityError, match="prepare"):
        list(engine.parameters())
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(list(engine.parameters()), 1e-2)
    losses = []
    for _ in range(60):
        engine(inputs, targets).backward()
        assert engine._last is not None
        losses.append(sum(v.item() for v in estimator.tangents.losses(engine._last[0][0])))
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    restored = ForwardGradientActivity(tangents="local")
    other = attach(build("mlp"), restored, seed=5)
    other.prepare(inputs, targets)
    other.load_state(engine.state())
    for mine, theirs in zip(restored.parameters(), estimator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_guesses_over_time() -> None:
    """A guess points down the local loss of a recurrent spiking block, in every bin."""
    network = spiking("torch", {"recurrent": True}, encoding={"kind": "poisson"})
    engine = attach(network, ForwardGradientActivity(tangents="local", time_bin=5))
    found = gradients(engine, *batch())
    assert all(value.any() for name, value in found.items() if "weight" in name)
    assert {part.shape[1] for part in directions_of(engine).values()} == {4}


@pytest.mark.parametrize("settings", [{"copies": 2}, {"shared": True}])
def test_a_guess_is_one_direction(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="a guess is one direction"):
        make("forward_gradient_activity", {"tangents": "local"} | settings)


# 6. Local losses ----------------------------------------------------------------------------------


def wide() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 3)
        )
    )


def local_gradients(engine: Engine, inputs: Tensor, targets: Tensor) -> Gradients:
    """Return the gradients of network and heads."""
    engine.prepare(inputs, targets)
    for parameter in engine.parameters():
        parameter.grad = None
    engine(inputs, targets).backward()
    assert engine.local is not None
    return kept_gradients(engine.network) | kept_gradients(engine.local)


def local_engine(name: str, settings: dict[str, Any], **local: Any) -> Engine:
    return attach(wide(), make(name, settings), local=LocalLosses(**local))


LOCAL: dict[str, tuple[str, dict[str, Any]]] = {
    "activity": ("forward_gradient_activity", {"copies": 8}),
    "activity_each": ("forward_gradient_activity", {"copies": 4, "sites": "each"}),
    "activity_sparse": ("forward_gradient_activity", {"copies": 8, "sparse": True}),
    "weight": ("forward_gradient_weight", {"copies": 8}),
}


@pytest.mark.parametrize("cells", [pytest.param("block", marks=pytest.mark.slow), "group"])
@pytest.mark.parametrize("name", LOCAL)
def test_unbiased_with_local_losses(name: str, cells: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block takes the slope of its own loss; heads and readout have the exact gradient."""
    inputs, targets = batch(32)
    local = {"cells": cells, "groups": 2 if cells == "group" else 1, "sites": ("0", "2")}
    truth = local_gradients(local_engine("backprop", {}, **local), inputs, targets)
    monkeypatch.setattr("networks_for_tests.gradients", local_gradients)
    engine = local_engine(*LOCAL[name], **local)
    check_unbiased(engine, inputs, targets, truth)
    found = local_gradients(engine, inputs, targets)
    known = [key for key in truth if "heads" in key or key.startswith("5")]
    check_equal({key: found[key] for key in known}, {key: truth[key] for key in known}, 1e-12)
    assert len(known) == 6


def test_each_site_shares_its_pass_with_those_of_other_blocks() -> None:
    engine = local_engine("forward_gradient_activity", {"sites": "each"}, sites=("0", "2"))
    inputs, targets = batch()
    engine(inputs, targets)
    assert engine._last is not None and engine._last[0][-1].slopes is not None
    assert len(engine._last[0][-1].slopes) == 1  # 0 | 2 | 4: three losses, one pass
    engine = local_engine("forward_gradient_activity", {"sites": "each"}, sites=("2",))
    engine(inputs, targets)
    assert engine._last is not None and engine._last[0][-1].slopes is not None
    assert len(engine._last[0][-1].slopes) == 2  # 0, 2 | 4


def test_groups_vary_less_than_blocks() -> None:
    """The fewer units a loss depends on, the less its slope varies."""
    inputs, targets = batch(32)
    errors = {}
    for cells, groups in (("block", 1), ("group", 4)):
        local = {"cells": cells, "groups": groups, "sites": ("2",)}
        truth = local_gradients(local_engine("backprop", {}, **local), inputs, targets)["2.weight"]
        engine = local_engine("forward_gradient_activity", {"sites": "each"}, **local)
        found = [local_gradients(engine, inputs, targets)["2.weight"] for _ in range(100)]
        errors[cells] = (torch.stack(found) - truth).square().sum().item()
    assert errors["group"] < 0.5 * errors["block"]


PERTURBED: dict[str, tuple[str, dict[str, Any]]] = {
    "central_difference": ("weak", {"method": "central_difference", "copies": 37, "sigma": 1e-4}),
    "anchored": ("weak", {"method": "anchored", "copies": 25, "sigma": 1e-6}),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", PERTURBED)
def test_weak_gradients_take_local_losses(name: str, groups: int) -> None:
    inputs, targets = batch()
    local = {"sites": ("0", "2"), "cells": "block" if groups == 1 else "group", "groups": groups}
    truth = local_gradients(local_engine("backprop", {}, **local), inputs, targets)
    engine = local_engine(*PERTURBED[name], **local)
    check_equal(local_gradients(engine, inputs, targets), truth, 1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("weight_perturbation", {"copies": 33, "sigma": 1e-4}),
        ("likelihood_ratio", {"copies": 41, "sigma": 1e-3, "antithetic": True}),
        ("node_perturbation", {"copies": 41, "sigma": 1e-3}),
    ],
)
def test_perturbations_take_local_losses(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, targets = batch(32)
    truth = local_gradients(local_engine("backprop", {}, sites=("0", "2")), inputs, targets)
    monkeypatch.setattr("networks_for_tests.gradients", local_gradients)
    engine = local_engine(name, settings, sites=("0", "2"))
    check_unbiased(engine, inputs, targets, truth, 80)


def test_the_loss_of_the_outputs_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: slopes of the wrong loss."""
    monkeypatch.setattr(Round, "slopes", lambda _, trace, name: trace.slopes[..., None, None])
    inputs, targets = batch(32)
    truth = local_gradients(local_engine("backprop", {}, sites=("0", "2")), inputs, targets)
    monkeypatch.setattr("networks_for_tests.gradients", local_gradients)
    engine = local_engine("forward_gradient_activity", {"copies": 8}, sites=("0", "2"))
    with pytest.raises(AssertionError):
        check_unbiased(engine, inputs, targets, truth)


def test_settings_that_local_losses_refuse() -> None:
    inputs, targets = batch()
    with pytest.raises(CapabilityError, match="local heads have no tangents"):
        local_engine("forward_gradient_weight", {"readout": "forward"})(inputs, targets)
    with pytest.raises(CapabilityError, match="guesses are for the loss of the outputs"):
        local_engine("forward_gradient_activity", {"tangents": "local"})(inputs, targets)


# 7. Likelihood ratio ------------------------------------------------------------------------------

RATIOS: dict[str, dict[str, Any]] = {
    "none": {"baseline": "none", "sigma": 1.0},
    "leave_one_out": {},
    "clean": {"baseline": "clean"},
    "antithetic": {"antithetic": True},
    "noise_bits": {"bits": "noise"},
    "noise_bits_in_pairs": {"bits": "noise", "antithetic": True},
}


@pytest.mark.parametrize("name", RATIOS)
def test_likelihood_ratio_is_unbiased_on_a_linear_loss(name: str) -> None:
    inputs, targets = batch(32)
    network = drawn(linear_stack())
    truth = autograd(network, inputs, targets, linear_loss)
    engine = attach(network, LikelihoodRatio(33, **RATIOS[name]), loss=linear_loss)
    check_unbiased(engine, inputs, targets, truth)


def test_likelihood_ratio_without_its_score_is_noticed() -> None:
    class Squared(LikelihoodRatio):
        def seen(self, directions: Tensor) -> Tensor:
            return directions * directions.abs()

    inputs, targets = batch(32)
    network = drawn(linear_stack())
    truth = autograd(network, inputs, targets, linear_loss)
    with pytest.raises(AssertionError):
        check_unbiased(attach(network, Squared(33), loss=linear_loss), inputs, targets, truth)


def example_errors(estimator: LikelihoodRatio, rows: int = 12000) -> tuple[float, float, float]:
    """Return the mean squared error of one example's credit, ``|g|^2`` and ``L_0^2 / s^2``."""
    network = drawn(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    inputs, targets = batch(2)
    inputs, targets = inputs[1:].repeat(rows, 1), targets[1:].repeat(rows)
    engine = attach(network, estimator, loss=linear_loss)
    result = engine(inputs, targets)
    assert engine._last is not None
    traces, round = engine._last
    ((_, credit),) = estimator.credit(traces, round)
    table = torch.tensor([-0.5, 0.3, 1.1], dtype=torch.float64)
    truth = table @ network[1].weight.detach()  # type: ignore[operator]
    error = (credit * rows - truth).square().sum(1).mean().item()
    ratio = result.loss.item() / (estimator.sigma * round.scales[engine.hidden[0]])
    return error, truth.square().sum().item(), ratio**2


@pytest.mark.parametrize("copies", [5, 17])
def test_variance_of_the_likelihood_ratio(copies: int) -> None:
    """``[(d + 1)|g|^2 + d L_0^2 / s^2] / m``, without the second term with the clean baseline,
    ``(d + 1)|g|^2 / n`` for ``n = m / 2`` pairs; d = 8."""
    count = copies - 1
    error, square, ratio = example_errors(LikelihoodRatio(copies, baseline="none"))
    assert error == pytest.approx((9 * square + 8 * ratio) / count, rel=0.1)
    error, square, _ = example_errors(LikelihoodRatio(copies, baseline="clean"))
    assert error == pytest.approx(9 * square / count, rel=0.1)
    error, square, _ = example_errors(LikelihoodRatio(copies, antithetic=True))
    assert error == pytest.approx(9 * square / (count / 2), rel=0.1)
    error, square, _ = example_errors(LikelihoodRatio(copies, baseline="clean", bits="noise"))
    # E|L sgn(u)|^2 = d |g|^2, times pi/2; minus the squared mean
    assert error == pytest.approx((8 * math.pi / 2 - 1) * square / count, rel=0.1)


def test_one_bit_of_the_product() -> None:
    """The weight's gradient has the signs of the inputs; the bias's is that of one-bit noise."""
    inputs, targets = batch(8)
    inputs = inputs - 0.5
    network = drawn(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    found, noise, full = (
        gradients(attach(network, LikelihoodRatio(9, bits=bits), seed=2), inputs, targets)
        for bits in ("product", "noise", "all")  # type: ignore[arg-type]
    )
    engine = attach(network, LikelihoodRatio(9, bits="noise"), seed=2)
    engine(inputs, targets)
    assert engine._last is not None
    ((_, credit),) = engine.estimator.credit(*engine._last)
    signs = inputs.sign() * inputs.abs().mean(1, keepdim=True)
    assert torch.allclose(found["0.weight"], credit.T @ signs, atol=1e-14)
    assert torch.equal(found["0.bias"], noise["0.bias"])
    assert not torch.allclose(noise["0.bias"], full["0.bias"])
    assert torch.equal(found["2.weight"], full["2.weight"])
    (trace,), _ = engine._last
    assert trace.sites["0"].noise is not None
    directions = trace.sites["0"].noise[:, :, 0] / (0.2 * engine.scales["0"])
    centred = trace.losses[1:] - trace.losses[1:].mean(0)
    expected = (centred[..., None] * SIGN * directions.sign()).sum(0) / 7
    expected = expected / (0.2 * engine.scales["0"] * 8)
    assert torch.allclose(credit, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["grouped_convolution", "convolution_1d", "recurrent_cell"])
def test_one_bit_of_the_product_elsewhere(name: str) -> None:
    """With inputs whose sizes are all equal, their scaled signs are the inputs themselves."""
    inputs, targets = batch()
    inputs = 0.7 * torch.where(inputs > 0.5, 1.0, -1.0).double()
    found, noise = (
        gradients(attach(build(name), LikelihoodRatio(9, bits=bits), seed=2), inputs, targets)
        for bits in ("product", "noise")  # type: ignore[arg-type]
    )
    first = {"recurrent_cell": "feed"}.get(name, "1")
    for key in (f"{first}.weight", f"{first}.bias"):
        assert torch.allclose(found[key], noise[key], atol=1e-13), key
    if name != "convolution_1d":  # no second hidden layer, whose inputs have different sizes
        assert any(not torch.allclose(found[key], noise[key]) for key in found)


def test_ranks_know_only_the_order_of_the_losses() -> None:
    inputs, targets = batch()

    def bent(outputs: Tensor, targets: Tensor) -> Tensor:
        return linear_loss(outputs, targets).exp() * 3

    for name, settings in (
        ("likelihood_ratio", {"copies": 17, "shaping": "rank"}),
        ("likelihood_ratio", {"copies": 17, "shaping": "rank", "antithetic": True}),
        ("weak", {"copies": 17, "method": "rank"}),
    ):
        plain, curved = (
            gradients(
                attach(drawn(linear_stack()), make(name, settings), loss=loss), inputs, targets
            )
            for loss in (linear_loss, bent)
        )
        assert torch.equal(plain["0.weight"], curved["0.weight"]) and plain["0.weight"].any()
        truth = autograd(drawn(linear_stack()), inputs, targets, linear_loss)["0.weight"]
        assert (
            nn.functional.cosine_similarity(plain["0.weight"].flatten(), truth.flatten(), 0) > 0.3
        )


def test_ranks_in_weight_perturbation() -> None:
    """Ranks of the mean losses of all copies; losses a thousand times larger change nothing."""
    inputs, targets = batch()

    def large(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1000 * linear_loss(outputs, targets)

    plain, shaped, scaled = (
        gradients(
            attach(drawn(linear_stack()), WeightPerturbation(65, shaping=shaping), loss=loss),  # type: ignore[arg-type]
            inputs,
            targets,
        )
        for shaping, loss in (("none", linear_loss), ("rank", linear_loss), ("rank", large))
    )
    assert all(torch.equal(shaped[key], scaled[key]) for key in shaped)
    flat = [torch.cat([v.flatten() for v in part.values()]) for part in (plain, shaped)]
    assert nn.functional.cosine_similarity(*flat, 0) > 0.9
    assert not torch.allclose(*flat)


def test_ties_share_their_mean_rank() -> None:
    values = torch.tensor([[2.0, 5.0], [2.0, 1.0], [9.0, 5.0], [0.0, 5.0], [2.0, 7.0]])
    expected = torch.tensor([[2.0, 2.0], [2.0, 0.0], [4.0, 2.0], [0.0, 2.0], [2.0, 4.0]]) / 4 - 0.5
    assert torch.equal(centred_ranks(values), expected)


def test_likelihood_ratio_on_a_simulator() -> None:
    """Brian2 gives losses and takes noise: all that is needed."""
    inputs, targets = batch(4)
    network = opaque()
    engine = attach(network, LikelihoodRatio(9, 1.0, bits="product"))
    found = gradients(engine, inputs, targets)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found["blocks.0.synapse.weight"].any()
    engine.detach()
    for name, missing in (("activity", "jvp_site"), ("weight", "jvp_parameter")):
        with pytest.raises(CapabilityError, match=missing):
            attach(network, make(f"forward_gradient_{name}"))


def test_one_bit_of_the_product_behind_decorrelation() -> None:
    """The layer's response to its signed input is taken behind the decorrelating matrix."""
    inputs, targets = batch()
    inputs = 0.7 * torch.where(inputs > 0.5, 1.0, -1.0).double()
    found = []
    for bits in ("product", "noise"):
        decorrelation = biograd.Decorrelation(rate=0.05)
        engine = attach(build("mlp"), LikelihoodRatio(9, bits=bits), decorrelation, seed=2)  # type: ignore[arg-type]
        for _ in range(3):
            gradients(engine, inputs, targets)
            engine.update()
        matrix = next(iter(decorrelation.matrices.values()))[0]
        assert (matrix - torch.eye(6)).abs().max() > 1e-3
        found.append(gradients(engine, inputs, targets)["0.weight"])
    assert torch.allclose(found[0], found[1], atol=1e-13)


def test_every_kind_of_direction_can_be_named_in_a_recipe() -> None:
    for name in TANGENTS:
        assert isinstance(ForwardGradientActivity(tangents=name).tangents, TANGENTS[name])
    for name in DIRECTIONS:
        assert ForwardGradientWeight(directions=name).directions == name
    for rule, key in ((ForwardGradientActivity, "tangents"), (ForwardGradientWeight, "directions")):
        with pytest.raises(RecipeError, match=f"{key} = 'norml': did you mean 'normal'"):
            rule(**{key: "norml"})


# 8. Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["forward_gradient_activity", "forward_gradient_weight", "likelihood_ratio"]
)
def test_batch_normalisation_is_refused(name: str) -> None:
    assert "batch_norm" in RANDOM
    with pytest.raises(CapabilityError, match="BatchNorm1d"):
        attach(build("batch_norm"), make(name))


def test_pairs_need_an_odd_number_of_copies() -> None:
    with pytest.raises(RecipeError, match="odd number"):
        make("likelihood_ratio", {"copies": 8, "antithetic": True})


def test_more_orthogonal_directions_than_units() -> None:
    engine = attach(build("mlp"), ForwardGradientActivity(10, "orthogonal"))
    with pytest.raises(RecipeError, match="orthogonal"):
        engine(*batch())


def test_a_product_needs_the_layers_own_output() -> None:
    network = drawn(nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)))
    sites = [
        Site("hidden", ("0",), (False,), current="1"),
        Site("readout", ("3",), (False,)),
    ]
    engine = attach(network, LikelihoodRatio(5, bits="product"), sites=sites)
    with pytest.raises(CapabilityError, match="take bits = 'noise'"):
        engine(*batch())
