"""Metrics by the task: of steps, epochs and splits, and how they are shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor, nn

import biograd
from biograd.commands.train import summary as told
from biograd.data.rows.arrays import Arrays
from biograd.display.progress_display import describe
from biograd.engine import attach
from biograd.errors import RecipeError
from biograd.metrics import Shown, figure, headline, is_share, written
from biograd.recipes import TrainingRecipe
from biograd.recording import EpochSums, prefixed
from biograd.studies.results.writing import write_cell
from biograd.tasks import Classes, Regression, Task, learned
from biograd.training import StepRecord, Trainer, evaluate


def split(rows: int = 53) -> Arrays:
    stream = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 5, generator=stream)
    targets = 3 + inputs[:, 0] - 2 * inputs[:, 1] + 0.1 * torch.randn(rows, generator=stream)
    return Arrays(inputs, targets)


def trainer(task: Task, outputs: int, given: Arrays, **settings: object) -> Trainer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs))
    engine = attach(network, biograd.Backpropagation(), task=task)
    recipe = TrainingRecipe(batch_size=10, **settings)  # type: ignore[arg-type]
    return Trainer(engine, recipe, given, 0)


def test_metrics_of_a_split_are_pooled_over_ragged_batches() -> None:
    given = split()
    one = trainer(Regression(1), 1, given, epochs=20, learning_rate=0.01)
    records = list(one.steps())
    assert set(records[0].metrics) == {"r2", "mse"}
    outputs = one.engine.network(given.inputs)[:, 0].detach()
    expected = r2_score(given.targets, outputs)
    for size in (7, 53):
        found = evaluate(one.engine, given, batch_size=size)
        assert found["r2"] == pytest.approx(expected, rel=1e-6)
        assert found["mse"] == pytest.approx(float((outputs - given.targets).square().mean()))
        assert found["loss"] == pytest.approx(found["mse"] / 2)
    assert expected > 0.5


def test_an_epoch_pools_what_its_steps_have_counted() -> None:
    given = split(50)
    one = trainer(Regression(1), 1, given, epochs=1, learning_rate=1e-9)
    again = trainer(Regression(1), 1, given, epochs=1, learning_rate=1e-9)
    sums = EpochSums()
    seen: list[Tensor] = []
    for record in one.steps():
        sums = sums.and_of(record)
        seen.append(torch.tensor(record.totals["r2"][3]))
    assert sums.steps == 5 and float(sum(seen)) == 50  # type: ignore[arg-type]
    pooled = one.engine.task.figures(sums.totals)
    mean = sum(step.metrics["r2"] for step in again.steps()) / 5
    assert pooled["r2"] == pytest.approx(evaluate(one.engine, given)["r2"], rel=1e-4)
    assert abs(pooled["r2"] - mean) > 1e-3


def test_sums_of_checkpoints_from_before_there_were_tasks_go_on() -> None:
    old = EpochSums.of([6.0, 2.4, 3], 10)
    assert old.totals == {"accuracy": [[24.0], [30.0]]} and old.steps == 3
    record = StepRecord(4, 0, 1.0, {}, 1.0, 0.1, False, 1.0, 0, {"accuracy": [[8.0], [10.0]]})
    assert Classes(3).figures(old.and_of(record).totals)["accuracy"] == 0.8
    assert EpochSums.of([0.0, 0.0, 0], 10) == EpochSums()
    kept = {"loss": 1.0, "steps": 1, "totals": {"accuracy": [[8.0], [10.0]]}}
    assert EpochSums.of(kept, 10) == EpochSums(1.0, 1, {"accuracy": [[8.0], [10.0]]})


def test_a_summary_of_before_means_the_accuracy() -> None:
    old, new = {"test_accuracy": 0.9}, {"headline": "r2", "better": "higher", "test_r2": 0.4}
    assert (headline(old), figure(old)) == ("accuracy", 0.9)
    assert (headline(new), figure(new)) == ("r2", 0.4)
    assert prefixed("test", {"r2": 0.4}) == {"test_r2": 0.4}
    assert Shown.of([old, old], True) == Shown("accuracy", True)
    assert Shown.of([new], False).value(0.4) == 0.4 and not Shown.of([new], False).share
    assert Shown.of([old, new], False).word == "result"


def test_shares_are_per_cents_and_other_metrics_are_numbers() -> None:
    assert is_share("kind.accuracy") and not is_share("r2") and not is_share("loss")
    assert (written("exact", 0.25), written("rmse_hz", 3.14159)) == ("25.0 %", "3.142")
    assert Shown("accuracy", True).value(0.9) == pytest.approx(10.0)
    assert (
        Shown("accuracy", True).falls and not Shown().falls and Shown("mse", better="lower").falls
    )
    assert describe({"headline": "r2", "test_r2": 0.5, "train_loss": 1.0}) == (
        "loss 1.0000  test 0.5"
    )
    assert write_cell("test", 0.4567, True) == "0.457" and write_cell("test", 45.67) == "45.67"
    assert write_cell("test_accuracy", 0.95) == "95.0"
    record = {"run": "a.h5", "model": "m", "dataset": "d", "estimator": "e", "headline": "r2"}
    assert "test r2" in told({**record, "test_r2": 0.5, "train_r2": math.nan})


def test_the_loss_of_a_recipe_is_that_of_classes() -> None:
    assert learned(Classes(3), "squared_error") == Classes(3, loss="squared_error")
    assert learned(Regression(3), "squared_error") == Regression(3)
    assert learned(Regression(3), None) == Regression(3)
    for task, loss in ((Regression(3), "cross_entropy"), (Classes(3), "squared_error")):
        with pytest.raises(RecipeError, match=r"training\.loss"):
            learned(task, loss, own="huber")
    with pytest.raises(RecipeError, match=r"training\.loss = 'squared_error' is for classes"):
        learned(biograd.tasks.MultiLabel(3), "squared_error")


def test_a_run_of_several_heads_and_one_in_time_name_their_metrics(tmp_path: Path) -> None:
    stream = torch.Generator().manual_seed(0)
    inputs = torch.rand(60, 6, generator=stream)
    heads = {
        "kind": {"name": "classes", "outputs": 2},
        "size": {"name": "regression", "outputs": 1},
    }
    targets = {"kind": (inputs[:, 0] > 0.5).long(), "size": inputs.sum(1)}
    run = biograd.train(
        "ann",
        (inputs, targets),
        task={"name": "heads", "heads": heads},
        estimator="backprop",
        epochs=1,
        path=tmp_path / "heads.h5",
    )
    assert run.attributes["headline"] == "loss" and run.attributes["better"] == "lower"
    assert {"test_kind.accuracy", "test_size.r2", "train_loss"} <= set(run.scalars("epoch"))
    assert figure(run.summary, "train") > 0 and Shown.of([run.summary], False).falls
    course = torch.rand(40, 15, 4, generator=stream)
    run = biograd.train(
        "spiking",
        ((course > 0.5).float(), course.mean(2).cumsum(1)),
        estimator="eprop",
        settings=["encoding.kind=given", "encoding.duration_ms=15"],
        epochs=1,
        path=tmp_path / "time.h5",
        control=True,
    )
    assert headline(run.summary) == "r2" and "test_mse" in run.scalars("epoch")
    assert run.summary["frozen_hidden_control"] is not None
