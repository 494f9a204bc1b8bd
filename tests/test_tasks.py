"""Tasks: losses and metrics against other libraries and closed forms; what is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

from biograd import tasks
from biograd.errors import CapabilityError, CheckFailed, DataError, RecipeError
from biograd.tasks import MISSING
from biograd.tasks.leaky_sum import leaky_sum
from biograd.testing import check_task

B, T, K = 7, 12, 3
NAN = float("nan")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


CLASSES = torch.arange(B) % K
COURSE = (torch.arange(B)[:, None] + torch.arange(T)) % K
TRAINS = (drawn(B, T, K, seed=1) > 0.8).double()
CASES = {
    "classes": (tasks.Classes(K), drawn(B, K), CLASSES),
    "classes squared": (tasks.Classes(K, loss="squared_error"), drawn(B, K), CLASSES),
    "classes weighted": (tasks.Classes(K, class_weights=(1.0, 2.0, 0.5)), drawn(B, K), CLASSES),
    "classes timed": (tasks.Classes(K, timed=True), drawn(B, T, K), COURSE),
    "classes held": (tasks.Classes(K, timed=True), drawn(B, T, K), CLASSES),
    "multi_label": (tasks.MultiLabel(K), drawn(B, K), (drawn(B, K, seed=2) > 0).double()),
    "multi_label timed": (tasks.MultiLabel(K, timed=True), drawn(B, T, K), TRAINS),
    "regression": (tasks.Regression(K), drawn(B, K), drawn(B, K, seed=3)),
    "regression one": (tasks.Regression(1), drawn(B, 1), drawn(B, seed=3)),
    "regression huber": (tasks.Regression(K, loss="huber"), drawn(B, K), drawn(B, K, seed=3)),
    "time_series": (tasks.TimeSeries(K), drawn(B, T, K), drawn(B, T, K, seed=3)),
    "time_series one": (tasks.TimeSeries(1), drawn(B, T, 1), drawn(B, T, seed=3)),
    "van_rossum": (tasks.SpikeTrain(K), drawn(B, T, K), TRAINS),
    "poisson": (tasks.SpikeTrain(K, loss="poisson"), drawn(B, T, K), TRAINS),
    "rates": (tasks.Rates(K), drawn(B, K).abs(), 8 * drawn(B, K, seed=3).abs()),
    "rates timed": (tasks.Rates(K, timed=True), drawn(B, T, K).abs(), drawn(B, K).abs()),
    "firing": (
        tasks.Firing(K, bin_ms=2.0),
        drawn(B, T, K).sigmoid(),
        torch.tensor([8.0, 1.0, 0.1]).double().repeat(B, 1),
    ),
    "reward": (tasks.Reward(K), drawn(B, K), CLASSES),
    "reward probability": (tasks.Reward(K, reward="probability"), drawn(B, K), CLASSES),
    "own": (tasks.of_loss(lambda o, t: (o - t).abs().sum(1)), drawn(B, K), drawn(B, K, seed=4)),
}
HEADS = tasks.Heads(
    heads=(
        tasks.Head("kind", tasks.Classes(K)),
        tasks.Head("size", tasks.Regression(1), 0.5),
    )
)
PACKED = HEADS.pack({"size": drawn(B), "kind": CLASSES}, "targets")
WEIGHTED = tasks.Weighted(task=tasks.Classes(K))
CASES["heads"] = (HEADS, drawn(B, K + 1), PACKED)
CASES["weighted"] = (WEIGHTED, drawn(B, K), WEIGHTED.pack((CLASSES, torch.ones(B)), "targets"))


@pytest.mark.parametrize("case", CASES)
def test_every_task_keeps_what_it_promises(case: str) -> None:
    check_task(*CASES[case])


@dataclasses.dataclass(frozen=True)
class Tied(tasks.Regression):
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().losses(outputs - outputs.mean(0), targets)


@dataclasses.dataclass(frozen=True)
class Averaged(tasks.Regression):
    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> tasks.Metrics:
        return {"r2": (super().losses(outputs, targets) / len(outputs), torch.ones(len(outputs)))}

    def figures(self, totals: tasks.Totals) -> dict[str, float]:
        return tasks.Task.figures(self, totals)


@dataclasses.dataclass(frozen=True)
class Masked(tasks.Regression):
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs - targets).square() * ~targets.isnan()).nansum(1)


@dataclasses.dataclass(frozen=True)
class Uphill(tasks.Regression):
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -super().losses(outputs, targets)


@dataclasses.dataclass(frozen=True)
class Drawing(tasks.Regression):
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        return super().losses(outputs, targets)


@dataclasses.dataclass(frozen=True)
class Wearing(tasks.Regression):
    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> tasks.Metrics:
        found = super().metrics(outputs, targets)
        targets.mul_(1 + 1e-9).add_(1e-7)
        return found


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Tied(K), "rows beside"),
        (Averaged(K), "add up"),
        (Masked(K), "NaN"),
        (Uphill(K), "its headline, r2, of which higher is better, goes from .* as the losses fall"),
        (Drawing(K), "a global generator is drawn from"),
        (Wearing(K), "its targets are changed in place"),
    ],
)
def test_a_broken_promise_is_found(broken: tasks.Task, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_task(broken, drawn(B, K), drawn(B, K, seed=3))


def figures(task: tasks.Task, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    return task.figures(tasks.summed(task.metrics(outputs, targets)))


def test_losses_of_classes_are_those_of_torch() -> None:
    outputs, weights = drawn(B, K), (1.0, 2.0, 0.5)
    expected = nn.CrossEntropyLoss(reduction="none", weight=torch.tensor(weights).double())
    found = tasks.Classes(K, class_weights=weights).losses(outputs, CLASSES)
    assert torch.equal(found, expected(outputs, CLASSES))
    timed = COURSE.clone()
    timed[0, 3:] = MISSING
    course, task = drawn(B, T, K), tasks.Classes(K, timed=True)
    plain = nn.CrossEntropyLoss()
    expected_rows = [plain(course[i], timed[i]) for i in range(B)]
    assert torch.allclose(task.losses(course, timed), torch.stack(expected_rows))
    accuracy = figures(task, course, timed)["accuracy"]
    known = timed != MISSING
    assert accuracy == sklearn_metrics.accuracy_score(timed[known], course.argmax(-1)[known])


def test_labels_are_scored_as_by_scikit_learn() -> None:
    task, outputs, targets = CASES["multi_label"]
    found = figures(task, outputs, targets)
    answers = (outputs > 0).numpy()
    assert found["exact"] == sklearn_metrics.accuracy_score(targets.numpy(), answers)
    assert math.isclose(found["labels"], 1 - sklearn_metrics.hamming_loss(targets.numpy(), answers))
    expected = nn.BCEWithLogitsLoss(reduction="none")(outputs, targets).sum(1)
    assert torch.allclose(task.losses(outputs, targets), expected)


def test_r2_is_pooled_as_by_scikit_learn_and_never_averaged_over_trials() -> None:
    targets = drawn(B, T, K, seed=3) + 5 * drawn(B, 1, K, seed=5)
    outputs = targets + 0.7 * drawn(B, T, K)
    found = figures(tasks.TimeSeries(K), outputs, targets)["r2"]
    flat = targets.flatten(0, 1).numpy(), outputs.flatten(0, 1).numpy()
    expected = sklearn_metrics.r2_score(*flat, multioutput="variance_weighted")
    assert math.isclose(found, expected, rel_tol=1e-9)
    trials = [sklearn_metrics.r2_score(targets[i], outputs[i]) for i in range(B)]
    assert abs(np.mean(trials) - expected) > 0.05
    one = figures(tasks.Regression(1), outputs[:, 0, :1], targets[:, 0, 0])["r2"]
    assert math.isclose(one, sklearn_metrics.r2_score(targets[:, 0, 0], outputs[:, 0, 0]))


def test_a_missing_target_is_as_good_as_absent() -> None:
    outputs, targets = drawn(B, T, K).requires_grad_(), drawn(B, T, K, seed=3)
    targets[:, 8:] = NAN
    targets[:, 2, 1] = NAN
    task = tasks.TimeSeries(K)
    losses = task.losses(outputs, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert gradient.isfinite().all()
    assert not gradient[:, 8:].any() and not gradient[:, 2, 1].any()
    short = task.losses(outputs[:, :8], targets[:, :8])
    assert torch.allclose(losses, short)


def test_van_rossum_is_its_closed_form() -> None:
    task = tasks.SpikeTrain(1, time_constant_ms=7.0, dt_ms=2.0)
    a, b = [3, 9, 10], [4, 11]
    outputs, targets = torch.zeros(1, T, 1).double(), torch.zeros(1, T, 1).double()
    outputs[0, a], targets[0, b] = 1.0, 1.0

    def kernel(one: list[int], other: list[int]) -> float:
        return sum(math.exp(-abs(i - j) * 2 / 7) for i in one for j in other)

    expected = 0.5 * (kernel(a, a) + kernel(b, b)) - kernel(a, b)
    assert math.isclose(float(task.losses(outputs, targets)), expected, rel_tol=1e-12)


def test_poisson_is_torchs_and_its_bits_are_against_the_mean_rate() -> None:
    task, outputs, targets = CASES["poisson"]
    expected = nn.PoissonNLLLoss(reduction="none")(outputs, targets).sum((1, 2))
    assert torch.allclose(task.losses(outputs, targets), expected)
    rate = targets.mean((0, 1)).log().expand_as(targets)
    assert abs(figures(task, rate, targets)["bits_per_spike"]) < 1e-12
    assert task.headline == "bits_per_spike" and task.better == "higher"
    assert tasks.SpikeTrain(1).headline == "distance"


def test_rates_are_in_hertz() -> None:
    task = tasks.Rates(1, duration_ms=500.0, scale_hz=10.0)
    counts, wanted = torch.tensor([[4.0], [6.0]]), torch.tensor([[10.0], [10.0]])
    assert task.losses(counts, wanted).tolist() == pytest.approx([0.04, 0.04])
    assert figures(task, counts, wanted)["rmse_hz"] == pytest.approx(2.0)


def trains(rows: int, steps: int, units: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(5)
    common = torch.rand(rows, steps, 1, generator=stream, dtype=torch.float64) < 0.03
    own = torch.rand(rows, steps, units, generator=stream, dtype=torch.float64) < 0.05
    return (common | own).double()


def irregular(spikes: np.ndarray) -> float:
    """By the times of the spikes, unit after unit."""
    found = []
    for unit in spikes.T:
        intervals = np.diff(np.flatnonzero(unit))
        if len(intervals) >= 2:
            found.append(intervals.std() / intervals.mean())
    return float(np.mean(found)) if found else math.nan


def together(spikes: np.ndarray, width: int) -> float:
    """By NumPy's matrix of correlations."""
    bins = len(spikes) // width
    counts = spikes[: bins * width].reshape(bins, width, -1).sum(1)
    counts = counts[:, counts.std(0) > 0]
    if counts.shape[1] < 2:
        return math.nan
    matrix = np.corrcoef(counts.T)
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def test_statistics_of_firing_are_those_of_their_definitions() -> None:
    """Against intervals of spike times and a matrix of correlations, of two populations."""
    spikes = trains(4, 413, 9)
    spikes[1, :, :5] = 0  # silent
    spikes[2, :, 5:] = 0
    spikes[2, 7, 5:] = 1  # a spike each, at once
    task = tasks.Firing(9, populations=(5, 4), dt_ms=0.5, bin_ms=5.0)
    found = task.statistics(spikes).view(4, 2, 3).numpy()
    for row in range(4):
        for place, part in enumerate((slice(0, 5), slice(5, 9))):
            own = spikes[row, :, part].numpy()
            expected = (own.mean() / 0.0005, irregular(own), together(own, 10))
            assert found[row, place] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert math.isnan(found[1, 0, 1]) and math.isnan(found[2, 1, 1])
    regular = torch.zeros(1, 100, 2).double()
    regular[:, ::10] = 1
    whole = tasks.Firing(2, bin_ms=5.0).statistics(regular)
    assert whole[0].tolist() == pytest.approx([100.0, 0.0, 1.0])


def test_the_loss_of_firing_and_its_gradient() -> None:
    """The mean of the known squares; its derivative by relaxed spikes is that of differences."""
    task = tasks.Firing(3, bin_ms=4.0)
    spikes = (0.9 * trains(2, 26, 3) + 0.04).requires_grad_()
    goal = torch.tensor([[20.0, 0.7, 0.3], [30.0, math.nan, -0.1]]).double()
    found = task.statistics(spikes.detach())
    scaled = (found - goal) / torch.tensor([10.0, 0.5, 0.1])
    expected = [float(scaled[0].square().mean()), float(scaled[1, [0, 2]].square().mean())]
    assert task.losses(spikes, goal).tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda s: task.losses(s, goal), (spikes,))
    seen = figures(task, spikes.detach(), goal)
    assert seen["cv_rmse"] == pytest.approx(abs(float(found[0, 1] - 0.7)))
    assert seen["mean_rate"] == pytest.approx(float(found[:, 0].mean()))
    silent = torch.zeros(2, 26, 3).double().requires_grad_()
    task.losses(silent, goal).sum().backward()
    assert torch.isfinite(silent.grad).all() and silent.grad.any()


def test_firing_that_cannot_be() -> None:
    for options, words in (
        ({"populations": (2, 2)}, "the outputs are 5 units"),
        ({"timed": False}, "need their times"),
        ({"bin_ms": 0.5}, "bin_ms = 0.5"),
    ):
        with pytest.raises(RecipeError, match=words):
            tasks.Firing(5, **options)
    task = tasks.Firing(5)
    good = torch.tensor([[5.0, 1.0, 0.1]])
    task.check(good, "here")
    for place, value in ((0, -1.0), (1, -0.1), (2, 1.5)):
        wrong = good.clone()
        wrong[0, place] = value
        with pytest.raises(DataError, match="here, row 0"):
            task.check(wrong, "here")
    with pytest.raises(DataError, match=r"here: targets are \[1, 2\]"):
        task.check(good[:, :2], "here")


def test_a_weight_of_two_is_a_row_twice_and_of_zero_no_row() -> None:
    weights = torch.tensor([2.0, 0.0] + [1.0] * (B - 2))
    rows = torch.tensor([0, 0, *range(2, B)])
    for case in ("classes", "regression", "classes timed", "time_series"):
        task, outputs, targets = CASES[case]
        weighted = tasks.Weighted(task=task)
        packed = weighted.pack((targets, weights), "targets")
        weighted.check(packed, "targets")
        found = weighted.losses(outputs, packed).sum()
        assert torch.allclose(found, task.losses(outputs[rows], targets[rows]).sum())
        assert figures(weighted, outputs, packed) == pytest.approx(
            figures(task, outputs[rows], targets[rows])
        )
        assert weighted.headline == task.headline
    with pytest.raises(DataError, match="row 1: a weight"):
        weighted.check(weighted.pack((targets, -weights + 1), "t")[[2, 0]], "t")


def test_heads_share_the_outputs_and_answer_for_themselves() -> None:
    outputs, size = drawn(B, K + 1), drawn(B)
    found = HEADS.losses(outputs, PACKED)
    expected = nn.functional.cross_entropy(outputs[:, :K], CLASSES, reduction="none")
    assert torch.allclose(found, expected + 0.25 * (outputs[:, K] - size).square())
    assert set(figures(HEADS, outputs, PACKED)) == {"kind.accuracy", "size.r2", "size.mse"}
    assert torch.equal(HEADS.strata(PACKED), CLASSES)
    for given, message in (
        ({"kind": CLASSES}, "'size' has no targets"),
        ({"kind": CLASSES, "siz": size}, "did you mean 'size'"),
        ({"kind": CLASSES + 1, "size": size}, "row 2: class 3"),
    ):
        with pytest.raises(DataError, match=message):
            HEADS.pack(given, "mine.npz")


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (tasks.Classes(3), torch.tensor([0, 1, 3]), "row 2: class 3, known are 0 to 2"),
        (tasks.Classes(3), torch.zeros(3), "classes are torch.float32"),
        (tasks.Classes(3), COURSE, r"the task needs \[N\]"),
        (tasks.Regression(2), torch.zeros(3, 4), r"\[3, 4\], the task needs \[3, 2\]"),
        (tasks.Regression(1), torch.tensor([0.0, NAN]), "row 1: every target is missing"),
        (tasks.Regression(1), torch.tensor([0, 1]), "real numbers"),
        (tasks.MultiLabel(2), torch.tensor([[0.0, 1.0], [0.0, 0.5]]), "row 1: a label"),
        (tasks.TimeSeries(2), torch.zeros(3, 2), "steps, 2"),
        (tasks.SpikeTrain(1), -torch.ones(2, 4, 1), "row 0: a count is below 0"),
    ],
)
def test_bad_targets_are_refused_in_a_line(
    task: tasks.Task, targets: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        task.check(targets, "mine.npz, train")
    assert str(refused.value).startswith("mine.npz, train") and "\n" not in str(refused.value)


def test_the_task_follows_from_targets_or_is_asked_for() -> None:
    names = {
        "classes": [CLASSES, COURSE],
        "regression": [drawn(B), drawn(B, K)],
        "time_series": [drawn(B, T, K)],
    }
    for name, given in names.items():
        assert [tasks.infer(targets) for targets in given] == [name] * len(given)
    for unclear in (torch.tensor([0.0, 1.0]), torch.tensor([5, 900, 33]), {"a": CLASSES}):
        with pytest.raises(DataError, match="task"):
            tasks.infer(unclear)
    assert tasks.suited(COURSE) == tasks.Classes(K, timed=True)
    assert tasks.suited(drawn(B, T)[..., None]) == tasks.TimeSeries(1)
    with pytest.raises(RecipeError, match="did you mean 'regression'"):
        tasks.make("regresion", 1, {}, "mine.toml")
    with pytest.raises(RecipeError, match=r"unknown key task\.los"):
        tasks.make("regression", 1, {"los": "huber"}, "mine.toml")
    with pytest.raises(RecipeError, match="2 numbers for 3 classes"):
        tasks.make("classes", 3, {"class_weights": [1, 2]}, "mine.toml")


def test_a_recipe_makes_heads() -> None:
    tables = {
        "kind": {"name": "classes", "outputs": 3},
        "size": {"name": "regression", "outputs": 1, "weight": 0.5, "loss": "huber"},
    }
    made = tasks.make("heads", 4, {"heads": tables}, "mine.toml")
    assert made.outputs == 4 and isinstance(made, tasks.Heads)
    assert made.heads[1] == tasks.Head("size", tasks.Regression(1, loss="huber"), 0.5)
    tables["size"]["los"] = 1
    with pytest.raises(RecipeError, match=r"task\.heads\.size.*los"):
        tasks.make("heads", 4, {"heads": tables}, "mine.toml")


def test_a_loss_of_another_shape_is_refused() -> None:
    with pytest.raises(CapabilityError, match="one value per example"):
        tasks.of_loss(lambda o, t: (o - t).square()).losses(drawn(B, K), drawn(B, K))
    with pytest.raises(CapabilityError, match="did you mean 'cross_entropy'"):
        tasks.of_loss("cross_entrop")


def test_the_leaky_sum_is_its_loop_in_value_and_both_derivatives() -> None:
    values = drawn(2, 9, 3).requires_grad_()
    steps, total = [], torch.zeros(2, 3, dtype=torch.float64)
    for step in values.unbind(1):
        total = 0.8 * total + step
        steps.append(total)
    weights = drawn(2, 9, 3, seed=6)
    (expected,) = torch.autograd.grad((torch.stack(steps, 1) * weights).sum(), values)
    (found,) = torch.autograd.grad((leaky_sum(values, 0.8) * weights).sum(), values)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(leaky_sum(values, 0.8), torch.stack(steps, 1), rtol=1e-12)
    assert torch.autograd.gradcheck(
        lambda v: leaky_sum(v, 0.8), values, check_forward_ad=True, check_batched_grad=False
    )


def test_targets_take_the_outputs_shape_for_rules_that_use_them() -> None:
    one_hot = nn.functional.one_hot(CLASSES, K).double()
    outputs = drawn(B, K)
    assert torch.equal(tasks.Classes(K).vectors(outputs, CLASSES), one_hot)
    weights = torch.arange(B).double()
    packed = WEIGHTED.pack((CLASSES, weights), "targets")
    assert torch.equal(WEIGHTED.vectors(outputs, packed), one_hot * weights[:, None])
    both = HEADS.vectors(drawn(B, K + 1), PACKED)
    assert torch.equal(both[:, :K], one_hot) and torch.equal(both[:, K], drawn(B))
    course = COURSE.clone()
    course[0, 0] = MISSING
    timed = tasks.Classes(K, timed=True).vectors(drawn(B, T, K), course)
    assert not timed[0, 0].any() and timed.sum() == B * T - 1
    assert tasks.Rates(K, duration_ms=500.0).vectors(outputs, torch.full((B, K), 8.0))[0, 0] == 4.0


def test_whole_numbers_are_numbers_for_a_single_output() -> None:
    outputs, targets = torch.tensor([[1.0], [3.5]]), torch.tensor([2, 3])
    losses = tasks.of_loss("squared_error").losses(outputs, targets)
    assert torch.equal(losses, torch.tensor([0.5, 0.125]))
