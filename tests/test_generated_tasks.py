"""Generated tasks in time: trials against formulas, and what networks learn of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import message

from biograd import data, experiment, recipes
from biograd.data.digests import sha256_of
from biograd.data.sources import evidence_accumulation as evidence
from biograd.errors import RecipeError
from biograd.experiment import TrainingRequest
from biograd.tasks import MISSING
from biograd.testing import check_source

EVIDENCE, PATTERN = "evidence_accumulation", "pattern_generation"


def loaded(name: str, *settings: str, dt_ms: float = 10.0) -> data.Dataset:
    recipe = recipes.load_dataset(name, settings)
    return data.load(recipe, name=name, timed=True, dt_ms=dt_ms)


# Pattern generation


def test_the_pattern_is_the_sum_of_sinusoids_that_it_says() -> None:
    found = loaded(PATTERN).test.take(torch.tensor([0])).targets[0, :, 0].double()
    assert found[0] == 0 and found.abs().max() == 1
    seconds = np.arange(100) / 100
    waves = [[f(2 * math.pi * k * seconds) for f in (np.sin, np.cos)] for k in range(1, 6)]
    basis = np.vstack([np.ones(100), *(wave for pair in waves for wave in pair)]).T
    weights, *_ = np.linalg.lstsq(basis, found.numpy(), rcond=None)
    assert np.abs(basis @ weights - found.numpy()).max() < 1e-6
    sizes = np.hypot(weights[1::2], weights[2::2])
    assert sizes.min() > 0 and sizes.max() / sizes.min() < 4  # amplitudes from 0.5 to 2


def test_the_pattern_is_one_trial_and_the_tasks_own() -> None:
    one = loaded(PATTERN)
    check_source(one.train)
    assert (len(one.train), len(one.test), one.task.timed, one.task.outputs) == (50, 1, True, 1)
    assert one.shape == (100,) and one.steps == 100
    assert (one.train.inputs == one.test.inputs).all()
    assert one.test.inputs.mean() == pytest.approx(0.5, abs=0.02)  # 50 Hz in steps of 10 ms
    other = loaded(PATTERN, "settings.seed=1")
    assert not torch.equal(other.test.inputs, one.test.inputs)
    assert not torch.equal(other.test.targets, one.test.targets)
    assert sha256_of(one.test.inputs).startswith("a4e2170b20f80b15")


# Evidence accumulation


def test_trials_hold_what_they_say() -> None:
    one = loaded(EVIDENCE, "settings.train_rows=400", "settings.test_rows=8")
    check_source(one.test)
    inputs, targets = one.train.inputs, one.train.targets
    assert inputs.shape == (400, 66, 40) and targets.shape == (400, 66)
    assert set(inputs.unique().tolist()) == {0.0, 1.0}
    assert (targets[:, :60] == MISSING).all() and (targets[:, 60:] == targets[:, 60:61]).all()
    assert 0.4 < targets[:, 60].double().mean() < 0.6
    left, right, recall, background = inputs.unflatten(2, (4, 10)).mean(3).unbind(2)
    cues = (left + right)[:, :42].unflatten(1, (7, 6))
    assert not cues[:, :, :2].any() and cues[:, :, 2:].mean() == pytest.approx(0.4, abs=0.01)
    assert not (left + right)[:, 42:].any() and not recall[:, :60].any()
    assert recall[:, 60:].mean() == pytest.approx(0.4, abs=0.02)
    assert background.mean() == pytest.approx(0.1, abs=0.01)
    on_right = right[:, :42].unflatten(1, (7, 6)).sum(2) > left[:, :42].unflatten(1, (7, 6)).sum(2)
    assert torch.equal((on_right.sum(1) > 3).long(), targets[:, 65])


def test_the_majority_of_cues_is_the_drawn_side_as_often_as_counted() -> None:
    settings = evidence.EvidenceSettings(fidelity=0.7)
    sides = torch.stack([evidence.draw_sides(settings, "train", row) for row in range(4000)])
    answers = 2 * sides.sum(1) > 7
    first = (sides[:, 0].bool() == answers).double().mean()
    # 0.727: one cue and the majority of seven, each on the drawn side with probability 0.7
    same = sum(math.comb(6, k) * 0.7**k * 0.3 ** (6 - k) for k in range(3, 7))
    swapped = sum(math.comb(6, k) * 0.3**k * 0.7 ** (6 - k) for k in range(3, 7))
    exact = 0.7 * same + 0.3 * swapped
    assert exact == pytest.approx(0.727, abs=0.001)
    assert first == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def test_the_number_of_trials_changes_none() -> None:
    few, many = (
        loaded(EVIDENCE, f"settings.train_rows={rows}", "settings.test_rows=8") for rows in (8, 20)
    )
    assert torch.equal(few.train.inputs, many.train.inputs[:8])
    assert torch.equal(few.test.inputs, many.test.inputs)
    assert not torch.equal(few.train.inputs, few.test.inputs)
    assert sha256_of(few.train.inputs, few.train.targets).startswith("0ea53359da4aa011")


REFUSED = [
    (PATTERN, ("shape=[2,3]",), 10.0, "write [units]"),
    (PATTERN, (), 30.0, "settings.duration_ms = 1000: is not a whole number of steps"),
    (PATTERN, ("settings.rate_hz=200",), 10.0, "settings.rate_hz = 200: is more than a spike"),
    (EVIDENCE, ("settings.cues=4",), 10.0, "cues = 4: must be odd"),
    (EVIDENCE, ("shape=[42]",), 10.0, "must be 4 groups"),
    (EVIDENCE, (), 40.0, "settings.pause_ms = 20"),
]


@pytest.mark.parametrize(("name", "settings", "dt_ms", "words"), REFUSED)
def test_what_cannot_be_is_refused(
    name: str, settings: tuple[str, ...], dt_ms: float, words: str
) -> None:
    assert words in message(RecipeError, lambda: loaded(name, *settings, dt_ms=dt_ms))


# Networks


SMALL = {
    PATTERN: ("dataset.settings.repeats=2", "training.epochs=1"),
    EVIDENCE: (
        "dataset.settings.train_rows=4",
        "dataset.settings.test_rows=2",
        "training.epochs=1",
        "training.batch_size=2",
    ),
}


def trained(folder: Path, name: str, estimator: str, *settings: str, **more: Any) -> dict[str, Any]:
    return experiment.execute(
        TrainingRequest(
            model="spiking_sequence",
            dataset=name,
            estimator=estimator,
            out=folder / "run.h5",
            device="cpu",
            assignments=settings,
            **more,
        )
    )


@pytest.mark.parametrize("kind", ["leaky", "adaptive_threshold"])
@pytest.mark.parametrize("estimator", ["backprop", "eprop", "weak"])
@pytest.mark.parametrize("name", [PATTERN, EVIDENCE])
def test_two_steps(tmp_path: Path, name: str, estimator: str, kind: str) -> None:
    summary = trained(tmp_path, name, estimator, f"neuron.kind={kind}", *SMALL[name])
    assert math.isfinite(summary["test_loss"])
    assert summary["headline"] == ("r2" if name == PATTERN else "accuracy")
