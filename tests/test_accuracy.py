"""What the README promises, measured: test accuracy beside the control that trains the readout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_paths import shared_data

from biograd import experiment
from biograd.experiment import Request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def trained(tmp_path: Path, **choices: Any) -> dict[str, Any]:
    return experiment.execute(Request(out=tmp_path / "run.h5", device="cpu", **choices))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", ["ann", "spiking", "brian2"])
def test_digits(tmp_path: Path, model: str, seed: int) -> None:
    summary = trained(tmp_path, model=model, seed=seed, control=True)
    assert summary["estimator"] == "weak"
    assert summary["decorrelation"] == "kappa"
    assert summary["test_accuracy"] >= 0.95
    assert summary["test_accuracy"] - summary["frozen_hidden_control"] >= 0.10


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
