"""What the README promises, measured: test accuracy beside the control that trains the readout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_paths import shared_data

from biograd import experiment
from biograd.experiment import TrainingRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def trained(tmp_path: Path, **choices: Any) -> dict[str, Any]:
    return experiment.execute(TrainingRequest(out=tmp_path / "run.h5", device="cpu", **choices))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", ["ann", "spiking", "brian2"])
def test_digits(tmp_path: Path, model: str, seed: int) -> None:
    summary = trained(tmp_path, model=model, seed=seed, control=True)
    assert summary["estimator"] == "weak"
    assert summary["decorrelation"] == "kappa"
    assert summary["test_accuracy"] >= 0.95
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= 0.10


RULES = [("node_perturbation", 0.95), ("gain", 0.95), ("backprop", 0.96)]


@pytest.mark.parametrize(("estimator", "floor"), RULES)
def test_brian2_digits(tmp_path: Path, estimator: str, floor: float) -> None:
    summary = trained(tmp_path, model="brian2", estimator=estimator, control=True)
    assert summary["test_accuracy"] >= floor
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= 0.15


POPULATIONS = [
    ("brian2_adaptive", "weak", 0.94, 0.30),
    ("brian2_izhikevich", "weak", 0.94, 0.20),
    ("brian2_adex", "weak", 0.94, 0.45),
    ("brian2_recurrent", "backprop", 0.92, 0.05),
]


@pytest.mark.parametrize(("model", "estimator", "floor", "gain"), POPULATIONS)
def test_brian2_populations(
    tmp_path: Path, model: str, estimator: str, floor: float, gain: float
) -> None:
    summary = trained(tmp_path, model=model, control=True)
    assert summary["estimator"] == estimator
    assert summary["test_accuracy"] >= floor
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= gain


@pytest.mark.parametrize(
    ("model", "floor", "gain"), [("hodgkin_huxley", 0.74, 0.2), ("morris_lecar", 0.74, 0.25)]
)
def test_biophysical_neurons_learn_mnist(
    tmp_path: Path, model: str, floor: float, gain: float
) -> None:
    """2000 examples, three times, 50 ms each, by the weak gradient."""
    summary = trained(
        tmp_path,
        model=model,
        dataset="mnist",
        assignments=("dataset.training_examples=2000", "dataset.test_examples=1000"),
        data_dir=shared_data("mnist"),
        offline=True,
        control=True,
    )
    assert summary["estimator"] == "weak"
    assert summary["test_accuracy"] >= floor
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= gain


MNIST = [("ann", "weak", 3, 0.95), ("spiking", "backprop", 5, 0.97), ("spiking", "weak", 5, 0.96)]


@pytest.mark.parametrize(("model", "estimator", "epochs", "floor"), MNIST)
def test_mnist(tmp_path: Path, model: str, estimator: str, epochs: int, floor: float) -> None:
    summary = trained(
        tmp_path,
        model=model,
        dataset="mnist",
        estimator=estimator,
        epochs=epochs,
        data_dir=shared_data("mnist"),
        offline=True,
    )
    assert summary["test_accuracy"] >= floor


def test_decorrelation_earns_its_place(tmp_path: Path) -> None:
    """Paired over three seeds: spiking digits, 9 copies, 30 epochs, kappa against off."""
    gains = []
    for seed in range(3):
        found = {}
        for rule in ("off", "kappa"):
            options = (f"decorrelation.rule={rule}", "estimators.weak.copies=9")
            summary = trained(
                tmp_path, model="spiking", epochs=30, seed=seed, force=True, assignments=options
            )
            found[rule] = summary["test_accuracy"]
        gains.append(found["kappa"] - found["off"])
    assert sum(gains) / len(gains) > 0
