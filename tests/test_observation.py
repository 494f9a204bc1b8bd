"""What stands in a run file is what ran: kinds, shapes, neurons and configuration, read by h5py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.configuration import Configuration, TrainingRequest, configure
from biograd.recipes import EncodingRecipe, toml

STEPS = 7


@pytest.fixture(autouse=True)
def numpy_target(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    b2 = import_brian2()
    monkeypatch.setitem(b2.prefs, "codegen.target", "numpy")
    step = b2.defaultclock.dt
    b2.defaultclock.dt = 1 * b2.ms
    yield
    b2.defaultclock.dt = step


class Loop(nn.Module):
    """An snnTorch network with a loop over time; the threshold says whether it ever spikes."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(4, 6), nn.Linear(6, 3)
        self.cell = snntorch.Leaky(beta=0.9, threshold=threshold)
        self.kept: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        state, total = self.cell.init_leaky(), torch.zeros(())
        for _ in range(STEPS):
            spikes, state = self.cell(self.first(inputs), state)
            self.kept.append(spikes.detach())
            total = total + self.readout(spikes)
        return total


class Functional(nn.Module):
    """A rate network whose activation is no module, its layers defined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.readout, self.second, self.first = nn.Linear(5, 3), nn.Linear(6, 5), nn.Linear(4, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).relu()
        out: Tensor = self.readout(self.second(hidden).tanh())
        return out


class InTime(nn.Module):
    """Dense layers on rows with a time axis, in front or behind that of the rows."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.axis, self.dense, self.readout = 0 if first else 1, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = torch.stack([inputs] * STEPS, self.axis)
        out: Tensor = self.readout(self.dense(steps).relu()).mean(self.axis)
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def trained(network: Any, path: Path, rule: str = "weak", *settings: str) -> Path:
    """Train on points of four coordinates for one epoch and return the run file."""
    more = () if rule != "weak" else ("estimators.weak.copies=5",)
    inputs = torch.rand(60, 4, generator=torch.Generator().manual_seed(1))
    data = {
        "train": (inputs[:40], torch.arange(40) % 3),
        "test": (inputs[40:], torch.arange(20) % 3),
    }
    options: dict[str, Any] = {"settings": ["training.batch_size=20", *more, *settings]}
    biograd.train(network, data, estimator=rule, epochs=1, path=path, **options).close()
    return path


Layers = dict[str, dict[str, Any]]


def layers(path: Path) -> tuple[Layers, dict[str, Any]]:
    """Return attributes and arrays of every layer, and the root's attributes, by h5py alone."""
    found: Layers = {}
    with h5py.File(path) as file:
        for name, group in file["layers"].items():
            found[name] = dict(group.attrs) | {
                "activation": group["activation"][()],
                "units": group["activation"].attrs["units"],
                "frac_active": group["stats/frac_active"][()],
            }
        root: dict[str, Any] = dict(file.attrs)
        root["epoch"] = {name: values[()] for name, values in file["scalars/epoch"].items()}
        root["spikes"] = list(file.get("spikes", {}))
        root["recipe"] = json.loads(file["config"][()])["recipe"]
    return found, root


@pytest.mark.parametrize("threshold", [50.0, 0.1])
def test_spikes_of_ones_own_module_are_no_currents(threshold: float, tmp_path: Path) -> None:
    network = Loop(threshold)
    found, root = layers(trained(network, tmp_path / "a.h5"))
    spikes = torch.stack([kept for kept in network.kept if len(kept) == 20][-STEPS:])
    assert list(found) == ["first"] and bool(spikes.any()) is (threshold < 1)
    one = found["first"]
    assert (one["kind"], one["units"], one["n_steps"]) == ("unknown", "unknown", STEPS)
    assert one["n_units"] == 6 and "dt_ms" not in one and root["spikes"] == []
    assert np.allclose(one["activation"][-1], spikes.mean(0), atol=1e-6)
    assert np.allclose(one["frac_active"][-1], spikes.any(0).float().mean(0))
    silent = float((~spikes.any(0).any(0)).float().mean())
    assert root["epoch"]["silent_fraction"][-1] == pytest.approx(silent)
    assert "spikes_per_neuron" not in root["epoch"] and root["model_kind"] == "unknown"
    neurons = json.loads(root["neurons"])["cell"]
    assert neurons["class"] == "snntorch.Leaky"
    assert neurons["threshold"] == pytest.approx(threshold)
    assert "Leaky()" in root["network"] and not {"network", "neuron", "encoding"} & {
        *root["recipe"]
    }


def test_what_the_next_layer_receives_is_the_activity(tmp_path: Path) -> None:
    network = Functional()
    found, root = layers(trained(network, tmp_path / "a.h5", "backprop"))
    inputs = torch.rand(60, 4, generator=torch.Generator().manual_seed(1))[40:]
    with h5py.File(tmp_path / "a.h5") as file:
        inputs = inputs[torch.as_tensor(file["probe/index"][()])]
    assert list(found) == ["first", "second"]
    with torch.no_grad():
        hidden = network.first(inputs).relu()
        second = network.second(hidden).tanh()
    for name, expected in (("first", hidden), ("second", second)):
        assert np.allclose(found[name]["activation"][-1], expected, atol=1e-6)
        assert found[name]["kind"] == "unknown" and "n_steps" not in found[name]
        assert np.allclose(found[name]["frac_active"][-1], (expected > 0).float().mean(0))
    assert root["model_kind"] == "unknown" and "neurons" not in root


@pytest.mark.parametrize("first", [True, False])
def test_steps_are_no_units(first: bool, tmp_path: Path) -> None:
    found, _root = layers(trained(InTime(first), tmp_path / "a.h5", "backprop"))
    assert found["dense"]["n_units"] == 6 and found["dense"]["n_steps"] == STEPS
    assert found["dense"]["activation"].shape[1:] == (20, 6)


def test_convolutions_keep_their_shape(tmp_path: Path) -> None:
    found, _root = layers(trained(convolutional(), tmp_path / "a.h5", "backprop"))
    assert {name: list(one["shape"]) for name, one in found.items()} == {"1": [3, 2, 2], "3": [8]}
    assert all("n_steps" not in one for one in found.values())


EQUATIONS = (
    "dv/dt = (g + I - (v + 49*mV))/tau : volt (unless refractory)\n"
    "dg/dt = -g/(5*ms) : volt\nI : volt\nw0 : 1 (constant)"
)


def brian2_network() -> Any:
    b2 = import_brian2()
    cells = b2.NeuronGroup(
        8,
        EQUATIONS,
        threshold="v > vt",
        reset="v = -60*mV",
        refractory=5 * b2.ms,
        method="exact",
        name="P",
        namespace={"tau": 20 * b2.ms, "vt": -50 * b2.mV},
    )
    cells.v, cells.w0 = -60 * b2.mV, "0.5 * i"
    cells.run_regularly("g = g * 0.99")
    synapses = b2.Synapses(cells, cells, on_pre="g += 1*mV", name="S")
    synapses.connect("i != j")
    return b2.Network(cells, synapses)


def wrapped() -> nn.Module:
    scale = {"P": {"scale": {"I": "20*mV"}}}
    encoding = EncodingRecipe(dt_ms=1.0, duration_ms=12.0)
    return biograd.wrap(
        brian2_network(), ("P", "I"), "P", inputs=4, classes=3, populations=scale, encoding=encoding
    )


def test_wrapped_neurons_stand_in_the_file_as_they_are(tmp_path: Path) -> None:
    found, root = layers(trained(wrapped(), tmp_path / "a.h5"))
    one = found["cells.P"]
    assert (one["kind"], one["n_steps"], one["dt_ms"]) == ("spiking", 12, 1.0)
    neurons = json.loads(one["neuron_params"])
    assert "dv/dt = (g + I - (v + 49*mV))/tau : volt (unless refractory)" in neurons["equations"]
    assert neurons["threshold"] == "v > vt" and neurons["reset"] == "v = -60*mV"
    assert neurons["namespace"] == {"tau": "0.02*second", "vt": "-0.05*volt"}
    assert neurons["refractory"] == "0.005*second" and neurons["method"] == "exact"
    assert neurons["run_regularly"] == ["g = g * 0.99 (in 'start')"]
    assert neurons["initial"]["v"] == "-0.06*volt" and neurons["scale"]["I"] == "0.02*volt"
    assert neurons["initial"]["w0"] == [str(0.5 * unit) for unit in range(8)]
    assert root["model_kind"] == "snn" and json.loads(root["encoding"])["duration_ms"] == 12.0
    assert not {"network", "neuron", "encoding", "population"} & {*root["recipe"]}


def test_a_box_says_what_is_in_it(tmp_path: Path) -> None:
    box = biograd.Brian2Box(brian2_network(), ("P", "I"), ("P", "spikes"), 5.0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), box, nn.Linear(8, 3))
    found, root = layers(trained(network, tmp_path / "a.h5"))
    assert {one["kind"] for one in found.values()} == {"unknown"}
    known = json.loads(root["neurons"])["3"]["objects"]
    assert "dv/dt" in known["P"]["equations"] and known["P"]["events"] == {"spike": "v > vt"}
    assert known["P"]["namespace"] == {"tau": "0.02*second", "vt": "-0.05*volt"}
    assert known["S"]["on_pre_pre"] == "g += 1*mV"


CIRCUIT = """
[network]
substrate = "brian2"
kind = "circuit"
readout = "potential"
[encoding]
duration_ms = 6.0
[populations.first]
units = 5
equations = "dv/dt = (30 * I - v) / (10*ms) : 1\\nI : 1"
threshold = "v > 1"
reset = "v = 0"
method = "exact"
[populations.second]
units = 4
equations = "dv/dt = (30 * I - v) / (10*ms) : 1\\nI : 1"
output = "v"
method = "exact"
[projections.drive]
source = "input"
target = "first"
[projections.onward]
source = "first"
target = "second"
"""


def test_populations_of_one_circuit_have_their_own_kind(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(CIRCUIT)
    path = trained(str(tmp_path / "m.toml"), tmp_path / "a.h5")
    found, root = layers(path)
    kinds = {name: one["kind"] for name, one in found.items()}
    assert kinds == {"cells.first": "spiking", "cells.second": "rate"}
    assert root["spikes"] == ["cells.first"]
    assert "threshold" not in json.loads(found["cells.second"]["neuron_params"])


@pytest.mark.parametrize("name", toml.names("models"))
def test_defaults_of_other_networks_are_no_configuration(name: str) -> None:
    made = configure(TrainingRequest(model=name))
    table = json.loads(json.dumps(made.table()))
    again = Configuration.of(table, "run.h5")
    assert again == made and json.loads(json.dumps(again.table())) == table
    recipe, kind = table["recipe"], made.recipe.network.kind
    assert ("mixer" in recipe) is (kind == "local_mixer")
    assert ("projections" in recipe) is (kind == "circuit")
    if kind in ("rate", "local_mixer"):
        assert "neuron" not in recipe
    elif "equations" in recipe.get("population", {}) or kind == "circuit":
        assert {*recipe["neuron"]} == {"surrogate", "slope"}
    else:
        assert recipe["neuron"]["time_constant_ms"] == made.recipe.neuron.time_constant_ms


def test_what_is_not_the_default_is_kept() -> None:
    made = configure(TrainingRequest(model=nn.Linear(4, 3), assignments=("training.epochs=7",)))
    assert made.table()["recipe"]["training"]["epochs"] == 7
