"""Readouts: what is read of a population."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import message

import biograd
from biograd.circuit.circuit import Circuit
from biograd.circuit.readouts import Readout
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import make
from biograd.interchange import export_nir, import_nir
from biograd.networks import build
from biograd.neurons import Leaky
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.tasks import Rates

ROWS, STEPS, INPUTS, UNITS = 6, 20, 5, 4


def counting(timed: bool = False, outputs: int = UNITS) -> Circuit:
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="spiking", hidden=(7, UNITS), readout="counts"),
        neuron=Leaky(resistance=8.0),
        encoding=EncodingRecipe(kind="given", duration_ms=float(STEPS)),
    )
    found = build(recipe, INPUTS, outputs, timed=timed)
    assert isinstance(found, Circuit)
    return found


def inputs() -> torch.Tensor:
    return 2 * torch.rand(ROWS, STEPS, INPUTS, generator=generator(0, "x"))


def test_counts_are_the_spikes_of_the_units() -> None:
    network = counting()
    spikes = network.activity(inputs())[network.populations[-1]]
    assert 0 < spikes.mean() < 1
    assert torch.equal(network(inputs()), spikes.sum(1))
    assert torch.equal(counting(timed=True)(inputs()), spikes)
    assert not any(name.startswith("readout") for name, _ in network.named_parameters())


def test_counts_need_a_unit_for_each_output() -> None:
    text = message(RecipeError, lambda: counting(outputs=3))
    assert "network.readout = 'counts': 4 units are the outputs, the task has 3" in text


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "eprop", "node_perturbation"])
def test_rules_learn_rates_without_a_readout_layer(rule: str, timed: bool) -> None:
    network = counting(timed)
    engine = attach(network, make(rule, {}), task=Rates(UNITS, timed, duration_ms=float(STEPS)))
    targets = 200 * torch.rand(ROWS, UNITS, generator=generator(0, "y"))
    engine(inputs(), targets).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.blocks[0].parameters())
    control = attach(counting(timed), biograd.FrozenHidden(), task=engine.task)
    with pytest.raises(CapabilityError, match="FrozenHidden would train nothing of this network"):
        control(inputs(), targets)
    assert all(p.grad is None or not p.grad.any() for p in control.network.parameters())


def test_counts_travel_through_nir(tmp_path: Path) -> None:
    network = counting()
    path = export_nir(network, tmp_path / "network.nir")
    assert torch.allclose(import_nir(path)(inputs()), network(inputs()))


def test_a_misspelt_readout_is_named_with_its_key() -> None:
    with pytest.raises(
        RecipeError, match=r"network\.readout = 'membrain': did you mean 'membrane'"
    ):
        Readout.of(NetworkRecipe(readout="membrain"), 5, 1.0)
