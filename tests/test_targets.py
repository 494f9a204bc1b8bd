"""Targets and events: what is taken for what is said; what cannot be taken is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biograd
from biograd.configuration import Configuration, TrainingRequest, configure
from biograd.data import Events
from biograd.errors import BiogradError, DataError, RecipeError
from biograd.experiment import execute
from biograd.progress import Progress
from biograd.tasks import infer

X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(60) % 3
ONE_HOT = nn.functional.one_hot(CLASSES, 3)


class Notes(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def said(path: Path, data: Any, **choices: Any) -> str:
    watch = Notes()
    asked = TrainingRequest("ann", own=data, estimator="backprop", epochs=1, device="cpu")
    execute(replace(asked, out=path, **choices), watch)
    return "; ".join(watch.said)


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_what_targets_and_inputs_are_taken_for_is_said(tmp_path: Path) -> None:
    words = said(tmp_path / "a.h5", (X, CLASSES))
    assert "targets int64 [60] are taken for classes, 3 of them: task says otherwise" in words
    words = said(tmp_path / "b.h5", (X, CLASSES), task="regression")
    assert "whole numbers are taken as real ones by regression" in words
    words = said(tmp_path / "c.h5", ((X * 255).to(torch.uint8), CLASSES), task="classes")
    assert "inputs are uint8, 0 to 25" in words and "not scaled" in words
    assert "taken for" not in words  # the task was named
    words = said(tmp_path / "d.h5", (torch.rand(60, 4, 5), CLASSES))
    assert "taken for grids without time: dataset.timed=true" in words


@pytest.mark.parametrize(
    "targets, task, words",
    [
        (ONE_HOT, None, "every row of [60, 3] is a one-hot vector"),
        (ONE_HOT, "classes", "is a one-hot vector: give numbers of classes"),
        (ONE_HOT.float(), "classes", "classes are torch.float32"),
        (CLASSES + 0.5, "classes", "classes are torch.float32"),
        (CLASSES - 1, "classes", "class -1, known are 0 to 1"),
        (CLASSES - 1, None, "may be counts"),
        (torch.full((60,), torch.nan), "regression", "target"),
    ],
)
def test_targets_that_are_not_those_of_the_task(targets: Any, task: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        biograd.train("ann", (X, targets), task=task, estimator="backprop", epochs=1, path="none")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_one_hot_columns_are_no_course_of_classes() -> None:
    with pytest.raises(DataError, match="one-hot"):
        infer(ONE_HOT)
    assert infer(torch.tensor([[0, 1, 2], [2, 2, 0]])) == "classes"  # a course


@pytest.mark.parametrize(
    "targets, words",
    [
        (CLASSES[:, None], "[60, 1] are no classes for outputs [60, 3]"),
        (CLASSES + 1, "class 3, known are 0 to 2"),
        (-CLASSES - 1, "class -1, known are 0 to 2"),
        (CLASSES.float(), "classes are whole numbers"),
    ],
)
def test_an_attached_engine_names_what_is_wrong_with_classes(targets: Any, words: str) -> None:
    engine = biograd.attach(module(), biograd.Backpropagation())
    with pytest.raises(BiogradError) as caught:
        engine(X, targets)
    assert words in str(caught.value)
    squared = biograd.attach(module(), biograd.Backpropagation(), loss="squared_error")
    with pytest.raises(BiogradError):
        squared(X, targets)


def test_small_types_of_whole_numbers_are_classes() -> None:
    found = {
        float(biograd.attach(module(), biograd.Backpropagation())(X, CLASSES.to(kind)).loss)
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    "times, channels, words",
    [
        ([1.0], [2.5], "unit 2.5 is outside 0..1"),
        ([1.0], [float("nan")], "unit nan is outside"),
        ([1.0], [2], "unit 2 is outside"),
        ([1.0], [-1], "unit -1 is outside"),
        ([float("nan")], [0], "a time is negative or not finite"),
        ([-1.0], [0], "a time is negative"),
        ([1.0, 2.0], [0], "2 times, 1 units"),
    ],
)
def test_events_that_cannot_be_binned(times: Any, channels: Any, words: str) -> None:
    events = Events([[0.0], times], [[0], channels], torch.zeros(2), units=2)
    with pytest.raises(DataError, match="row 1") as caught:
        events.check()
    assert words in str(caught.value)


def test_the_order_of_events_does_not_matter_and_each_counts() -> None:
    events = Events([[3.0, 1.0, 1.0]], [[0, 1, 1]], torch.zeros(1), units=2)
    binned = events.take(torch.tensor([0])).inputs[0]
    assert binned[3, 0] == 1 and binned[1, 1] == 2 and binned.sum() == 3


@pytest.mark.parametrize("wrong", [{"units": 0}, {"dt_ms": -1.0}, {"to_ms": 0.0}, {"steps": -1}])
def test_settings_of_events_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Events([[1.0]], [[0]], torch.zeros(1), **{"units": 2, **wrong})


def test_train_takes_what_attach_takes(tmp_path: Path) -> None:
    run = biograd.train(
        module(), (X, CLASSES), estimator="feedback_alignment", epochs=1, path=tmp_path / "a.h5",
        loss="squared_error", sites=["0", "2"], decorrelate={"rule": "copi", "rate": 0.01},
        local="cross_entropy",
    )  # fmt: skip
    kept = Configuration.of(run.config, run.path)
    assert kept.sites == {"0": ("0",), "2": ("2",)}
    assert kept.recipe.training.loss == "squared_error"
    assert kept.recipe.decorrelation.rule == "copi" and kept.recipe.local.loss == "cross_entropy"
    _network, engine = biograd.trained(run, module(), (X, CLASSES))
    assert [site.name for site in engine.substrate.sites] == ["0", "2"]


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"loss": "hinge"}, "loss: training.loss = 'hinge'"),
        ({"decorrelate": "kapa"}, "decorrelate: decorrelation.rule = 'kapa'"),
        ({"local": {"beta": 0.5}}, "local.beta: has no effect"),
        ({"sites": ["0"]}, "sites: have no effect on a network of biograd"),
        ({"task": "regression", "loss": "cross_entropy"}, "training.loss = 'cross_entropy'"),
        (
            {"task": {"name": "classes", "loss": "squared_error"}, "loss": "cross_entropy"},
            "give one",
        ),
    ],
)
def test_train_refuses_what_it_cannot_obey(
    tmp_path: Path, choices: dict[str, Any], words: str
) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(RecipeError) as caught:
        biograd.train("ann", (X, CLASSES), estimator="backprop", epochs=1, path=path, **choices)
    assert words in str(caught.value)


def test_a_run_of_before_had_a_loss_of_classes_whatever_its_task() -> None:
    table = configure(TrainingRequest()).table()
    table["recipe"]["training"]["loss"] = "cross_entropy"
    table["data"]["task"] = {"name": "regression"}
    assert Configuration.of(table, "a.h5").recipe.training.loss is None
    table["data"]["task"] = {"name": "classes"}
    assert Configuration.of(table, "a.h5").recipe.training.loss == "cross_entropy"


class Many(torch.utils.data.Dataset[Any]):
    """More examples than are read before a training."""

    def __len__(self) -> int:
        return 20_001

    def __getitem__(self, row: int) -> Any:
        return X[row % 60], int(CLASSES[row % 60])


@pytest.mark.slow
def test_a_digest_of_a_part_says_so_in_the_file(tmp_path: Path) -> None:
    choices: dict[str, Any] = {"task": "classes", "settings": ["dataset.classes=3"]}
    data = {"train": Many(), "test": (X, CLASSES)}
    run = biograd.train(
        "ann", data, estimator="backprop", epochs=0, path=tmp_path / "a.h5", **choices
    )
    assert run.attribute("dataset_sha256_covers").startswith("the first 64 of 20001 examples")
    run = biograd.train(
        "ann", (X, CLASSES), estimator="backprop", epochs=0, path=tmp_path / "b.h5", **choices
    )
    assert "dataset_sha256_covers" not in run.attributes


def test_the_control_says_at_which_learning_rate(tmp_path: Path, capsys: Any) -> None:
    from biograd.commands.train import summary

    run = biograd.train(
        "ann", (X, CLASSES), estimator="backprop", epochs=1, path=tmp_path / "a.h5", control=True
    )
    assert run.summary["control_learning_rate"] == 0.01
    assert "at the rule's learning rate, 0.01" in summary({**run.summary, "run": "a.h5"})
