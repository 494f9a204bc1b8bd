"""Noise of all parameters: its moments, what is kept of it, and the sums that follow from it."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks_for_tests import batch, build, gradients
from torch import Tensor, nn

import biograd
from biograd.contracts import parameter_noise as noises
from biograd.contracts.parameter_noise import NUMBERS, Factors, ParameterNoise, dense, perturb
from biograd.engine import attach
from biograd.engine.step_result import surface
from biograd.errors import RecipeError

KINDS = [("normal", 0), ("rademacher", 0), ("normal", 1), ("normal", 3), ("rademacher", 2)]


def shapes() -> list[Tensor]:
    return [torch.zeros(5, 4), torch.zeros(5), torch.zeros(3, 2, 2, 2), torch.zeros(())]


def flat(noise: ParameterNoise, copy: int, like: list[Tensor]) -> Tensor:
    return torch.cat(
        [dense(draw, p).flatten() for draw, p in zip(noise.draw(copy, like), like, strict=True)]
    )


@pytest.mark.parametrize(("kind", "rank"), KINDS)
def test_elements_have_mean_zero_variance_one_and_no_correlation(kind: str, rank: int) -> None:
    count, like = 8000, shapes()
    noise = ParameterNoise(tuple(range(count)), (1.0,) * count, kind, rank)  # type: ignore[arg-type]
    drawn = torch.stack([flat(noise, copy, like) for copy in range(count)])
    noise.forget()
    assert drawn.mean(0).abs().max() < 5 / count**0.5
    moments = drawn.T @ drawn / count
    spread = (drawn.square().T @ drawn.square() / count).sqrt() / count**0.5
    assert ((moments - torch.eye(len(moments))).abs() <= 5.5 * spread + 1e-6).all()
    if kind == "rademacher" and not rank:
        assert set(drawn.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("rank", [1, 4])
def test_the_mean_square_of_low_rank_estimates_follows_the_law(rank: int) -> None:
    """``E |(g . v) v|^2 = (P + 2 + 2 (m + n + 1) / r) |g|^2`` in a matrix ``m x n``."""
    m, n, count = 5, 4, 40000
    stream = torch.Generator().manual_seed(0)
    left = torch.randn(count, m, rank, generator=stream, dtype=torch.float64)
    right = torch.randn(count, rank, n, generator=stream, dtype=torch.float64)
    v = (left @ right).flatten(1) / rank**0.5
    g = torch.randn(m * n, generator=stream, dtype=torch.float64)
    found = (v @ g).square() * v.square().sum(1)
    expected = (m * n + 2 + 2 * (m + n + 1) / rank) * g.square().sum()
    assert abs(found.mean() - expected) < 4 * found.std() / count**0.5


def test_signs_take_every_bit_once() -> None:
    stream = torch.Generator().manual_seed(3)
    found = NUMBERS["rademacher"]((70_001,), stream, torch.float32)
    assert found.shape == (70_001,) and set(found.tolist()) == {-1.0, 1.0}
    assert found.mean().abs() < 0.02
    lags = [float((found[:-lag] * found[lag:]).mean()) for lag in (1, 8, 56, 64)]
    assert max(map(abs, lags)) < 0.02
    again = NUMBERS["rademacher"]((70_001,), torch.Generator().manual_seed(3), torch.float32)
    assert torch.equal(found, again)


@pytest.mark.parametrize(("kind", "rank"), KINDS)
def test_what_is_not_kept_is_drawn_again_the_same(
    kind: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    like, seeds = shapes(), (5, 5, 6, 6, 7, 7)

    def drawn() -> list[Tensor]:
        noise = ParameterNoise(seeds, (1.0, -1.0) * 3, kind, rank)  # type: ignore[arg-type]
        return [flat(noise, copy, like) for copy in (0, 1, 2, 3, 4, 5, 0, 2, 4)]

    found = drawn()
    monkeypatch.setattr(noises, "MOST_BYTES", 1)
    for one, other in zip(found, drawn(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    like = [torch.zeros(100)]
    monkeypatch.setattr(noises, "MOST_BYTES", 1000)  # two draws of 400 bytes
    noise = ParameterNoise(tuple(range(6)), (1.0,) * 6)
    for copy in range(6):
        noise.draw(copy, like)
        assert len(noise._kept) <= 2
    noise.forget()
    assert not noise._kept


@pytest.mark.parametrize(("kind", "rank"), KINDS)
def test_totals_are_weighted_sums(kind: str, rank: int) -> None:
    like = [p.double() for p in shapes()]
    noise = ParameterNoise((1, 2, 3), (1.0,) * 3, kind, rank)  # type: ignore[arg-type]
    weights = {0: [0.5, 1.0, -2.0, 3.0], 2: [1.5, -1.0, 0.25, 1.0]}
    expected = [
        sum(
            share[place] * dense(noise.draw(copy, like)[place], p)
            for copy, share in weights.items()
        )
        for place, p in enumerate(like)
    ]
    for found, sought in zip(noise.total(like, weights), expected, strict=True):
        torch.testing.assert_close(found, sought, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 2])
def test_parameters_are_set_to_value_plus_noise(dtype: torch.dtype, rank: int) -> None:
    value = torch.randn(6, 4).to(dtype)
    for parameter in (value.clone(), value.clone().T.contiguous().T):  # in either order of memory
        (draw,) = ParameterNoise((1,), (1.0,), "normal", rank).draw(0, [value])
        assert isinstance(draw, Factors) == bool(rank)
        perturb(parameter, value, draw, -0.3)
        expected = (value - 0.3 * dense(draw, value)).to(dtype)
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize("rule", [biograd.WeightPerturbation, biograd.ForwardGradientWeight])
@pytest.mark.parametrize(("directions", "rank"), KINDS)
def test_estimates_are_sums_of_slopes_times_directions(
    rule: type, directions: str, rank: int
) -> None:
    """For a loss that is linear in the weights, ``(g . v) v``, the mean over directions."""
    network, (inputs, targets) = nn.Sequential(nn.Linear(6, 3)).double(), batch()
    inputs, kept = inputs[:, :6], {}
    truth = torch.autograd.grad(network(inputs).square().sum(1).mean(), [*network.parameters()])
    settings = {"directions": directions, "rank": rank}
    settings |= (
        {"copies": 5, "sigma": 1e-4}
        if rule is biograd.WeightPerturbation
        else {"copies": 2, "readout": "forward"}
    )
    engine = attach(network, rule(**settings), loss=lambda o, _: o.square().sum(1))
    drawn = ParameterNoise.total

    def total(self: ParameterNoise, parameters: list[Tensor], weights: dict) -> list[Tensor]:
        kept["noise"] = dataclass_copy(self)
        return drawn(self, parameters, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterNoise, "total", total)
        found = gradients(engine, inputs, targets)
    noise, parameters = kept["noise"], [*network.parameters()]
    copies = range(0, len(noise.seeds), 2 if rule is biograd.WeightPerturbation else 1)
    expected = [torch.zeros_like(p) for p in parameters]
    for copy in copies:
        draws = [dense(d, p) for d, p in zip(noise.draw(copy, parameters), parameters, strict=True)]
        slope = sum((g * d).sum() for g, d in zip(truth, draws, strict=True)) / len(copies)
        for value, draw in zip(expected, draws, strict=True):
            value += slope * draw
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def dataclass_copy(noise: ParameterNoise) -> ParameterNoise:
    return ParameterNoise(noise.seeds, noise.scales, noise.kind, noise.rank)


@pytest.mark.parametrize("rule", [biograd.WeightPerturbation, biograd.ForwardGradientWeight])
def test_wrong_settings_are_refused(rule: type) -> None:
    with pytest.raises(RecipeError, match="rank"):
        rule(rank=-1)
    with pytest.raises(RecipeError, match="directions = 'sign'"):
        rule(directions="sign")


def test_the_surface_hands_cotangents_back() -> None:
    """As ``loss + sum <z, delta> - its value``, scaled and summed as any loss."""
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y, frozen = torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(4)
    z, loss = x * 2, (x.sum() * y.sum()).square()
    pairs = [
        (z, torch.randn(3, 4)),
        (y, torch.randn(1).expand(4)),
        (frozen, frozen),
        (y, y.detach()),
    ]
    product = sum((t * c.to(t.dtype)).sum() for t, c in pairs[:2]) + (y * y.detach()).sum()
    for scale, repeat in itertools.product((1.0, 0.25), (1, 2)):
        found = surface(loss, pairs)
        assert torch.equal(found, loss)
        expected = torch.autograd.grad(scale * repeat * (loss + product), (x, y), retain_graph=True)
        given = torch.autograd.grad(scale * repeat * found, (x, y), retain_graph=True)
        for one, other in zip(given, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "grouped_convolution"])
def test_low_rank_noise_trains_every_kind_of_layer(name: str) -> None:
    engine = attach(build(name), biograd.WeightPerturbation(copies=9, rank=1))
    found = gradients(engine, *batch())
    assert all(value.any() for value in found.values())
