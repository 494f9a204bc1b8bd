"""The regressions on synthetic losses: expectations, variance laws, published figures, limits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from biograd.engine import attach
from biograd.errors import RecipeError
from biograd.estimators import WeakGradient, loss_regression
from biograd.estimators.loss_regression import METHODS, Regression
from biograd.randomness import generator

DIMENSIONS = 64
UNBIASED = ("score", "baseline", "leave_one_out", "antithetic")
EXACT = {
    "least_squares": 70,
    "anchored": 70,
    "quadratic": 140,
    "finite_difference": 64,
    "central_difference": 128,
    "orthogonal": 64,
}
"""Number of noisy copies from which a method finds the slope of a linear loss exactly."""


@dataclasses.dataclass(frozen=True)
class World:
    """``L = offset + sigma g.u + sigma^2 u.H.u / 2 + tau n``, the clean copy's ``n`` included."""

    tau: float = 0.0
    sigma: float = 1.0
    offset: float = 2.3
    hessian: Tensor | None = None


PLAIN, NOISY = World(), World(tau=0.02, sigma=0.1)


def trials(
    method: str, copies: int, rows: int, world: World = PLAIN, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, directions and gradients of norm 1 of ``rows`` independent trials."""
    tau, sigma, offset, hessian = world.tau, world.sigma, world.offset, world.hessian
    stream = generator(seed, method, copies, tau)
    directions = METHODS[method][0]((copies, rows, DIMENSIONS), stream, torch.float64)
    gradient = torch.randn(rows, DIMENSIONS, generator=stream, dtype=torch.float64)
    gradient = gradient / gradient.norm(dim=1, keepdim=True)
    losses = offset + sigma * torch.einsum("mnd,nd->mn", directions, gradient)
    if hessian is not None:
        curved = torch.einsum("mnd,de->mne", directions, hessian)
        losses = losses + sigma**2 / 2 * (curved * directions).sum(-1)
    losses = torch.cat((torch.full_like(losses[:1], offset), losses))
    noise = torch.randn(losses.shape, generator=stream, dtype=torch.float64)
    return losses + tau * noise, directions, gradient


def estimate(
    method: str, copies: int, rows: int, world: World = PLAIN, rule: Regression | None = None
) -> tuple[Tensor, Tensor]:
    """Return estimated and true gradients ``[rows, D]``; the ridge is Bayes' for a noisy loss."""
    losses, directions, truth = trials(method, copies, rows, world)
    ridge = (world.tau / world.sigma) ** 2 or 0.1
    return (rule or METHODS[method][1])(losses, directions, ridge) / world.sigma, truth


def anchored_ridge(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Ridge through the clean loss: with every row mirrored the intercept vanishes."""
    change = losses[1:] - losses[:1]
    mirrored = torch.cat((torch.zeros_like(change[:1]), change, -change))
    both = torch.cat((directions, -directions))
    return loss_regression.ridge_regression(mirrored, both, 2 * ridge)


def antithetic_least_squares(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    half = (losses[1::2] - losses[2::2]) / 2
    return loss_regression.anchored(
        torch.cat((torch.zeros_like(half[:1]), half)), directions[::2], 0
    )


def traceless(norm: float) -> Tensor:
    """Return a Hessian of this Frobenius norm and trace 0."""
    values = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator(0, "H"), dtype=torch.float64)
    values = values + values.T
    values = values - torch.eye(DIMENSIONS, dtype=torch.float64) * values.trace() / DIMENSIONS
    return values * (norm / values.norm())


def cosine(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the mean cosine over the trials and its standard error."""
    values = torch.nn.functional.cosine_similarity(found, truth)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def error(found: Tensor, truth: Tensor) -> float:
    return (found - truth).square().sum(1).mean().item()


def slope(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the mean of estimate . truth and its standard error."""
    values = (found * truth).sum(1)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def test_every_method_is_covered() -> None:
    assert METHODS and {*UNBIASED, *EXACT, "ridge", "rank"} == set(METHODS)


@pytest.mark.parametrize("method", UNBIASED)
def test_unbiased(method: str) -> None:
    found, truth = estimate(method, 64, 4000, World(offset=0.5))
    mean, standard = slope(found, truth)
    assert abs(mean - 1) < min(4 * standard, 0.05)
    # and nothing in any other direction
    rest = found - truth
    assert (rest.mean(0).abs() <= 4.5 * rest.std(0) / math.sqrt(len(found))).all()


def test_a_wrong_sign_is_noticed() -> None:
    found, truth = estimate("baseline", 64, 4000)
    assert abs(slope(-found, truth)[0] - 1) > 1


@pytest.mark.parametrize("method", EXACT)
def test_exact_on_a_linear_loss(method: str) -> None:
    found, truth = estimate(method, EXACT[method], 8)
    assert (found - truth).abs().max() < 1e-9


@pytest.mark.parametrize("copies", [8, 32, 48])
@pytest.mark.parametrize("method", ["orthogonal", "finite_difference", "least_squares", "anchored"])
def test_projection_keeps_its_share(method: str, copies: int) -> None:
    """``E[g_hat.g] = k/d |g|^2``; projections also have squared length ``k/d``."""
    found, truth = estimate(method, copies, 400)
    mean, standard = slope(found, truth)
    assert abs(mean - copies / DIMENSIONS) < 4 * standard
    power = found.square().sum(1)
    assert abs(power.mean() - copies / DIMENSIONS) < 4 * power.std() / math.sqrt(len(power))


@pytest.mark.parametrize("copies", [16, 64, 100])
def test_ridge_solves_its_normal_equations(copies: int) -> None:
    """Both of its systems against the direct solution with an intercept column."""
    losses, directions, _ = trials("ridge", copies, 5, World(tau=0.3))
    found = loss_regression.ridge_regression(losses, directions, 0.1)
    penalty = torch.full((DIMENSIONS + 1,), 0.1 * DIMENSIONS, dtype=torch.float64)
    penalty[0] = 0
    for row in range(5):
        design = torch.nn.functional.pad(directions[:, row], (1, 0, 1, 0))
        design[:, 0] = 1
        right = design.T @ losses[:, row]
        solution = torch.linalg.solve(design.T @ design + torch.diag(penalty), right)
        assert (found[row] - solution[1:]).abs().max() < 1e-10


@pytest.mark.parametrize("copies", [16, 100])
def test_ridge_without_penalty_is_least_squares(copies: int) -> None:
    losses, directions, _ = trials("ridge", copies, 5, World(tau=0.3))
    ridge = loss_regression.ridge_regression(losses, directions, 0.0)
    assert (ridge - loss_regression.least_squares(losses, directions, 0.0)).abs().max() < 1e-8


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"score"}))
def test_a_constant_added_to_all_losses_changes_nothing(method: str) -> None:
    losses, directions, _ = trials(method, EXACT.get(method, 8), 3)
    rule = METHODS[method][1]
    shifted = rule(losses + 8.0, directions, 0.1)
    assert (shifted - rule(losses, directions, 0.1)).abs().max() < 1e-8
    assert not rule(torch.zeros_like(losses) + 3, directions, 0.1).any()  # equal losses say nothing


def test_rank_is_the_gaussian_mean_of_ranks() -> None:
    """``E[rank z] = E[phi(z)] = 1/(2 sqrt(pi))``, whatever the scale of the losses."""
    losses, directions, truth = trials("rank", 16, 3000)
    found = loss_regression.rank(losses, directions, 0.0)
    mean, standard = slope(found, truth)
    assert abs(mean - 1 / (2 * math.sqrt(math.pi))) < 4 * standard
    assert torch.equal(found, loss_regression.rank(losses.exp(), directions, 0.0))


# Variance laws, each within 10 % --------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("copies", [8, 64])
def test_error_of_score(copies: int, tau: float) -> None:
    found, truth = estimate("score", copies, 800, World(tau, 0.5))
    law = ((DIMENSIONS + 1) + DIMENSIONS * (2.3**2 + tau**2) / 0.5**2) / copies
    assert error(found, truth) == pytest.approx(law, rel=0.1)


@pytest.mark.parametrize(("tau", "norm"), [(0.0, 0.0), (0.1, 0.0), (0.0, 4.0), (0.1, 8.0)])
@pytest.mark.parametrize("copies", [8, 64])
def test_error_of_baseline(copies: int, tau: float, norm: float) -> None:
    """The clean copy's noise is shared, but ``n_0 mean(u)`` is as long as a mean of ``n_s u``."""
    sigma = 0.3
    world = World(tau, sigma, hessian=traceless(norm))
    found, truth = estimate("baseline", copies, 800, world)
    extra = 2 * tau**2 + sigma**4 * norm**2 / 2
    law = ((DIMENSIONS + 1) + DIMENSIONS * extra / sigma**2) / copies
    assert error(found, truth) == pytest.approx(law, rel=0.1)


@pytest.mark.parametrize("norm", [0.0, 8.0])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_error_of_antithetic(tau: float, norm: float) -> None:
    """Curvature drops out of the differences."""
    sigma, pairs = 0.3, 16
    world = World(tau, sigma, hessian=traceless(norm))
    found, truth = estimate("antithetic", 2 * pairs, 1000, world)
    law = (DIMENSIONS + 1) / pairs + DIMENSIONS * tau**2 / (2 * sigma**2 * pairs)
    assert error(found, truth) == pytest.approx(law, rel=0.1)


@pytest.mark.parametrize(("copies", "rows"), [(128, 250), (256, 100)])
@pytest.mark.parametrize("norm", [0.0, 4.0])
def test_error_of_least_squares(copies: int, rows: int, norm: float) -> None:
    """``(tau^2 + sigma^4 |H|^2 / 2) / sigma^2 d / (m - d - 1)``."""
    world = World(tau=0.02, sigma=0.1, hessian=traceless(norm))
    found, truth = estimate("least_squares", copies, rows, world)
    extra = (0.02**2 + 0.1**4 * norm**2 / 2) / 0.1**2
    law = extra * DIMENSIONS / (copies - DIMENSIONS - 1)
    assert error(found, truth) == pytest.approx(law, rel=0.1)
    if not norm:  # the published errors
        assert error(found, truth) == pytest.approx({128: 0.041, 256: 0.0136}[copies], rel=0.05)


def test_diagonal_curvature() -> None:
    """``quadratic`` removes it; a forward difference has half of it as bias."""
    hessian = torch.diag(torch.linspace(-2, 3, DIMENSIONS, dtype=torch.float64))
    found, truth = estimate("quadratic", 140, 4, World(sigma=0.5, hessian=hessian))
    assert (found - truth).abs().max() < 1e-8
    linear, truth = estimate("least_squares", 140, 4, World(sigma=0.5, hessian=hessian))
    assert (linear - truth).abs().max() > 1e-2
    found, truth = estimate("finite_difference", DIMENSIONS, 4, World(sigma=0.1, hessian=hessian))
    assert (found - truth - 0.05 * hessian.diagonal()).abs().max() < 1e-10
    world = World(sigma=0.1, hessian=hessian)
    found, truth = estimate("central_difference", 2 * DIMENSIONS, 4, world)
    assert (found - truth).abs().max() < 1e-10


# Published figures: d = 64, |g| = 1, L_0 = 2.3 -------------------------------------------------

FIGURES = [
    *(("baseline", m, figure, PLAIN, None) for m, figure in ((8, 0.335), (32, 0.579), (64, 0.710))),
    *(("anchored", m, figure, PLAIN, None) for m, figure in ((8, 0.352), (32, 0.708), (64, 1.000))),
    ("anchored", 64, 0.278, NOISY, None),  # the peak at m = d
    ("ridge", 64, 0.864, NOISY, anchored_ridge),
    ("least_squares", 128, 0.980, NOISY, None),
    ("least_squares", 256, 0.993, NOISY, None),
    ("antithetic", 128, 1.000, World(sigma=0.3, hessian=traceless(4.0)), antithetic_least_squares),
]
SAMPLE = 64
"""Trials that a published figure is taken to be the mean of: it has a standard error, too."""


@pytest.mark.parametrize(("method", "copies", "figure", "world", "rule"), FIGURES)
def test_published_cosines(
    method: str, copies: int, figure: float, world: World, rule: Regression | None
) -> None:
    """Within 2 standard errors, those of the figure (64 trials) and ours, and its rounding."""
    rows = 400
    found, truth = estimate(method, copies, rows, world, rule)
    mean, standard = cosine(found, truth)
    assert abs(mean - figure) < 2 * standard * math.sqrt(1 + rows / SAMPLE) + 0.0005


def test_expected_cosines() -> None:
    """``cos^2`` is Beta(m/2, (d-1)/2) for the baseline, Beta(m/2, (d-m)/2) for the projection."""
    for method, other in (("baseline", DIMENSIONS - 1), ("anchored", None)):
        for copies in (8, 32):
            a, b = copies / 2, (other or DIMENSIONS - copies) / 2
            rise = math.lgamma(a + 0.5) - math.lgamma(a)
            law = math.exp(rise + math.lgamma(a + b) - math.lgamma(a + b + 0.5))
            mean, standard = cosine(*estimate(method, copies, 800))
            assert abs(mean - law) < 3 * standard


def test_ridge_with_intercept_is_better_than_through_a_noisy_clean_loss() -> None:
    """No peak at m = d: .900 against .864 (noise of the clean loss) and .3 (least squares)."""
    mean, _ = cosine(*estimate("ridge", 64, 500, NOISY))
    through, _ = cosine(*estimate("ridge", 64, 500, NOISY, anchored_ridge))
    assert mean == pytest.approx(0.900, abs=0.004)
    assert through == pytest.approx(0.866, abs=0.006)


def test_orthonormal_directions_are_uniform() -> None:
    directions = loss_regression.orthonormal((3, 4000, 5), generator(0), torch.float64)
    gram = torch.einsum("mbd,nbd->bmn", directions, directions)
    assert (gram - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12
    assert directions[0].mean(0).abs().max() < 4 / math.sqrt(5 * 4000)
    assert (directions[0].square().mean(0) - 0.2).abs().max() < 0.02


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_float32_agrees(method: str, dtype: torch.dtype) -> None:
    losses, directions, _ = trials(method, EXACT.get(method, 8), 3)
    found = METHODS[method][1](losses.to(dtype), directions.to(dtype), 0.1)
    reference = METHODS[method][1](losses, directions, 0.1)
    assert found.dtype == dtype
    assert (found - reference).abs().max() < 1e-4 * max(1, reference.abs().max())


@pytest.mark.parametrize("method", ["least_squares", "anchored"])
@pytest.mark.parametrize("copies", [10, 11, 12])
def test_the_peak_without_ridge_is_refused(method: str, copies: int) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.Linear(10, 3))
    inputs, targets = torch.randn(5, 4), torch.arange(5) % 3
    with pytest.raises(RecipeError, match="its error peaks there; take method = 'ridge'"):
        attach(network, WeakGradient(copies=copies, method=method))(inputs, targets)
    for other in (8, 16):
        attach(network, WeakGradient(copies=other, method=method)).prepare(inputs, targets)
    attach(network, WeakGradient(copies=copies)).prepare(inputs, targets)
