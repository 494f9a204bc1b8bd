"""What a run records beside activity and spikes, against what the network itself gives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import biograd
from biograd.errors import CapabilityError, RecipeError
from biograd.recipes.recording_recipe import RecordingRecipe
from biograd.recording.moments import SnapshotSchedule
from biograd.runs.reader import Run

SETTINGS = (
    "dataset.training_examples=128",
    "dataset.test_examples=64",
    "recording.stimuli=12",
)
EVERYTHING = (
    'recording.variables=["potential", "synaptic_current", "credit"]',
    "recording.gradients=true",
    "recording.checkpoints=snapshots",
    "recording.every=3",
)


def trained(path: Path, *settings: str, model: str = "spiking", epochs: int = 2) -> Run:
    return biograd.train(
        model,
        "digits",
        estimator="backprop",
        epochs=epochs,
        path=path,
        settings=(*SETTINGS, *settings),
        progress=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with trained(tmp_path_factory.mktemp("sampling") / "run.h5", *EVERYTHING) as opened:
        yield opened


@pytest.fixture(scope="module")
def network(run: Run) -> Any:
    network, engine = biograd.trained(run)  # its decorrelation acts while it is attached
    yield network
    engine.detach()


def test_weights_stand_at_every_snapshot_the_initial_one_included(
    run: Run, network: torch.nn.Module
) -> None:
    assert run.recorded_weights == [name for name, _ in network.named_parameters()]
    for name, value in network.named_parameters():
        kept = run.weights(name)
        assert kept.steps.tolist() == [0, 1, 2, 3, 4, 6, 8]
        np.testing.assert_array_equal(kept[-1], value.detach())
        norms = [np.linalg.norm(one) for one in kept]
        np.testing.assert_allclose(norms, run.params[name]["norm"], rtol=1e-5)


def test_outputs_and_targets_belong_to_the_stimuli(run: Run, network: torch.nn.Module) -> None:
    assert run.probe is not None and run.probe.input is not None
    network.eval()
    with torch.no_grad():
        expected = network(torch.as_tensor(run.probe.input))
    np.testing.assert_array_equal(run.outputs()[-1], expected)
    np.testing.assert_array_equal(run.probe.target, run.probe.label)
    confusion = run.confusion()
    right = (expected.argmax(1).numpy() == run.probe.label).sum()
    assert np.trace(confusion.counts) == right and confusion.counts.sum() == 12
    assert confusion.accuracy == right / 12 and confusion.classes == tuple("0123456789")


def test_a_potential_above_threshold_is_a_spike_and_no_other(run: Run) -> None:
    for layer in run.layers:
        potential = run.variable(layer, "potential")
        assert potential.dims == ("snapshot", "probe", "time", "unit")
        fired = run.spikes(layer).snapshot(-1).dense()
        assert 0 < fired.mean() < 1
        np.testing.assert_array_equal(potential[-1] > 1, fired)
    with pytest.raises(biograd.RunFileError, match="not recorded"):
        run.variable(layer, "adaptation")


def test_credit_and_gradients_are_those_of_autograd(run: Run, network: torch.nn.Module) -> None:
    currents: dict[str, torch.Tensor] = {}

    def keep(_part: Any, _given: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        currents["last"] = output

    handle = network.get_submodule("blocks.1.synapse").register_forward_hook(keep)
    assert run.probe is not None
    outputs = network(torch.as_tensor(run.probe.input))
    handle.remove()
    loss = torch.nn.functional.cross_entropy(outputs, torch.as_tensor(run.probe.target))
    loss.backward()
    kept = run.variable("blocks.1.activity", "credit")[-1]
    np.testing.assert_allclose(kept, currents["last"].grad, rtol=1e-4, atol=1e-8)
    for name, value in network.named_parameters():
        gradient = run.weights(name, "gradient")[-1]
        np.testing.assert_allclose(gradient, value.grad, rtol=1e-3, atol=1e-7)
        assert np.abs(gradient).max() > 0


def test_what_is_recorded_leaves_the_training_as_it_is(run: Run, tmp_path: Path) -> None:
    bare = ("recording.outputs=false", "recording.weights=[]", "recording.log=false")
    with trained(tmp_path / "bare.h5", *bare) as other:
        for name, value in run.checkpoint()[0].items():
            if name.startswith(("network.", "optimiser.", "engine.")):
                assert torch.equal(value, other.checkpoint()[0][name]), name
        with pytest.raises(biograd.RunFileError, match="no weights"):
            other.weights("readout.weight")
        with pytest.raises(biograd.RunFileError, match="not recorded"):
            other.outputs()


def test_checkpoints_of_snapshots_stay_also_when_the_run_goes_on(run: Run, tmp_path: Path) -> None:
    assert run.checkpoints == [4, 8]
    path = tmp_path / "run.h5"
    path.write_bytes(run.path.read_bytes())
    with biograd.resume(path, epochs=3) as longer:
        assert longer.checkpoints == [4, 8, 12]
        for step in (4, 8):
            assert longer.checkpoint(step)[1]["step"] == step
        np.testing.assert_array_equal(
            longer.weights("readout.weight")[:7], run.weights("readout.weight")
        )
        assert len(longer.weights("readout.weight")) == 9


def test_every_group_opens_in_xarray_without_a_warning(run: Run) -> None:
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(run.path, engine="h5netcdf", phony_dims=None)
    for group in tree.subtree:
        for name, variable in group.data_vars.items():
            assert variable.attrs["description"] and variable.attrs["long_name"], name
    layer = tree["layers/blocks.0.activity"]
    assert {"snapshot", "probe", "unit", "time", "label"} <= set(layer.coords)
    np.testing.assert_array_equal(layer["time"], np.arange(20.0))
    tree.close()


@pytest.mark.parametrize(
    ("model", "setting", "error", "word"),
    [
        ("spiking", "recording.limit_gb=1e-6", RecipeError, "limit_gb"),
        ("spiking", 'recording.layers=["blocks.9*"]', RecipeError, "blocks.9"),
        ("spiking", 'recording.weights=["nothing"]', RecipeError, "nothing"),
        ("spiking", 'recording.variables=["adaptation"]', CapabilityError, "adaptation"),
        ("ann", 'recording.variables=["potential"]', CapabilityError, "populations"),
        ("spiking", "recording.best=true", RecipeError, "stop_after"),
        ("spiking", 'recording.variables=["voltage"]', RecipeError, "voltage"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_first_step(
    tmp_path: Path, model: str, setting: str, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        trained(tmp_path / "run.h5", setting, model=model)
    assert not list(tmp_path.iterdir())


def test_moments() -> None:
    usual = SnapshotSchedule(RecordingRecipe(), 30)
    assert [step for step in range(1, 31) if usual.within(step)] == [1, 2, 5, 10, 20]
    assert usual.count(2) == 1 + 5 + 2
    other = SnapshotSchedule(RecordingRecipe(log=False, every=7, at=(3, 60), epochs="none"), 30)
    assert [step for step in range(1, 30) if other.within(step)] == [3, 7, 14, 21, 28]
    assert other.ends(2, 60, False) and not other.ends(1, 30, True)
    assert other.count(2) == 1 + len({3, 60} | set(range(7, 61, 7)))
    assert SnapshotSchedule(RecordingRecipe(best=True, epochs="none"), 30).ends(3, 90, True)
