"""Analyses on arrays: against Elephant, rsatoolbox, scikit-learn, scipy, and by hand."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats

from biograd.analyses import (
    answers,
    decoding,
    dissimilarity,
    implied_loss,
    recorded,
    selectivity,
    similarity,
    spike_trains,
    weights,
)
from biograd.errors import MissingExtraError, RecipeError

TRIALS, UNITS, DURATION = 12, 9, 200.0
close = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def spikes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, units and trials; unit 0 is silent, unit 1 fires once a trial."""
    stream = np.random.default_rng(0)
    rows = [
        (time, unit, trial)
        for trial in range(TRIALS)
        for unit in range(2, UNITS)
        for time in stream.choice(np.arange(1, int(DURATION)), stream.integers(2, 12), False)
    ]
    rows += [(10.0, 1, trial) for trial in range(TRIALS)]
    table = np.array(rows, float)[stream.permutation(len(rows))]
    return table[:, 0], table[:, 1].astype(int), table[:, 2].astype(int)


def trains(spikes: Any, unit: int) -> list[np.ndarray]:
    times, units, trials = spikes
    return [np.sort(times[(units == unit) & (trials == k)]) for k in range(TRIALS)]


def test_intervals_are_elephants(spikes: Any) -> None:
    statistics = pytest.importorskip("elephant.statistics")
    found = spike_trains.intervals(*spikes, UNITS)
    for unit in range(2, UNITS):
        every = [np.diff(train) for train in trains(spikes, unit)]
        pooled = np.concatenate(every)
        assert np.isclose(found["isi"][unit], pooled.mean(), **close)
        assert np.isclose(found["cv"][unit], statistics.cv(pooled), **close)
        # Elephant has them for one train: means over trials, weighted by their pairs
        pairs = np.array([len(gaps) - 1 for gaps in every])
        for name, function in (("cv2", statistics.cv2), ("lv", statistics.lv)):
            each = [function(g) if len(g) > 1 else 0.0 for g in every]
            expected = np.average(each, weights=np.maximum(pairs, 0))
            assert np.isclose(found[name][unit], expected, **close)
    assert all(np.isnan(values[:2]).all() for values in found.values())


def test_no_interval_spans_two_trials(spikes: Any) -> None:
    times, units, trials = spikes
    found = spike_trains.intervals(times, units, trials, UNITS)
    joined = spike_trains.intervals(times + 1000 * trials, units, np.zeros_like(trials), UNITS)
    assert np.isnan(found["isi"][1]) and joined["isi"][1] == 1000


def test_intervals_of_parts_add_up(spikes: Any) -> None:
    times, units, trials = spikes
    parts = [
        spike_trains.IntervalSums.of(times[here], units[here], trials[here], UNITS)
        for here in (trials < 5, trials >= 5)
    ]
    whole = spike_trains.intervals(*spikes, UNITS)
    for name, values in (parts[0] + parts[1]).statistics.items():
        np.testing.assert_allclose(values, whole[name], **close)


def test_counts_rates_and_fano_are_elephants(spikes: Any) -> None:
    statistics = pytest.importorskip("elephant.statistics")
    counted = spike_trains.counts(spikes[1], spikes[2], (TRIALS, UNITS))
    found = spike_trains.fano(counted)
    rates = spike_trains.rates(counted, DURATION / 1000)
    for unit in range(1, UNITS):
        each = trains(spikes, unit)
        assert np.isclose(found[unit], statistics.fanofactor(each), **close)
        by_elephant = [statistics.mean_firing_rate(t, 0.0, DURATION) * 1000 for t in each]
        assert np.isclose(rates[unit], np.mean(by_elephant), **close)
    assert np.isnan(found[0]) and spike_trains.silence(counted) == 1 / UNITS


def test_fano_of_labels_is_no_tuning() -> None:
    counted = np.repeat([[2], [20]], 50, 0) + np.tile([[0], [1]], (50, 1))
    labels = np.repeat([0, 1], 50)
    assert spike_trains.fano(counted)[0] > 5
    each = [counted[labels == k].var() / counted[labels == k].mean() for k in (0, 1)]
    assert np.isclose(spike_trains.fano(counted, labels)[0], np.mean(each))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_psth_is_elephants(spikes: Any) -> None:
    statistics = pytest.importorskip("elephant.statistics")
    neo, units = pytest.importorskip("neo"), pytest.importorskip("quantities")
    times, unit, trials = spikes
    labels = trials % 3
    found = spike_trains.psth(
        times,
        unit,
        labels,
        (3, UNITS),
        trials=np.bincount(np.arange(TRIALS) % 3),
        duration_ms=DURATION,
        bin_ms=10.0,
    )
    assert found.shape == (3, UNITS, 20)
    for label in range(3):
        made = [
            neo.SpikeTrain(train, units="ms", t_stop=DURATION)
            for k, train in enumerate(trains(spikes, 4))
            if k % 3 == label
        ]
        expected = statistics.time_histogram(made, 10 * units.ms, output="rate")
        np.testing.assert_allclose(
            found[label, 4], expected.rescale("Hz").magnitude.ravel(), **close
        )


def test_a_short_last_bin_is_divided_by_its_own_length() -> None:
    found = spike_trains.psth(
        np.array([24.0]), np.array([0]), np.array([0]), (1, 1), trials=np.array([1]),
        duration_ms=25.0, bin_ms=10.0,
    )  # fmt: skip
    assert np.allclose(found[0, 0], [0, 0, 200.0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_correlations_are_those_of_numpy_and_elephant(spikes: Any) -> None:
    values = spike_trains.counts(spikes[1], spikes[2], (TRIALS, UNITS))
    found = spike_trains.correlations(values)
    np.testing.assert_allclose(found[2:, 2:], np.corrcoef(values[:, 2:].T), **close)
    assert np.isnan(found[0]).all() and np.isnan(found[1]).all()
    neo = pytest.importorskip("neo")
    units = pytest.importorskip("quantities")
    from elephant.conversion import BinnedSpikeTrain
    from elephant.spike_train_correlation import correlation_coefficient

    made = [neo.SpikeTrain(trains(spikes, u)[0], units="ms", t_stop=DURATION) for u in (3, 4, 5)]
    binned = BinnedSpikeTrain(made, bin_size=20 * units.ms)
    expected = correlation_coefficient(binned)
    np.testing.assert_allclose(spike_trains.correlations(binned.to_array().T), expected, **close)


def test_noise_correlations_leave_the_signal_out() -> None:
    stream = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 200)
    values = labels[:, None] + stream.normal(size=(2000, 2))
    assert spike_trains.correlations(values)[0, 1] > 0.8
    assert abs(spike_trains.noise_correlations(values, labels)[0, 1]) < 0.06


def test_sparseness_has_its_ends() -> None:
    one, all_alike = np.eye(5)[:1], np.ones((1, 5))
    assert np.isclose(selectivity.sparseness(one, 1)[0], 1)
    assert np.isclose(selectivity.sparseness(all_alike, 1)[0], 0)
    assert np.isnan(selectivity.sparseness(np.zeros((1, 5)), 1)[0])
    given = np.array([[1.0, 2, 3, 0]])
    assert np.isclose(selectivity.sparseness(given, 1)[0], (1 - 1.5**2 / 3.5) / (1 - 0.25))


def test_tuning_and_selectivity() -> None:
    labels = np.repeat([3, 7, 9], 20)
    stream = np.random.default_rng(0)
    activity = np.abs(stream.normal(size=(60, 4)))
    activity[labels == 7, 0] += 5
    activity[:, 3] = 0
    found = selectivity.tuning(activity, labels)
    assert found.preferred[0] == 7 and found.preferred[3] == -1
    groups = [activity[labels == k, 1] for k in (3, 7, 9)]
    f = scipy.stats.f_oneway(*groups).statistic  # eta squared from F
    assert np.isclose(found.explained[1], f * 2 / (f * 2 + 57), **close)
    assert np.allclose(found.error[0, 0], scipy.stats.sem(groups[0] * 0 + activity[:20, 0]))
    order = selectivity.raster_order(activity, labels)
    assert order[-1] == 3 and sorted(order) == [0, 1, 2, 3]
    first, second = selectivity.halves(labels)
    assert (first ^ second).all() and all(first[labels == k].sum() == 10 for k in (3, 7, 9))


def test_receptive_fields_find_the_filter() -> None:
    stream = np.random.default_rng(0)
    inputs, wanted = stream.normal(size=(4000, 3, 3)), stream.normal(size=(2, 9))
    activity = np.c_[np.maximum(inputs.reshape(-1, 9) @ wanted.T, 0), np.zeros(4000)]
    found = selectivity.receptive_fields(activity, inputs)
    for unit in range(2):
        assert np.corrcoef(found[unit].ravel(), wanted[unit])[0, 1] > 0.98
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
def test_rdms_are_those_of_scipy(distance: Any) -> None:
    from scipy.spatial.distance import pdist, squareform

    values = np.random.default_rng(0).random((15, 8))
    expected = squareform(pdist(values, distance))
    np.testing.assert_allclose(dissimilarity.rdm(values, distance), expected, **close)


def test_rdms_are_those_of_rsatoolbox() -> None:
    toolbox = pytest.importorskip("rsatoolbox")
    values = np.random.default_rng(0).random((15, 8))
    expected = toolbox.rdm.calc_rdm(toolbox.data.Dataset(values), "correlation").get_matrices()[0]
    np.testing.assert_allclose(dissimilarity.rdm(values), expected, **close)


def test_a_silent_stimulus_has_no_correlation() -> None:
    values = np.random.default_rng(0).random((5, 8))
    values[2] = 0.1 + 0.2  # the mean of constants rounds
    found = dissimilarity.rdm(values)
    assert np.isnan(found[2]).all() and np.isfinite(np.delete(np.delete(found, 2, 0), 2, 1)).all()
    assert np.isfinite(dissimilarity.rsa(found, dissimilarity.rdm(values[:, ::-2])))
    with pytest.raises(RecipeError, match="did you mean 'cosine'"):
        dissimilarity.rdm(values, "cosin")


METHODS = {"spearman": "spearman", "pearson": "corr", "cosine": "cosine", "tau-a": "tau-a"}


@pytest.mark.parametrize("method", METHODS)
def test_rsa_is_that_of_rsatoolbox(method: str) -> None:
    toolbox = pytest.importorskip("rsatoolbox")
    stream = np.random.default_rng(1)
    first = dissimilarity.rdm(stream.random((12, 6)))
    second = dissimilarity.rdm(np.round(stream.random((12, 6)), 1))
    ties = dissimilarity.label_rdm(np.arange(12) % 3)
    for other in (second, ties):
        made = [toolbox.rdm.RDMs(dissimilarity.upper(m)[None]) for m in (first, other)]
        expected = toolbox.rdm.compare(*made, method=METHODS[method])[0, 0]
        assert np.isclose(dissimilarity.rsa(first, other, method), expected, **close)


@pytest.mark.parametrize("method", ["pearson", "cosine", "spearman"])
def test_the_noise_ceiling_is_that_of_rsatoolbox(method: str) -> None:
    toolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox.inference.noise_ceiling import boot_noise_ceiling

    stream = np.random.default_rng(1)
    base = stream.random((10, 6))
    every = np.stack([dissimilarity.rdm(base + 0.3 * stream.random((10, 6))) for _ in range(5)])
    made = toolbox.rdm.RDMs(dissimilarity.upper(every))
    expected = boot_noise_ceiling(made, method=METHODS[method], rdm_descriptor="index")
    np.testing.assert_allclose(dissimilarity.noise_ceiling(every, method), expected, **close)


def test_the_crossnobis_distance_is_unbiased() -> None:
    pytest.importorskip("rsatoolbox")
    stream = np.random.default_rng(0)
    labels, folds = np.tile(np.repeat(np.arange(3), 10), 4), np.repeat(np.arange(4), 30)
    noise = stream.normal(size=(120, 20))
    found = dissimilarity.crossnobis(noise, labels, folds)
    assert np.abs(dissimilarity.upper(found)).max() < 0.15
    moved = noise + 2 * (labels == 2)[:, None]
    found = dissimilarity.crossnobis(moved, labels, folds)
    assert abs(found[0, 1]) < 0.15 and found[0, 2] > 2


def test_debiased_cka_is_unbiased_and_exact() -> None:
    stream = np.random.default_rng(0)
    for units in (10, 100, 1000):
        first, second = stream.normal(size=(2, 100, units))
        assert abs(similarity.cka(first, second)) < 0.05
        rotation = scipy.stats.ortho_group.rvs(units, random_state=0) if units < 200 else np.eye(1)
        turned = first @ rotation if units < 200 else first * 3
        assert np.isclose(similarity.cka(first, turned), 1)
    assert similarity.cka(first, second, debiased=False) > 0.8  # the bias that is taken out


def test_cka_is_the_definition() -> None:
    stream = np.random.default_rng(2)
    first, second = stream.normal(size=(7, 3)), stream.normal(size=(7, 4))
    centre = np.eye(7) - 1 / 7
    kernels = [centre @ v @ v.T @ centre for v in (first, second)]
    expected = np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels])
    assert np.isclose(similarity.cka(first, second, debiased=False), expected, **close)

    def song(one: np.ndarray, other: np.ndarray) -> float:
        """HSIC as equation 5 of Song et al. 2007 has it."""
        k, l, n = one - np.diag(np.diag(one)), other - np.diag(np.diag(other)), len(one)  # noqa: E741
        ones = np.ones(n)
        middle = ones @ k @ ones * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return float((np.trace(k @ l) + middle - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3)))

    k, l = first @ first.T, second @ second.T  # noqa: E741
    assert np.isclose(
        similarity.cka(first, second), song(k, l) / (song(k, k) * song(l, l)) ** 0.5, **close
    )
    assert np.isnan(similarity.cka(np.ones((7, 3)), second))
    with pytest.raises(RecipeError, match="needs 4"):
        similarity.cka(first[:3], second[:3])


def test_procrustes_is_scipys() -> None:
    stream = np.random.default_rng(0)
    first, second = stream.normal(size=(2, 20, 5))
    expected = scipy.spatial.procrustes(first, second)[2]
    assert np.isclose(similarity.procrustes(first, second), expected, **close)
    assert np.isclose(similarity.procrustes(first, 3 * first[:, ::-1] + 1), 0, atol=1e-9)


def test_dimensions() -> None:
    from sklearn.decomposition import PCA

    values = np.random.default_rng(0).normal(size=(50, 6))
    np.testing.assert_allclose(
        similarity.spectrum(values), PCA().fit(values).explained_variance_, **close
    )
    axes = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert np.isclose(similarity.participation_ratio(axes), 2)
    assert np.isclose(similarity.effective_rank(np.eye(4)), 4)
    assert np.isclose(similarity.effective_rank(np.ones((4, 4))), 1)
    assert np.isnan(similarity.participation_ratio(np.ones((4, 2))))


def test_decoding_is_scikit_learns() -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    stream = np.random.default_rng(0)
    labels = np.arange(100) % 5
    activity = np.eye(5)[labels] + stream.normal(0, 0.5, (100, 5))
    found = decoding.decode_classes(activity, labels)
    for fold, (learn, test) in enumerate(
        StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
    ):
        scale = StandardScaler().fit(activity[learn])
        model = RidgeClassifier(decoding.RIDGE * len(learn)).fit(
            scale.transform(activity[learn]), labels[learn]
        )
        assert found.score[fold] == model.score(scale.transform(activity[test]), labels[test])
    assert found.score.mean() > 0.7 and found.p == 1 / 21


def test_shuffled_labels_are_at_chance() -> None:
    stream = np.random.default_rng(1)
    labels = np.arange(200) % 10
    values = np.eye(10)[labels] + stream.normal(0, 0.3, (200, 10))
    found = decoding.decode_classes(values, labels, shuffles=200)
    assert abs(found.shuffled.mean() - 0.1) < 0.01
    noise = [
        decoding.decode_classes(stream.normal(size=(200, 10)), labels, shuffles=0).score.mean()
        for _ in range(20)
    ]
    assert abs(np.mean(noise) - 0.1) < 0.02


def test_inputs_are_read_where_they_are() -> None:
    stream = np.random.default_rng(0)
    inputs = stream.normal(size=(200, 4, 2))
    found = decoding.decode_inputs(inputs.reshape(200, 8) @ stream.normal(size=(8, 12)), inputs)
    assert found.score.min() > 0.95 and found.shuffled.max() < 0.05
    half = decoding.decode_inputs(inputs.reshape(200, 8)[:, :4], inputs)
    assert abs(half.score.mean() - 0.5) < 0.1
    with pytest.raises(RecipeError, match="the smallest of 2"):
        decoding.decode_classes(np.ones((5, 2)), np.array([0, 0, 0, 1, 1]))


def test_confusion_is_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix

    labels, said = np.random.default_rng(0).integers(0, 4, (2, 100))
    expected = confusion_matrix(labels, said, labels=range(4))
    assert (answers.confusion(labels, said, 4) == expected).all()


def test_wilson_is_scipys() -> None:
    for right in (0, 7, 36):
        expected = scipy.stats.binomtest(right, 36).proportion_ci(method="wilson")
        np.testing.assert_allclose(answers.wilson(right, 36), expected, **close)


def test_calibration_is_scikit_learns() -> None:
    from sklearn.calibration import calibration_curve

    stream = np.random.default_rng(0)
    outputs, labels = stream.normal(size=(500, 2)), stream.integers(0, 2, 500)
    found = answers.calibration(outputs, labels)
    sure = scipy.special.softmax(outputs, 1).max(1)
    expected = calibration_curve(outputs.argmax(1) == labels, sure, n_bins=10)
    there = found.number > 0
    np.testing.assert_allclose(found.accuracy[there], expected[0], **close)
    np.testing.assert_allclose(found.confidence[there], expected[1], **close)
    assert found.number.sum() == 500 and 0 < found.error < 0.5
    exact = answers.calibration(np.array([[50.0, 0]] * 4), np.zeros(4, int))
    assert exact.error < 1e-9


def test_weights_over_snapshots() -> None:
    stream = np.random.default_rng(0)
    course = np.cumsum(stream.normal(size=(4, 6, 5)), 0)
    np.testing.assert_allclose(
        weights.spectra(course)[2], np.linalg.svd(course[2], compute_uv=False), **close
    )
    found = weights.drift(course)
    assert np.isclose(
        found["distance"][3], np.linalg.norm(course[3] - course[0]) / np.linalg.norm(course[0])
    )
    assert (found["path"] >= found["distance"] - 1e-12).all() and found["path"][0] == 0
    straight = weights.drift(np.arange(1, 4)[:, None, None] * course[:1])
    assert np.allclose(straight["direct"][1:], 1) and np.allclose(straight["cosine"], 1)
    shares = weights.histograms(course)
    assert np.allclose(shares["share"].sum(1), 1) and len(shares["edge"]) == 61
    aligned = weights.feedback_alignment(course, course[-1].T)
    assert np.isclose(aligned[-1], 1) and aligned[0] < 1


def test_gradient_quality_separates_bias_and_variance() -> None:
    stream = np.random.default_rng(0)
    truth = stream.normal(size=(50,))
    noisy = truth + stream.normal(0, 2, (4000, 50))
    found = weights.gradient_quality(noisy, truth)
    assert abs(found["bias2"]) < 0.01
    assert np.isclose(found["variance"], 4 * 50 / (truth @ truth), rtol=0.02)
    wrong = weights.gradient_quality(-noisy, truth)
    assert wrong["cosine_of_mean"] < -0.99 and np.isclose(wrong["bias2"], 4, rtol=0.05)
    assert weights.gradient_quality(np.stack([truth, truth]), truth)["sign"] == 1


def test_a_loss_is_found_again_from_its_gradient() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-2, 2, 31), indexing="ij")
    loss = x**2 + 3 * x * y
    field = np.stack([2 * x + 3 * y, 3 * x], -1)
    found = implied_loss.implied_surface(field, (x[1, 0] - x[0, 0], y[0, 1] - y[0, 0]))
    np.testing.assert_allclose(found.loss, loss - loss.mean(), atol=1e-6)
    assert found.unexplained < 1e-9
    curl = implied_loss.implied_surface(np.stack([-y, x], -1), (0.05, 4 / 30))
    assert curl.unexplained > 0.3
    outputs = np.linspace(0.01, 0.99, 9)
    squared = implied_loss.loss_of_gradient(2 * (outputs - 1), "squared_error")
    np.testing.assert_allclose(squared, (outputs - 1) ** 2, **close)
    crossed = implied_loss.loss_of_gradient(outputs - 1, "cross_entropy")
    np.testing.assert_allclose(crossed, -np.log(outputs), **close)
    assert np.isinf(implied_loss.loss_of_gradient(np.array([1.2]), "cross_entropy"))


def test_recordings(spikes: Any) -> None:
    pytest.importorskip("elephant")
    given = [train for train in trains(spikes, 4) if len(train)]
    found = recorded.van_rossum(given, 10.0, DURATION)

    def product(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(-np.abs(one[:, None] - other[None]) / 10).sum())

    for k, one in enumerate(given):
        for m, other in enumerate(given):
            square = product(one, one) + product(other, other) - 2 * product(one, other)
            assert np.isclose(found[k, m] ** 2, square, atol=1e-6)
    with pytest.raises(RecipeError, match="outside of 0 to 5"):
        recorded.van_rossum(given, 10.0, 5.0)
    stream = np.random.default_rng(0)
    layer = stream.random((8, 5))
    same = np.stack([dissimilarity.rdm(layer + 0.05 * stream.random((8, 5))) for _ in range(3)])
    compared = recorded.compare_rdms(layer, same)
    assert compared.each.min() > 0.8 and compared.ceiling is not None
    truth = stream.random((3, 50))
    assert np.allclose(recorded.psth_r2(truth, truth), 1)
    assert np.allclose(recorded.psth_r2(truth.mean(1, keepdims=True), truth), 0)


@pytest.mark.parametrize("package", ["rsatoolbox", "elephant"])
def test_what_is_not_installed_is_refused_by_name(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    labels = np.repeat([0, 1], 4)
    with pytest.raises(MissingExtraError, match=rf"{package} is not .*'biograd\[analysis\]'"):
        if package == "rsatoolbox":
            dissimilarity.crossnobis(np.ones((8, 2)), labels, np.tile([0, 1], 4))
        else:
            recorded.van_rossum([np.array([1.0])], 10.0, 20.0)
