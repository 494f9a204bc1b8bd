"""Statistics of a comparison, against scipy, enumeration and hand calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from biograd.studies.results.statistics import holm, interval, paired, sign_flip

FIRST = [96.1, 97.2, 95.8, 96.9, 97.4]
SECOND = [95.0, 97.0, 95.1, 95.2, 96.9]


def test_paired_agrees_with_scipy() -> None:
    found = paired(FIRST, SECOND)
    expected = stats.ttest_rel(FIRST, SECOND)
    assert found.mean == pytest.approx(np.mean(FIRST) - np.mean(SECOND))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    differences = np.subtract(FIRST, SECOND)
    approximate = (1 - 3 / (4 * 4 - 1)) * differences.mean() / differences.std(ddof=1)
    assert found.effect == pytest.approx(approximate, rel=0.01)
    factor = 1 / (math.gamma(1.5) * math.sqrt(2))  # G(2) / (G(3/2) sqrt 2)
    exact = factor * differences.mean() / differences.std(ddof=1)
    assert found.effect == pytest.approx(exact, rel=1e-12)
    assert found.pairs == 5
    # an unpaired test sees less: the pairs matter
    assert found.p is not None and found.p < stats.ttest_ind(FIRST, SECOND).pvalue / 2


def test_exchange_turns_the_sign() -> None:
    one, other = paired(FIRST, SECOND), paired(SECOND, FIRST)
    assert other.mean == pytest.approx(-one.mean)
    assert other.p == pytest.approx(one.p) and other.p_exact == one.p_exact
    assert one.interval is not None and other.interval is not None
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_sign_flip_agrees_with_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(0.8, 1.0, count)
    expected = stats.permutation_test(
        (values, np.zeros(count)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="two-sided",
        vectorized=True,
    )
    assert sign_flip(values) == pytest.approx(expected.pvalue)
    assert sign_flip(values) >= 2 / 2**count


def test_sign_flip_of_many_pairs_draws() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 30)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_interval_of_three_values_by_hand() -> None:
    reach = 4.302652729911275 * math.sqrt(7 / 3) / math.sqrt(3)  # t(.975; 2), s^2 = 7/3
    assert interval([1.0, 2.0, 4.0]) == pytest.approx((7 / 3 - reach, 7 / 3 + reach))
    assert interval([1.0]) is None and interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_interval_covers_what_it_promises(count: int) -> None:
    """The mean of normal values lies in 95 % of the intervals, and in fewer of the bootstrap's."""
    stream = np.random.default_rng(count)
    samples = stream.normal(3.0, 1.0, (4000, count))
    found = np.array([interval(sample) for sample in samples])
    assert 100 * _covered(found) == pytest.approx(95.0, abs=1.5)
    draws = samples[:, stream.integers(count, size=(400, count))].mean(2)
    bootstrap = np.percentile(draws, [2.5, 97.5], axis=1).T
    assert _covered(bootstrap) < 0.92  # the negative control: percentiles of resampled means


def test_interval_of_differences_covers() -> None:
    stream = np.random.default_rng(0)
    seeds, ours, theirs = (stream.normal(0.0, s, (2000, 5)) for s in (3.0, 1.0, 0.5))
    pairs = zip(seeds + ours + 2.0, seeds + theirs, strict=True)
    found = np.array([paired(one, other).interval for one, other in pairs])
    assert 100 * np.mean((found[:, 0] <= 2.0) & (found[:, 1] >= 2.0)) == pytest.approx(95, abs=1.5)


def _covered(found: np.ndarray) -> float:
    return float(np.mean((found[:, 0] <= 3.0) & (found[:, 1] >= 3.0)))


@pytest.mark.parametrize("values", [[0.04, 0.01, 0.03, 0.005], [0.5, 0.6, 0.9], [0.2]])
def test_holm_by_hand(values: list[float]) -> None:
    order = np.argsort(values)
    expected = np.empty(len(values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, values[place] * (len(values) - rank)))
        expected[place] = running
    assert holm(values) == pytest.approx(expected)
    assert all(h is not None and h >= v for h, v in zip(holm(values), values, strict=True))


def test_what_cannot_be_tested_is_not() -> None:
    single = paired([97.0], [96.0])
    assert (single.mean, single.interval, single.p, single.effect) == (1.0, None, None, None)
    same = paired([97.0, 95.0], [97.0, 95.0])
    assert (same.mean, same.p, same.effect) == (0.0, 1.0, None)
    constant = paired([97.0, 95.0, 96.0], [96.0, 94.0, 95.0])
    assert constant.p == constant.p_exact == 0.25 and constant.effect is None
    with pytest.raises(ValueError, match="make no pairs"):
        paired([1.0], [])
