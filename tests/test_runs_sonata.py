"""Exported spikes are read by the reference implementation of SONATA."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from runs_synthetic import LAYERS, rates, spikes, write_step, writer

from biograd.errors import RecipeError
from biograd.runs.reader import Run, open_run
from biograd.runs.sonata import export_sonata

libsonata = pytest.importorskip("libsonata")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with one spiking layer that fires and one that is silent."""
    layers = LAYERS | {"2.silent": LAYERS["1.lif"]}
    with writer(tmp_path / "run.h5", layers=layers) as target:
        for step in range(40):
            write_step(target, step)
            if step % 5 == 4:
                target.commit(step)
    return open_run(tmp_path / "run.h5")


def test_libsonata_reads_the_same_spikes(run: Run, tmp_path: Path) -> None:
    path = export_sonata(run, tmp_path / "spikes.h5")
    reader = libsonata.SpikeReader(str(path))
    assert sorted(reader.get_population_names()) == ["1.lif", "2.silent"]
    population = reader["1.lif"]
    found, expected = population.get_dict(), run.spikes("1.lif")
    np.testing.assert_array_equal(found["timestamps"], expected.timestamps)
    np.testing.assert_array_equal(found["node_ids"], expected.node_ids)
    assert population.sorting == "by_time" and len(expected) > 500
    assert set(found["node_ids"]) == {0, 2, 3, 6}
    assert not np.array_equal(found["node_ids"], np.sort(found["node_ids"]))
    assert len(reader["2.silent"].get_dict()["timestamps"]) == 0


def test_a_time_window_is_a_trial(run: Run, tmp_path: Path) -> None:
    reader = libsonata.SpikeReader(str(export_sonata(run, tmp_path / "spikes.h5")))
    trials, trial = run.trials, 7  # stimulus 2 of the snapshot at step 3
    start, stop = float(trials["start_ms"][trial]), float(trials["stop_ms"][trial])
    found = reader["1.lif"].get(tstart=start, tstop=stop)
    steps, units = np.nonzero(spikes(3)[2][:, LAYERS["1.lif"].units])
    assert len(found) == len(steps) > 0
    assert [node for node, _ in found] == LAYERS["1.lif"].units[units].tolist()
    np.testing.assert_allclose([time for _, time in found], start + 0.5 * steps)


def test_the_exported_file_is_plain(run: Run, tmp_path: Path) -> None:
    path = export_sonata(run, tmp_path / "spikes.h5")
    with h5py.File(path) as file:
        group = file["spikes/1.lif"]
        assert all(group[name].compression is None for name in group)
        assert group["timestamps"].attrs["units"] == "ms"
        assert len(file["trials/start_ms"]) == len(group["trial_ptr"]) - 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "spikes.h5"]


def test_it_overwrites_only_when_asked(run: Run, tmp_path: Path) -> None:
    export_sonata(run, tmp_path / "spikes.h5")
    with pytest.raises(RecipeError, match="exists"):
        export_sonata(run, tmp_path / "spikes.h5")
    export_sonata(run, tmp_path / "spikes.h5", force=True)


def test_a_run_that_does_not_spike_has_nothing_to_export(tmp_path: Path) -> None:
    layers = {"0.linear": LAYERS["0.linear"]}
    with writer(tmp_path / "rate.h5", layers=layers) as target:
        target.snapshot(0, 0, {"0.linear": rates(0)}, {}, None)
    with open_run(tmp_path / "rate.h5") as rate, pytest.raises(RecipeError, match="no spikes"):
        export_sonata(rate, tmp_path / "spikes.h5")
