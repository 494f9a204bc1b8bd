"""Back-propagation that stores one part of a trial at a time: the gradients of whole trials."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_online import CASES, INPUTS, NEURONS, OUTPUTS, STEPS, batch, credited, difference, made

from biograd import networks, tasks
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Backpropagation
from biograd.estimators.eprop import EligibilityPropagation
from biograd.recipes import ModelRecipe, construct


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("neuron", "recurrent", "timed", "readout"), CASES)
def test_gradients_are_those_of_whole_trials(
    neuron: str, recurrent: bool, timed: bool, readout: str, window: int | None
) -> None:
    build = lambda: made(timed, neuron, recurrent=recurrent, readout=readout)  # noqa: E731
    expected, _ = credited(build(), Backpropagation(window=window), timed)
    assert float(expected["blocks.0.synapse.weight"].abs().max()) > 1e-6
    for chunk in (1, 5, 50) if window is None else (None,):
        rule = Backpropagation(window=window, recompute=True, chunk=chunk)
        found, _ = credited(build(), rule, timed)
        assert difference(found, expected) < 1e-9


def spoiled(given: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a network of other parts than dense layers."""
    tables = {
        "network": {"kind": "spiking", "substrate": "torch", "hidden": [6, 6]},
        "neuron": {"time_constant_ms": 8.0, "resistance": 9.0},
        "encoding": {"kind": "current", "dt_ms": 1.0, "duration_ms": float(STEPS)},
        "decorrelation": {"rule": "off"},
    }
    return {name: {**table, **given.get(name, {})} for name, table in tables.items()}


@pytest.mark.parametrize(
    "given",
    [
        {"network": {"channels": [3], "hidden": [5]}},
        {"network": {"normalisation": "layer"}},
        {"network": {"dropout": 0.3}},
        {"network": {"residual": True}},
        {"neuron": {"trainable": {"time_constant_ms": [0.5, 2.0], "threshold": [0.5, 2.0]}}},
        {"network": {"substrate": "snntorch"}},
    ],
    ids=str,
)
def test_what_has_no_traces_is_recomputed(given: dict[str, Any]) -> None:
    """Convolutions, normalisation, dropout, skips, learned constants; e-prop refuses the same."""
    recipe = construct(ModelRecipe, spoiled(given), "test")
    inputs = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    targets, found = torch.tensor([0, 1, 2, 0]), []
    for rule in (Backpropagation(), Backpropagation(recompute=True, chunk=4)):
        network = networks.build(recipe, (1, 6, 6), OUTPUTS, 1).double()
        engine = attach(network, rule, seed=3)
        engine(inputs, targets).backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert difference(found[1], found[0]) < 1e-9
    if "substrate" not in given.get("network", {}):
        network = networks.build(recipe, (1, 6, 6), OUTPUTS, 1)
        with pytest.raises(CapabilityError, match="online"):
            attach(network, EligibilityPropagation(online=True))


def test_a_window_is_no_whole_trial() -> None:
    whole, _ = credited(made(False, "subtract"), Backpropagation(recompute=True, chunk=6), False)
    cut, _ = credited(made(False, "subtract"), Backpropagation(window=6, recompute=True), False)
    assert difference(cut, whole) > 1e-2


def test_loss_and_outputs_are_those_of_the_trial() -> None:
    task = tasks.Regression(OUTPUTS, timed=True)
    results = []
    for given in ({}, {"recompute": True, "chunk": 4}):
        engine = attach(made(True, "alif", recurrent=True), Backpropagation(**given), task=task)
        results.append(engine(*batch(True)))
    assert torch.allclose(results[0].outputs, results[1].outputs, rtol=0, atol=1e-12)
    assert torch.allclose(results[0].loss, results[1].loss, rtol=1e-10)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"chunk": 5}, "chunk = 5"),
        ({"window": 4, "chunk": 5, "recompute": True}, "window = 4"),
        ({"arousal": 0.1, "recompute": True}, "arousal"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other(given: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        Backpropagation(**given)


def test_what_ties_all_steps_is_refused() -> None:
    for given, named in (({"normalisation": "batch"}, "normalises"), ({"readout": "first_spike"},
                          "first_spike"), ({"substrate": "brian2"}, "Brian2")):  # fmt: skip
        network = networks.build(construct(ModelRecipe, spoiled({"network": given}), "t"),
                                 (INPUTS,), OUTPUTS, 1)  # fmt: skip
        with pytest.raises(CapabilityError, match=named):
            attach(network, Backpropagation(recompute=True))
    assert set(NEURONS)  # the kinds that the cases run over
