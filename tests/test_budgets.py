"""Budgets in forward passes and in seconds: counted, spent, resumed, refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import batch, build, spiking
from torch import nn

import biograd
from biograd import experiment
from biograd.__main__ import main
from biograd.commands.train import summary as closing
from biograd.configuration import TrainingRequest, configure
from biograd.contracts import ParameterNoise, Plan
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS, Estimator
from biograd.experiment import Interrupted
from biograd.progress import Progress
from biograd.recipes import TrainingRecipe
from biograd.runs.reader import open_run
from biograd.training import Trainer, trainer

SMALL = (
    "dataset.settings.train_rows=20",
    "dataset.settings.test_rows=5",
    "training.batch_size=20",
    "network.hidden=[8, 6]",
    "estimators.weak.copies=5",
)
ROWS = 20 * 10
STEP = 20 * 5
"""Passes of a step: examples of a batch times copies."""


def request(path: Path, *assignments: str, **changes: Any) -> TrainingRequest:
    asked = TrainingRequest(
        model="ann",
        dataset="random_manifolds",
        estimator="weak",
        out=path,
        common=SMALL,
        assignments=assignments,
        device="cpu",
    )
    return replace(asked, **changes)


class Watch(Progress):
    """Keeps what is shown, and stops a run after some steps."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.total, self.title = stop, 0, ""
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []

    def begin(self, total_steps: int, title: str) -> None:
        self.total, self.title = total_steps, title

    def step(self, record: dict[str, Any]) -> None:
        self.steps.append(record)
        if len(self.steps) == self.stop:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)


def contents(path: Path) -> dict[str, np.ndarray]:
    """Return what must not depend on when a run was interrupted."""
    with open_run(path) as run:
        found = {f"tensor.{k}": v.numpy() for k, v in run.checkpoint()[0].items()}
        for stream in ("train_step", "epoch"):
            rows = run.scalars(stream)
            found |= {f"{stream}.{k}": v for k, v in rows.items() if k != "wall_time"}
        for layer in run.layers:
            found[layer] = np.asarray(run.activity(layer))
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


# Counting


def settings(name: str) -> dict[str, Any]:
    return {"copies": 9} if name in ("weak", "likelihood_ratio") else {}


def made(name: str) -> Estimator:
    return ESTIMATORS[name](**settings(name))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("kind", ["rate", "spiking"])
def test_passes_are_the_rows_that_reach_the_readout(name: str, kind: str) -> None:
    if kind == "spiking" and name == "decoupling":
        pytest.skip("targets cannot be spikes")
    network: nn.Module = build("mlp") if kind == "rate" else spiking()
    inputs, targets = batch(6)
    engine = biograd.attach(network, made(name))
    engine(inputs, targets, torch.arange(6))  # the first step is compared with passes of its own
    rows: list[int] = []
    readout = list(network.modules())[-1] if kind == "rate" else network.get_submodule("readout")
    readout.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    result = engine(inputs, targets, torch.arange(6))
    assert result.passes * 6 == sum(rows) > 0
    needs = engine.estimator.needs
    if needs & {"perturb_site", "perturb_parameter"}:
        assert result.passes >= len(result.losses) > 1
    elif "jvp_site" in needs or "jvp_parameter" in needs:
        assert result.passes > len(result.losses) == 1
    engine.detach()


def test_a_plan_counts_each_kind_of_copy() -> None:
    noise, shared = torch.zeros(4, 2, 1, 3), ParameterNoise((0, 1), (1.0, 1.0))
    assert Plan().passes == 1
    assert Plan(noise={"a": noise, "b": noise}).passes == 5
    assert Plan(parameter_noise=shared).passes == 3
    assert Plan(tangents={"a": noise, "b": noise}).passes == 5
    assert Plan(parameter_tangents=shared, tangents={"a": noise}).passes == 7


# Spending


def test_the_training_ends_with_the_step_that_spends_the_passes(tmp_path: Path) -> None:
    watch = Watch()
    budget = 33 * STEP - 1
    summary = experiment.execute(
        request(tmp_path / "a.h5", f"training.passes={budget}", "training.schedule=cosine"), watch
    )
    assert summary["forward_passes"] == 33 * STEP and summary["epochs"] == 3.3
    assert summary["budget"] == {"passes": budget}
    assert watch.total == budget and sum(r["spent"] for r in watch.steps) == 33 * STEP
    assert watch.title.endswith(f"weak · {budget} passes")
    assert [row["epoch"] for row in watch.epochs] == [1, 2, 3, 4] and "epochs" not in watch.epochs[
        0
    ]
    with open_run(tmp_path / "a.h5") as run:
        steps, epochs = run.scalars("train_step"), run.scalars("epoch")
        assert epochs["step"].tolist() == [10, 20, 30, 33]
        assert epochs["epoch"].tolist() == [0, 1, 2, 3]
        assert epochs["test_accuracy"][-1] == np.float32(summary["test_accuracy"])
        assert epochs["train_loss"][-1] == pytest.approx(steps["loss"][30:].mean(), rel=1e-6)
        assert run.snapshots["step"][-1] == 33
        shares = np.arange(33) * STEP / budget
        rate = run.config["recipe"]["training"]["learning_rate"]
        expected = rate * 0.5 * (1 + np.cos(math.pi * shares))
        np.testing.assert_allclose(steps["learning_rate"], expected, rtol=1e-6)
    text = closing(summary)
    assert "3.30, a budget of 3.3 k passes" in text and "biograd resume" not in text


def test_passes_of_whole_epochs_are_those_epochs_bit_for_bit(tmp_path: Path) -> None:
    rows = ("training.batch_size=32", "training.schedule=cosine")
    first = request(tmp_path / "a.h5", *rows, epochs=3, estimator="backprop")
    passes = f"training.passes={3 * 32 * (ROWS // 32)}"
    summary = experiment.execute(first)
    other = experiment.execute(replace(first, epochs=None, out=tmp_path / "b.h5",
                                       assignments=(*first.assignments, passes)))  # fmt: skip
    assert other["epochs"] == summary["epochs"] == 3 and isinstance(other["epochs"], int)
    assert same(contents(tmp_path / "a.h5"), contents(tmp_path / "b.h5"))
    experiment.execute(replace(first, epochs=2, out=tmp_path / "c.h5"))
    assert not same(contents(tmp_path / "a.h5"), contents(tmp_path / "c.h5"))


def test_a_run_on_passes_resumes_bit_for_bit(tmp_path: Path) -> None:
    budget = "training.passes=3350"
    whole = experiment.execute(request(tmp_path / "a.h5", budget))
    for stop in (7, 31):  # in a whole epoch, and in the one that is cut short
        path = tmp_path / f"{stop}.h5"
        with pytest.raises(Interrupted):
            experiment.execute(request(path, budget), Watch(stop))
        watch = Watch()
        summary = experiment.proceed(path, progress=watch)
        assert summary["forward_passes"] == whole["forward_passes"] == 34 * STEP
        assert watch.total == 3350 - stop * STEP
        assert same(contents(tmp_path / "a.h5"), contents(path))


def test_more_epochs_than_the_recipe_has_are_no_obstacle(tmp_path: Path) -> None:
    path, model, epochs = tmp_path / "a.h5", tmp_path / "a.toml", TrainingRecipe().epochs
    model.write_text(f"[training]\npasses = {ROWS * (epochs + 2)}\nbatch_size = 100\n")
    with pytest.raises(Interrupted):
        experiment.execute(request(path, model=str(model), estimator="backprop",
                                   common=SMALL[:2]), Watch(2 * epochs + 3))  # fmt: skip
    assert experiment.proceed(path)["epochs"] == epochs + 2
    assert experiment.proceed(path)["epochs"] == epochs + 2


def ticking(monkeypatch: Any, tick: float = 0.25) -> None:
    """Let every look at the training's clock take so long: a step looks twice."""
    now = [0.0]

    def look() -> float:
        now[0] += tick
        return now[0]

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=look))


def test_seconds_are_those_of_the_steps_and_resume(tmp_path: Path, monkeypatch: Any) -> None:
    ticking(monkeypatch)
    budget = ("training.seconds=6.1", "training.schedule=cosine")
    watch = Watch()
    summary = experiment.execute(request(tmp_path / "a.h5", *budget), watch)
    assert summary["training_seconds"] == 25 * 0.25 and summary["epochs"] == 2.5
    assert summary["budget"] == {"seconds": 6.1} and summary["forward_passes"] == 25 * STEP
    assert watch.total == 7 and watch.title.endswith("weak · 6.1 s")
    with open_run(tmp_path / "a.h5") as run:
        assert run.scalars("epoch")["step"].tolist() == [10, 20, 25]
        rates = run.scalars("train_step")["learning_rate"]
        shares = np.arange(25) * 0.25 / 6.1
        expected = rates[0] * 0.5 * (1 + np.cos(math.pi * shares))
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
    path = tmp_path / "b.h5"
    with pytest.raises(Interrupted):
        experiment.execute(request(path, *budget), Watch(13))
    assert experiment.proceed(path)["training_seconds"] == 25 * 0.25
    assert same(contents(tmp_path / "a.h5"), contents(path))
    text = closing(summary)
    assert "2.50, a budget of 6.1 seconds" in text and "--epochs" not in text


def test_the_control_has_the_same_budget(tmp_path: Path, monkeypatch: Any) -> None:
    steps: list[float] = []
    train = Trainer._train

    def counted(self: Any, *arguments: Any) -> Any:
        record = train(self, *arguments)
        steps.append(record.spent)
        return record

    monkeypatch.setattr(Trainer, "_train", counted)
    experiment.execute(request(tmp_path / "a.h5", "training.passes=900", control=True))
    assert steps == [STEP] * 9 + [20] * 45  # one copy of each example in the control


# Refusing


REFUSED = [
    (("training.passes=10", "training.seconds=3"), {}, "two budgets: give one of them"),
    (("training.passes=10",), {"epochs": 3}, "--epochs 3: training.passes = 10 takes the place"),
    (("training.seconds=10", "training.epochs=3"), {}, "--set training.epochs=3: training.seconds"),
    (("training.passes=0",), {}, "training.passes = 0: must be >= 1"),
    (("training.passes=1.5",), {}, "training.passes = 1.5: must be a whole number"),
    (("training.seconds=0",), {}, "training.seconds = 0.0: must be > 0"),
]


@pytest.mark.parametrize(("assignments", "changes", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_two_budgets_are_refused(assignments: Any, changes: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        configure(TrainingRequest(assignments=assignments, **changes))


def test_a_file_has_one_budget_and_options_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text("[training]\nepochs = 3\nseconds = 5\n")
    with pytest.raises(RecipeError, match=r"model\.toml: training: epochs and seconds are two"):
        configure(TrainingRequest(model=str(path)))
    path.write_text("[training]\nepochs = 3\n")
    asked = TrainingRequest(model=str(path), assignments=("training.passes=7",))
    assert configure(asked).recipe.training.budget == ("passes", 7)
    path.write_text("[training]\nseconds = 3\n")
    assert configure(TrainingRequest(model=str(path))).recipe.training.budget == ("seconds", 3.0)
    assert TrainingRecipe(epochs=4).budget == ("epochs", 4)


def test_epochs_cannot_prolong_another_budget(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "training.passes=500"))
    before = path.read_bytes()
    assert main(["resume", str(path), "--epochs", "9", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "--epochs 9: the run's budget is training.passes = 500, which cannot be" in error
    assert len(error.splitlines()) == 1 and path.read_bytes() == before
