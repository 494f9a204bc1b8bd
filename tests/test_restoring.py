"""A checkpoint with other names, shapes, types or values than its configuration makes is refused.

Each check damages one tensor of a real checkpoint; the digests would be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from biograd.configuration import TrainingRequest, configure
from biograd.errors import RunFileError
from biograd.experiment import Experiment
from biograd.recipes.learning import OPTIMISERS
from biograd.recording.restoring import restore

SMALL = [
    "dataset.training_examples=24",
    "dataset.test_examples=8",
    "network.hidden=[5,4]",
    "training.batch_size=8",
]
GUESSING = "forward_gradient_activity"
KINDS: dict[str, tuple[str, str, list[str]]] = {
    "adam": ("spiking", "backprop", ["encoding.duration_ms=3"]),
    "adamw": ("ann", "weak", ["training.optimiser=adamw"]),
    "momentum": ("ann", "node_perturbation", ["training.optimiser=sgd", "training.momentum=0.9"]),
    "plain": ("ann", "backprop", ["training.optimiser=sgd", "training.momentum=0"]),
    "feedback": ("ann", "direct_feedback", ["decorrelation.rule=kappa"]),
    "mirror": ("ann", "weight_mirror", ["decorrelation.rule=foldiak"]),
    "synthetic": ("ann", "synthetic_gradient", []),
    "gain": ("spiking", "gain", ["encoding.duration_ms=3"]),
    "store": ("ann", "decoupling", ["decorrelation.rule=copi"]),
    "guess": (
        "ann",
        "forward_gradient_activity",
        ["estimators.forward_gradient_activity.tangents=local"],
    ),
    "local": ("ann", "backprop", ["local.loss=predsim"]),
}
OTHERS = sorted({*OPTIMISERS} - {"adam", "adamw", "sgd"})
KINDS |= {name: ("ann", "backprop", [f"training.optimiser={name}"]) for name in OTHERS}
WAYS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "lost": lambda value: None,
    "shape": lambda value: value.reshape(-1, 1),
    "type": lambda value: value.to(torch.int16),
    "wider": lambda value: value.double() if value.dtype == torch.float32 else value.float(),
    "empty": lambda value: value.new_zeros(0),
    "larger": lambda value: value.new_zeros(1000, 3),
    "nan": lambda value: torch.full_like(value, torch.nan) if value.is_floating_point() else None,
}


def made(kind: str) -> Experiment:
    """Return a training that has not begun."""
    model, estimator, settings = KINDS[kind]
    request = TrainingRequest(model, "digits", estimator, assignments=(*SMALL, *settings))
    configuration = configure(request)
    return Experiment(configuration, configuration.read(None))


def begun(kind: str, steps: int = 4) -> tuple[Experiment, Iterator[Any]]:
    """Return a training after some steps, and those that follow."""
    experiment = made(kind)
    records = experiment.trainer.steps()
    for _ in range(steps):
        next(records)
    return experiment, records


@pytest.mark.parametrize("kind", KINDS)
def test_any_tensor_that_does_not_fit_is_refused(kind: str) -> None:
    tensors, meta = begun(kind)[0].trainer.checkpoint()
    fresh = made(kind)
    trained = {name for name, p in fresh.network.named_parameters() if p.requires_grad}
    free = set(fresh.network.state_dict()) - trained
    for name, value in tensors.items():
        for way, damage in WAYS.items():
            changed = damage(value)
            others = {n: v for n, v in tensors.items() if n != name}
            if changed is not None:
                others[name] = changed
            if way == "nan" and name.removeprefix("network.") in free:
                continue  # a buffer, or a parameter that nothing trains, may hold anything
            with pytest.raises(RunFileError, match="does not fit its configuration") as error:
                restore(fresh, others, meta, "run.h5")
            said = str(error.value)
            assert "\n" not in said
            assert name.removeprefix("network.") in said or "store" in name, said
        with pytest.raises(RunFileError, match="does not fit"):
            restore(fresh, {**tensors, f"{name}.x": value}, meta, "run.h5")


@pytest.mark.parametrize("kind", KINDS)
def test_one_from_before_the_first_step_is_taken(kind: str) -> None:
    restore(made(kind), *made(kind).trainer.checkpoint(), "run.h5")


def test_what_has_a_root_is_not_negative() -> None:
    tensors, meta = begun("adam")[0].trainer.checkpoint()
    for name, value in (("exp_avg_sq", -1.0), ("step", -1.0), ("step", 9.0)):
        chosen = [k for k in tensors if k.startswith("optimiser.") and k.endswith(name)]
        damaged = tensors | {k: torch.full_like(tensors[k], value) for k in chosen}
        with pytest.raises(RunFileError, match="out of range"):
            restore(made("adam"), damaged, meta, "run.h5")


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_fits_goes_on_as_before(kind: str) -> None:
    whole, following = begun(kind)
    tensors, meta = whole.trainer.checkpoint()
    fresh = made(kind)
    for _ in range(2):  # before anything on the disk is changed, and then
        restore(fresh, tensors, meta, "run.h5")
    next(following), next(fresh.trainer.steps())
    expected, found = whole.trainer.checkpoint()[0], fresh.trainer.checkpoint()[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
