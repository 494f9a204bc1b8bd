"""Which Brian2 equations are which snnTorch neuron: a million spike entries without a difference.

2000 neurons, 500 steps of a noisy current, float64.  Every row of the table is written by the user
in Brian2, and simulated by Brian2, by snnTorch's ``Leaky`` and by torch.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.neurons import Leaky
from biograd.neurons.coefficients import coefficients
from biograd.neurons.scan import record
from biograd.randomness import generator
from biograd.recipes import PopulationRecipe

NEURONS, STEPS, TAU = 2000, 500, 10.0
EXACT, EULER = math.exp(-1 / TAU), 1 - 1 / TAU


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: Brian2's model and snnTorch's arguments.

    Attributes:
        beta: snnTorch's decay; its input is ``input_scale`` times the current.
        torch_reset: of the torch neuron that is the same, "" if none is.
    """

    recipe: PopulationRecipe
    beta: float
    input_scale: float
    options: dict[str, Any]
    torch_reset: Any = ""


def leaky(method: str, reset: str, **namespace: float) -> PopulationRecipe:
    return PopulationRecipe(
        equations="dv/dt = (I - v) / tau : 1\nI : 1",
        threshold="v > 1",
        reset=reset,
        method=method,
        namespace={"tau": "10*ms", **namespace},
    )


ZERO = {"reset_mechanism": "zero"}
ROWS = {
    "exact, to zero": Row(leaky("exact", "v = 0"), EXACT, 1 - EXACT, ZERO, "zero"),
    "exact, to zero at once": Row(
        leaky("exact", "v = 0"), EXACT, 1 - EXACT, ZERO | {"reset_delay": False}, "zero"
    ),
    "euler, to zero": Row(leaky("euler", "v = 0"), EULER, 1 / TAU, ZERO, "zero"),
    "exact, subtract": Row(
        leaky("exact", "v -= 1 / beta", beta=EXACT), EXACT, 1 - EXACT, {}, "subtract"
    ),
    "euler, subtract": Row(
        leaky("euler", "v -= 1 / beta", beta=EULER), EULER, 1 / TAU, {}, "subtract"
    ),
    "exact, subtract at once": Row(
        leaky("exact", "v -= 1"), EXACT, 1 - EXACT, {"reset_delay": False}
    ),
    "difference equation": Row(
        PopulationRecipe(
            equations="v : 1\nI : 1",
            update="v = beta * v + I",
            threshold="v > 1",
            reset="v -= 1 / beta",
            namespace={"beta": EXACT},
        ),
        EXACT,
        1.0,
        {},
        "subtract",
    ),
}


def current(scale: float) -> Tensor:
    """Return white noise around a current that makes a neuron spike every few steps."""
    draws = torch.randn(1, STEPS, NEURONS, generator=generator(0, "noise"), dtype=torch.float64)
    return scale * (1.1 + 1.5 * draws)


def by_brian2(row: Row, drive: Tensor) -> Tensor:
    import_brian2().prefs.codegen.target = "numpy"
    return Brian2Layer(row.recipe, NEURONS, STEPS, dt_ms=1.0)(drive)


def by_snntorch(row: Row, drive: Tensor) -> Tensor:
    neuron = snntorch.Leaky(
        beta=torch.tensor(row.beta, dtype=torch.float64),
        threshold=torch.tensor(1.0, dtype=torch.float64),
        **row.options,
    )
    snntorch.SpikingNeuron.instances.remove(neuron)
    state, train = torch.zeros(1, NEURONS, dtype=torch.float64), []
    for now in drive.unbind(1):
        spikes, state = neuron(row.input_scale * now, state)
        train.append(spikes.double())
    return torch.stack(train, 1)


def by_torch(row: Row, drive: Tensor) -> Tensor:
    c = SimpleNamespace(alpha=0.0, beta=row.beta, gain=row.input_scale, threshold=1.0)
    neuron = Leaky(reset=row.torch_reset)
    k = coefficients(neuron, c)
    assert k is not None
    return record(neuron, k, {"I": drive}, STEPS)[0]


def differences(first: Tensor, second: Tensor) -> int:
    assert first.numel() == NEURONS * STEPS == 1_000_000
    return int((first != second).sum())


def drive_of(row: Row) -> Tensor:
    # below twice the threshold, where snnTorch's reset at once is that of the equation
    gentle = 0.4 if row.options.get("reset_delay") is False and not row.torch_reset else 1.0
    return current(gentle * (1 - EXACT) / row.input_scale) + (1.0 if gentle < 1 else 0.0)


@pytest.mark.parametrize("name", ROWS)
def test_a_million_entries(name: str) -> None:
    row = ROWS[name]
    drive = drive_of(row)
    found = by_brian2(row, drive)
    assert 0.01 < found.mean() < 0.5
    assert differences(found, by_snntorch(row, drive)) == 0
    if row.torch_reset:
        assert differences(found, by_torch(row, drive)) == 0


@pytest.mark.parametrize(
    ("brian", "snn"),
    [("exact, subtract at once", "exact, subtract"), ("euler, to zero", "exact, to zero")],
)
def test_another_reset_or_decay_is_noticed(brian: str, snn: str) -> None:
    drive = current(1.0)
    assert differences(by_brian2(ROWS[brian], drive), by_snntorch(ROWS[snn], drive)) > 1000
