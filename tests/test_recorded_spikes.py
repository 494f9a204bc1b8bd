"""What a run gives to work with: spikes by trial, arrays by snapshot, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs_synthetic as synthetic

from biograd.errors import RecipeError, RunFileError
from biograd.runs.reader import Run, open_run

STEPS = (0, 3, 6)
UNITS = synthetic.LAYERS["1.lif"].units


@pytest.fixture(params=["finished", "stopped", "several"])
def run(request: Any, tmp_path: Path) -> Any:
    target = synthetic.writer(tmp_path / "run.h5")
    for step in range(8):
        synthetic.write_step(target, step)
        if request.param == "several":
            target.commit(step)
    target.close() if request.param == "finished" else target.abandon()
    with open_run(tmp_path / "run.h5") as opened:
        yield opened


def dense() -> np.ndarray:
    return np.concatenate([synthetic.spikes(step)[..., UNITS] for step in STEPS])


def test_trials_have_their_spikes_in_time_of_their_own(run: Run) -> None:
    spikes, expected = run.spikes("1.lif"), dense()
    for number in (0, 7, -1):
        trial = spikes.trial(number)
        row = number % len(expected)
        steps, units = np.nonzero(expected[row])
        np.testing.assert_array_equal(trial.time_ms, steps * synthetic.DT_MS)
        np.testing.assert_array_equal(trial.unit, UNITS[units])
        about = (trial.row, trial.snapshot, trial.probe, trial.label)
        assert about == (row, row // 5, row % 5, row % 5 * 10 % 3)
    with pytest.raises(RunFileError, match="no trial 15"):
        spikes.trial(15)


@pytest.mark.parametrize("block", [1, 40, 2**21])
def test_statistics_are_those_of_the_dense_raster(
    run: Run, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biograd.runs.views.recorded_spikes.BLOCK", block)
    spikes, expected = run.spikes("1.lif"), dense()
    chosen = [(spikes, slice(None)), (spikes.snapshot(-1), slice(10, 15))]
    chosen.append((spikes.select(label=1), [k for k in range(15) if k % 5 * 10 % 3 == 1]))
    for some, rows in chosen:
        np.testing.assert_array_equal(some.dense(), expected[rows])
        np.testing.assert_array_equal(some.counts(), expected[rows].sum(1))
        np.testing.assert_allclose(some.rates(), expected[rows].mean(1) / synthetic.DT_MS * 1000)
        histogram = some.psth(1.5)
        np.testing.assert_array_equal(histogram.start_ms, [0, 1.5, 3])
        np.testing.assert_array_equal(histogram.stop_ms, [1.5, 3, 4])
        last = expected[rows][:, 6:8].mean((0, 1)) / synthetic.DT_MS * 1000
        np.testing.assert_allclose(histogram.rate_hz[:, 2], last)
        assert len(some) == expected[rows].sum() == len(some.timestamps) == some.trial_ptr[-1]
        raster = some.raster()
        again = np.zeros_like(expected[rows])
        again[
            raster.trial,
            np.rint(raster.time_ms / synthetic.DT_MS).astype(int),
            np.searchsorted(UNITS, raster.unit),
        ] = True
        np.testing.assert_array_equal(again, expected[rows])
    with pytest.raises(RecipeError, match="multiple"):
        spikes.psth(0.7)
    with pytest.raises(RunFileError, match="no snapshot 3"):
        spikes.snapshot(3)


def test_nothing_selected_is_nothing(run: Run) -> None:
    none = run.spikes("1.lif").select(label=17)
    assert len(none) == 0 and none.rates().shape == (0, 4) and none.timestamps.shape == (0,)
    with pytest.raises(RecipeError, match="no trial"):
        none.psth()


def test_a_snapshot_is_read_alone_and_all_of_them_together(run: Run) -> None:
    activity = run.activity("0.linear")
    expected = np.stack([synthetic.rates(step).reshape(5, -1) for step in STEPS])
    assert activity.shape == expected.shape and activity.dims == ("snapshot", "probe", "unit")
    np.testing.assert_array_equal(activity, expected)
    np.testing.assert_array_equal(activity[-1], expected[-1])
    np.testing.assert_array_equal(activity[1:], expected[1:])
    np.testing.assert_array_equal(activity[[2, 0], :, 3], expected[[2, 0], :, 3])
    np.testing.assert_array_equal(list(activity), expected)
    assert activity.steps.tolist() == list(STEPS)
    with pytest.raises(RunFileError, match="no snapshot -4"):
        activity[-4]


def test_tables_of_pandas_and_xarray(run: Run) -> None:
    pytest.importorskip("xarray")
    frame = run.frame("train_step")
    assert frame.index.tolist() == list(range(8)) and frame.loss[1] == 0.5
    array = run.activity("1.lif").to_xarray()
    assert array.sel(snapshot=3, unit=6).shape == (5,) and array.attrs["units"] == "spikes/step"
    np.testing.assert_allclose(array[1], synthetic.spikes(3)[..., UNITS].mean(1), rtol=1e-6)
    assert array.groupby("label").mean("probe").sizes["label"] == 3
    tree = run.to_xarray()
    assert tree["params/0.weight/norm"].sel(snapshot=6) == 6.5
    assert tree["scalars/train_step"].sizes == {"step": 8}
    np.testing.assert_array_equal(tree["layers/0.linear/activation"], run.activity("0.linear"))


def test_neo_has_a_segment_a_trial(run: Run) -> None:
    pytest.importorskip("neo")
    block, expected = run.spikes("1.lif").snapshot(1).to_neo(), dense()[5:10]
    assert len(block.segments) == 5
    for segment, raster in zip(block.segments, expected, strict=True):
        for train, column in zip(segment.spiketrains, raster.T, strict=True):
            np.testing.assert_allclose(train.rescale("ms").magnitude, np.nonzero(column)[0] * 0.5)
            assert float(train.t_stop.rescale("ms")) == 4 and train.annotations["label"] >= 0
