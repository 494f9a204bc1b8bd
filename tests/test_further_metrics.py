"""Metrics beside the task's own, against scikit-learn and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from sklearn import metrics as sklearn
from torch import Tensor, nn

import biograd
from biograd.data.rows.arrays import Arrays
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.tasks import MISSING, Classes, MultiLabel, Regression, Task, Weighted, summed
from biograd.tasks.further_metrics import METRICS, Metric, chosen
from biograd.training import evaluate

STREAM = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(200, 7, generator=STREAM)
CLASSES = torch.randint(6, (200,), generator=STREAM)  # the last class is never there
FIGURES = torch.randn(200, 2, generator=STREAM)


def found(name: str, outputs: Tensor, targets: Tensor, task: Task) -> float:
    one = chosen([name], task)[name]
    assert isinstance(one, Metric)
    halves = [summed({name: one.parts(outputs[rows], targets[rows])})[name]
              for rows in (slice(0, 70), slice(70, None))]  # fmt: skip
    return one.figure([[a + b for a, b in zip(*pair, strict=True)] for pair in zip(*halves)])  # noqa: B905


OF_CLASSES = {
    "balanced_accuracy": lambda o, y: sklearn.recall_score(
        y, o.argmax(1), average="macro", labels=range(6)
    ),
    "macro_f1": lambda o, y: sklearn.f1_score(y, o.argmax(1), average="macro"),
    **{
        f"top_{k}_accuracy": lambda o, y, k=k: sklearn.top_k_accuracy_score(
            y, o, k=k, labels=range(7)
        )
        for k in (2, 3, 5)
    },
}
OF_NUMBERS = {
    "absolute_error": lambda o, y: sklearn.mean_absolute_error(y, o),
    "root_mean_square_error": lambda o, y: sklearn.root_mean_squared_error(
        y.flatten(), o.flatten()
    ),
    "correlation": lambda o, y: scipy.stats.pearsonr(o.flatten(), y.flatten()).statistic,
}


def test_every_metric_has_an_oracle() -> None:
    assert {*OF_CLASSES, *OF_NUMBERS} == {*METRICS}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_metrics_of_classes(name: str) -> None:
    expected = OF_CLASSES[name](OUTPUTS, CLASSES)
    assert found(name, OUTPUTS, CLASSES, Classes(7)) == pytest.approx(expected, rel=1e-12)
    # in time, with steps whose class is missing
    steps = OUTPUTS.view(50, 4, 7).repeat(1, 2, 1)
    targets = torch.cat((CLASSES.view(50, 4), torch.full((50, 4), MISSING)), 1)
    timed = Classes(7, timed=True)
    one = chosen([name], timed)[name]
    assert isinstance(one, Metric)
    assert one.figure(summed({"x": one.parts(steps, targets)})["x"]) == pytest.approx(expected)


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_metrics_of_numbers(name: str) -> None:
    outputs, task = OUTPUTS[:, :2], Regression(2)
    expected = OF_NUMBERS[name](outputs.double(), FIGURES.double())
    assert found(name, outputs, FIGURES, task) == pytest.approx(expected, rel=1e-9)
    holes = FIGURES.clone()
    holes[::3, 0] = torch.nan
    mask = ~holes.isnan()
    expected = OF_NUMBERS[name](outputs[mask].double(), holes[mask].double())
    assert found(name, outputs, holes, task) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_weight_of_two_is_a_row_twice(name: str) -> None:
    weights = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))
    task = Weighted(task=Classes(7))
    packed = task.pack((CLASSES, weights), "here")
    rows = torch.repeat_interleave(torch.arange(200), weights)
    one = chosen([name], task)[name]
    assert isinstance(one, Metric)
    weighed = one.figure(summed({"x": one.parts(OUTPUTS, packed)})["x"])
    plain = chosen([name], Classes(7))[name]
    assert isinstance(plain, Metric)
    twice = plain.figure(summed({"x": plain.parts(OUTPUTS[rows], CLASSES[rows])})["x"])
    assert weighed == pytest.approx(twice)


class Counting:
    """As torchmetrics' objects: here the number of rows, and the sum of the targets."""

    def __init__(self, several: bool = False) -> None:
        self.several, self.rows, self.total = several, 99, 99.0

    def reset(self) -> None:
        self.rows, self.total = 0, 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.rows += len(targets)
        self.total += float(targets.sum())

    def compute(self) -> Any:
        rows = torch.tensor(self.rows)
        return {"rows": rows, "total": self.total} if self.several else rows


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 7))


def test_objects_and_functions_of_the_user() -> None:
    engine = attach(network(), biograd.Backpropagation(), task=Classes(7))
    asked = {
        "mine": Counting(),
        "both": Counting(several=True),
        "margin": lambda o, y: o.max(1).values,
        "share": "top_2_accuracy",
    }
    rows = Arrays(OUTPUTS, CLASSES)
    values = evaluate(engine, rows, 64, chosen(asked, engine.task))
    assert values["mine"] == values["both_rows"] == 200
    assert values["both_total"] == float(CLASSES.sum())
    with torch.no_grad():
        outputs = engine.network(OUTPUTS)
    assert values["margin"] == pytest.approx(float(outputs.max(1).values.mean()))
    expected = sklearn.top_k_accuracy_score(CLASSES, outputs, k=2, labels=range(7))
    assert values["share"] == pytest.approx(expected)
    assert values == evaluate(engine, rows, 64, chosen(asked, engine.task))


def test_what_is_no_metric() -> None:
    engine = attach(network(), biograd.Backpropagation(), task=Classes(7))
    wrong = chosen({"x": lambda o, y: o.mean()}, engine.task)
    with pytest.raises(CapabilityError, match="metrics: x: gives \\[\\], not one number a row"):
        evaluate(engine, Arrays(OUTPUTS, CLASSES), 64, wrong)
    with pytest.raises(RecipeError, match="macro_f1 is of classes, not of MultiLabel"):
        chosen(["macro_f1"], MultiLabel(7))
    broken = Counting()
    broken.compute = lambda: "many"  # type: ignore[method-assign]
    with pytest.raises(CapabilityError, match="compute\\(\\) gives str, not one number"):
        evaluate(engine, Arrays(OUTPUTS, CLASSES), 64, chosen({"x": broken}, engine.task))


def test_metrics_stand_in_the_run(tmp_path: Path) -> None:
    labels = CLASSES.clone()
    labels[0] = 6
    data = {"train": (OUTPUTS, labels), "test": (OUTPUTS[:50], labels[:50])}
    run = biograd.train(
        network(), data, estimator="backprop", epochs=2, path=tmp_path / "run.h5",
        settings=("training.metrics=['macro_f1']",), metrics={"rows": Counting()},
    )  # fmt: skip
    assert list(run.scalars("epoch")["test_rows"]) == [50, 50]
    assert run.summary["test_macro_f1"] == pytest.approx(
        float(run.scalars("epoch")["test_macro_f1"][-1])
    )
    with pytest.raises(RecipeError, match=r"has the metric rows of yours .*give it, biograd"):
        biograd.resume(tmp_path / "run.h5", epochs=3, network=network(), data=data)
    more = {"rows": Counting(), "other": Counting()}
    with pytest.raises(RecipeError, match="the run has no metric other: leave yours out"):
        biograd.resume(tmp_path / "run.h5", epochs=3, network=network(), data=data, metrics=more)
    again = {"epochs": 3, "network": network(), "data": data, "metrics": {"rows": Counting()}}
    longer = biograd.resume(tmp_path / "run.h5", **again)
    assert list(longer.scalars("epoch")["test_rows"]) == [50, 50, 50]


# Objects of torchmetrics -------------------------------------------------------------------------


OBJECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "Accuracy": (
        {"task": "multiclass", "num_classes": 7, "average": "micro"},
        lambda o, y: sklearn.accuracy_score(y, o.argmax(1)),
    ),
    "F1Score": (
        {"task": "multiclass", "num_classes": 7, "average": "weighted"},
        lambda o, y: sklearn.f1_score(y, o.argmax(1), average="weighted"),
    ),
    "MatthewsCorrCoef": (
        {"task": "multiclass", "num_classes": 7},
        lambda o, y: sklearn.matthews_corrcoef(y, o.argmax(1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_of_torchmetrics(name: str) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    settings, oracle = OBJECTS[name]
    engine = attach(network(), biograd.Backpropagation(), task=Classes(7))
    asked = {"it": getattr(torchmetrics, name)(**settings)}
    for _ in range(2):  # the second time it begins anew
        values = evaluate(engine, Arrays(OUTPUTS, CLASSES), 64, chosen(asked, engine.task))
    with torch.no_grad():
        expected = oracle(engine.network(OUTPUTS), CLASSES)
    assert values["it"] == pytest.approx(expected, abs=1e-6)


def test_objects_of_torchmetrics_in_a_run(tmp_path: Path) -> None:
    """A collection, a mean of numbers in time, one that is no number, one of other targets."""
    torchmetrics = pytest.importorskip("torchmetrics")
    single = {"task": "multiclass", "num_classes": 7}
    both = torchmetrics.MetricCollection(
        {"right": torchmetrics.Accuracy(average="micro", **single),
         "kappa": torchmetrics.CohenKappa(**single)}
    )  # fmt: skip
    labels = CLASSES.clone()
    labels[0] = 6
    data = {"train": (OUTPUTS, labels), "test": (OUTPUTS[:50], labels[:50])}
    words: dict[str, Any] = {"estimator": "backprop", "epochs": 1, "path": tmp_path / "run.h5"}
    run = biograd.train(network(), data, metrics={"of": both}, **words)
    assert run.summary["test_of_right"] == pytest.approx(run.summary["test_accuracy"])
    assert "test_of_kappa" in run.summary
    words["force"] = True
    matrix = torchmetrics.ConfusionMatrix(**single)
    with pytest.raises(CapabilityError, match=r"m: compute\(\) gives Tensor, not one number"):
        biograd.train(network(), data, metrics={"m": matrix}, **words)
    with pytest.raises(CapabilityError, match=r"m: \w+: .* \(outputs \[50, 7\] torch.float"):
        biograd.train(network(), data, metrics={"m": torchmetrics.MeanSquaredError()}, **words)
    with pytest.raises(RecipeError, match="metrics: m: is a class that is made without arguments"):
        biograd.train(network(), data, metrics={"m": torchmetrics.Accuracy}, **words)
    numbers = {"train": (OUTPUTS, OUTPUTS.flip(1)), "test": (OUTPUTS[:50], OUTPUTS[:50].flip(1))}
    run = biograd.train(network(), numbers, metrics={"m": torchmetrics.MeanSquaredError}, **words)
    assert run.summary["test_m"] == pytest.approx(run.summary["test_loss"] * 2 / 7, rel=1e-5)
