"""What the writer puts down: rows, snapshots, commits, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from runs_synthetic import (
    LAYERS,
    PROBES,
    STEPS,
    check_rows,
    checkpoint,
    failing,
    probe,
    rates,
    spikes,
    write_step,
    writer,
)

from biograd.errors import BiogradError, OutputError, RecipeError
from biograd.runs.layout import LayerInfo, Probe
from biograd.runs.reader import open_run
from biograd.runs.writer import RunWriter


def test_a_finished_run_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        for step in range(10):
            write_step(target, step)
            if step % 4 == 3:
                target.commit(step, checkpoint(step))
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5"]
    with open_run(path) as run:
        assert check_rows(run, 10) == 10
        assert run.status == "completed"
        assert run.streams == ["eval", "train_step"]
        assert run.config == {"model": "spiking", "training": {"epochs": 3}}
        assert run.attributes["seed"] == 7 and run.attributes["torch_version"] == "2"
        assert "nothing" not in run.attributes
        assert run.commits[:, :3].tolist() == [[0, 3, 0], [1, 7, 0], [2, 9, 0]]
        assert run.checkpoints == [7]
        tensors, meta = run.checkpoint()
        assert meta == {"step": 7} and (tensors["weight"] == 7).all()
        np.testing.assert_array_equal(run.params["0.weight"]["norm"], [0.5, 3.5, 6.5, 9.5])
        assert run.learning["0.linear"]["angle_deg"][1] == pytest.approx(22.5)


def test_the_parts_of_a_running_job_read_like_the_finished_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    for step in range(8):
        write_step(target, step)
        if step % 4 == 3:
            target.commit(step, checkpoint(step))
    with open_run(path) as running:
        early: dict[str, Any] = {name: getattr(running, name) for name in COMPARED}
        early["tree"] = {e.name: (e.shape, e.dtype, e.nbytes) for e in running.tree()}
        assert running.status == "running" and running.path.name == "run.h5.parts"
        assert check_rows(running, 8) == 8
        target.close()
        assert check_rows(running, 8) == 8  # packed meanwhile: it goes on in the finished file
        assert running.path == path
    with open_run(tmp_path / "run.h5.parts") as run:  # the old name still leads there
        tree = {e.name: (e.shape, e.dtype, e.nbytes) for e in run.tree()}
        assert early.pop("tree").items() <= tree.items()
        for name, value in early.items():
            _assert_equal(value, getattr(run, name), name)


COMPARED = ("config", "environment", "hyperparameters", "summary", "layers", "probe", "streams",
            "snapshots", "trials", "params", "learning", "commits")  # fmt: skip


def _assert_equal(first: Any, second: Any, name: str) -> None:
    if isinstance(first, Probe):
        first, second = first.arrays(), second.arrays()
    if isinstance(first, dict):
        assert set(first) == set(second), name
        for key, value in first.items():
            _assert_equal(value, second[key], f"{name}.{key}")
    else:
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_statistics_follow_their_definitions(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        write_step(target, 0)
    rate = rates(0).reshape(PROBES, -1).astype(float)
    fired = spikes(0)[..., LAYERS["1.lif"].units].mean(1)
    with open_run(path) as run:
        for name, values in (("0.linear", rate), ("1.lif", fired)):
            found = run.statistics(name)
            np.testing.assert_allclose(found["mean"][0], values.mean(0), rtol=1e-6)
            np.testing.assert_allclose(found["std"][0], values.std(0), rtol=1e-5)
            np.testing.assert_allclose(found["frac_active"][0], (values > 0).mean(0), rtol=1e-6)
            np.testing.assert_allclose(found["max"][0], values.max(0), rtol=1e-6)
        np.testing.assert_allclose(run.activity("1.lif")[-1], fired, rtol=1e-6)
        assert not np.allclose(run.activity("1.lif")[0], fired[::-1])


def test_the_file_follows_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        for step in range(200):
            write_step(target, step)
    with h5py.File(path) as file:
        assert file.attrs["format"] == "biograd-run" and file.attrs["format_version"] == "1.1"
        assert file.attrs["magic"] == 0x0A7A and file.attrs["version"].tolist() == [0, 1]
        assert file["config"].dtype.kind == "S" and json.loads(file["config"][()])
        activation = file["layers/0.linear/activation"]
        assert [axis.label for axis in activation.dims] == ["snapshot", "probe", "unit"]
        assert activation.dims[0][0] == file["layers/0.linear/snapshot"]
        np.testing.assert_array_equal(activation.dims[0][0], file["snapshots/step"])
        np.testing.assert_array_equal(activation.dims[1][0], file["probe/index"])
        assert file["params/0.weight/norm"].dims[0].label == "snapshot"
        assert activation.dims[2][0] == file["layers/0.linear/unit"]
        assert activation.compression == "gzip" and activation.shuffle
        assert activation.chunks == (1, PROBES, 6)
        assert file["layers/1.lif/activation"].attrs["units"] == "spikes/step"
        assert file["layers/1.lif/unit"][()].tolist() == [0, 2, 3, 6]
        assert file["layers/0.linear"].attrs["shape"].tolist() == [2, 3]
        assert file["trials/start_ms"].attrs["units"] == "ms"
        assert file["scalars/train_step/wall_time"].attrs["units"] == "s"
        assert file["learning/0.linear/angle_deg"].attrs["units"] == "deg"
        sorting = file["spikes/1.lif"].attrs.get_id("sorting")
        assert h5py.check_enum_dtype(sorting.dtype) == {"none": 0, "by_id": 1, "by_time": 2}
        assert file["probe"].attrs["gap_ms"] == 1.5
        np.testing.assert_allclose(np.diff(file["trials/start_ms"]), STEPS * 0.5 + 1.5)


def test_xarray_names_the_axes(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = tmp_path / "run.h5"
    with writer(path) as target:
        for step in range(10):
            write_step(target, step)
    with xarray.open_dataset(path, group="layers/1.lif", engine="h5netcdf") as layer:
        assert dict(layer.sizes) == {"snapshot": 4, "probe": PROBES, "unit": 4}
        assert layer.activation.sel(snapshot=6, unit=3).shape == (PROBES,)
    with xarray.open_dataset(path, group="params/0.weight", engine="h5netcdf") as weight:
        assert float(weight.norm.sel(snapshot=9)) == 9.5


def test_rows_wait_until_so_many_bytes_are_there(tmp_path: Path) -> None:
    target = writer(tmp_path / "run.h5", commit_bytes=2000)
    for step in range(100):
        target.scalars("train_step", step, 0, {"loss": 1.0})
    with open_run(target.path) as run:
        rows, commits = len(run.scalars("train_step")["step"]), len(run.commits)
    assert 70 < rows < 100 and commits == rows // (rows // commits)
    target.close()


def test_missing_values_are_nan_wherever_they_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        target.scalars("eval", 0, 0, {"a": 1.0})
        target.snapshot(0, 0, {"0.linear": rates(0)}, {"w": {"norm": 1.0}}, None)
        target.commit(0)
        target.scalars("eval", 1, 0, {"b/c": 1e300})
        target.snapshot(1, 0, {"1.lif": spikes(1)}, {}, None)
        target.commit(1)
        target.scalars("eval", 2, 0, {"a": float("nan")})
        target.snapshot(2, 0, {}, {"w": {"norm": 2.0}}, {"0.linear": {"angle_deg": 3.0}})
    with open_run(path) as run:
        table = run.scalars("eval")
        np.testing.assert_array_equal(table["a"], [1, np.nan, np.nan])
        np.testing.assert_array_equal(table["b.c"], [np.nan, np.inf, np.nan])
        np.testing.assert_array_equal(run.params["w"]["norm"], [1, np.nan, 2])
        np.testing.assert_array_equal(run.learning["0.linear"]["angle_deg"], [np.nan, np.nan, 3])
        assert np.isnan(run.activity("0.linear")[1:]).all()
        assert not np.isnan(run.activity("0.linear")[0]).any()
        assert np.isnan(run.activity("1.lif")[[0, 2]]).all()
        trials = run.spikes("1.lif").trial_ids
        assert trials.min() >= PROBES and trials.max() < 2 * PROBES


def test_tensors_and_other_shapes_are_taken_as_they_come(tmp_path: Path) -> None:
    layers = {"conv": LayerInfo("rate", 12), "lif": LayerInfo("spiking", 4, dt_ms=1.0, n_steps=3)}
    plain = Probe(list(range(2)), torch.tensor([0, 1]), split=["train", "test"])  # type: ignore[arg-type]
    path = tmp_path / "run.h5"
    fired = torch.tensor(np.random.default_rng(0).random((2, 3, 2, 2)) < 0.5)
    with writer(path, layers=layers, probe=plain) as target:
        values = torch.arange(24.0, requires_grad=True).reshape(2, 3, 2, 2)
        target.snapshot(0, 0, {"conv": values, "lif": fired.float()}, {}, None)
        numbers: dict[str, Any] = {"loss": torch.tensor(0.5), "n": np.int64(3)}
        target.scalars("s", 0, 0, numbers)
    with open_run(path) as run:
        np.testing.assert_array_equal(run.activity("conv")[0], np.arange(24).reshape(2, 12))
        assert len(run.spikes("lif")) == int(fired.sum())
        assert run.probe is not None and list(run.probe.split) == ["train", "test"]
        assert run.scalars("s")["n"].tolist() == [3]


def test_a_run_without_any_rows_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer(path, probe=None, layers={}).close("interrupted")
    with open_run(path) as run:
        assert run.status == "interrupted" and run.streams == [] and run.layers == {}
        assert run.probe is None and run.commits.shape == (0, 4) and run.checkpoints == []
        assert run.snapshots == {} and run.trials == {} and run.params == {}


def test_big_texts_and_many_parameters_fit(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    config = {"long": "ä" * 200_000}
    layers = {"fc": LayerInfo("rate", 2, neuron_params={"tau": list(range(30_000))})}
    norms = {f"layer{number}.weight": {"norm": float(number)} for number in range(600)}
    with writer(path, config=config, layers=layers, attributes={"big": config}) as target:
        target.snapshot(0, 0, {"fc": np.zeros((PROBES, 2))}, norms, None)
    with open_run(path) as run:
        assert run.config == config and json.loads(run.attributes["big"]) == config
        assert run.layers["fc"].neuron_params["tau"][-1] == 29_999
        assert len(run.params) == 600


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": {"a/b": LayerInfo("rate", 3)}}, "a/b"),
        ({"layers": {"a": LayerInfo("rate", 3, shape=(2, 2))}}, "shape"),
        ({"layers": {"a": LayerInfo("spiking", 3)}}, "dt_ms"),
        ({"layers": {"a": LayerInfo("rate", 3, unit=(2, 1))}}, "increase"),
        ({"layers": {"a": LayerInfo("analog", 3)}}, "analog"),  # type: ignore[arg-type]
        ({"config": {"x": object()}}, "JSON"),
        ({"attributes": {"a/b": 1}}, "a/b"),
        ({"probe": Probe(np.arange(3), np.arange(2))}, "differ"),
        (
            {
                "layers": {
                    "a": LayerInfo("spiking", 3, dt_ms=1, n_steps=3),
                    "b": LayerInfo("spiking", 3, dt_ms=1, n_steps=4),
                }
            },
            "trial length",
        ),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing(
    tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        writer(tmp_path / "run.h5", **wrong)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    target = writer(tmp_path / "run.h5")
    good = spikes(0)
    for activity, words in [
        ({"fc9": rates(0)}, "fc9"),
        ({"0.linear": rates(0)[1:]}, "activity"),
        ({"1.lif": good[:, 1:]}, "activity"),
        ({"1.lif": good.mean(1)}, "activity"),
        ({"1.lif": good * 0.5}, "0 or 1"),
    ]:
        with pytest.raises(RecipeError, match=words):
            target.snapshot(0, 0, activity, {}, None)
    for stream, values in [("a/b", {}), ("s", {"step": 1.0}), ("s", {"": 1.0})]:
        with pytest.raises(RecipeError):
            target.scalars(stream, 0, 0, values)
    with pytest.raises(RecipeError, match="coordinate"):
        target.snapshot(0, 0, {}, {"w": {"unit": 1.0}}, None)
    with pytest.raises(RecipeError, match="finished"):
        target.close("finished")  # type: ignore[arg-type]
    with pytest.raises(BiogradError, match="closed"):
        target.scalars("s", 0, 0, {})


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    first = writer(path, attributes={"seed": 1})
    first.scalars("s", 0, 0, {"x": 1.0})
    first.commit(0)
    with pytest.raises(RecipeError, match="biograd resume") as caught:
        writer(path)
    assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match="still writes"):
        writer(path, force=True)
    with pytest.raises(RecipeError, match="still writes"):
        RunWriter.resume(path)
    first.close()
    with pytest.raises(RecipeError, match="--force"):
        writer(path)
    with pytest.raises(RecipeError, match="--force"):
        RunWriter.check(path)
    RunWriter.check(path, force=True)
    with writer(path, force=True, attributes={"seed": 2}) as second:
        assert not path.exists()
        second.scalars("s", 0, 0, {"x": 2.0})
    with open_run(path) as run:
        assert run.attributes["seed"] == 2 and run.scalars("s")["x"].tolist() == [2]
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5"]


def test_force_keeps_the_old_run_if_the_new_one_cannot_begin(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer(path, attributes={"seed": 1}).close()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for after in range(6):
        with failing({os: ["fsync", "replace"]}, full, after), pytest.raises(OutputError):
            writer(path, force=True)
        with open_run(path) as run:
            assert run.attributes["seed"] == 1
    with open_run(path) as run:
        assert run.status == "completed"


def test_a_folder_in_the_way_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "run.h5").mkdir()
    with pytest.raises(RecipeError, match="folder"):
        writer(tmp_path / "run.h5", force=True)


def test_a_full_disk_is_one_line_and_leaves_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    for step in range(4):
        write_step(target, step)
    target.commit(3, checkpoint(3))
    for step in range(4, 8):
        write_step(target, step)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    attempts = 0
    for after in range(20):
        try:
            with failing({os: ["fsync", "replace"]}, full, after):
                target.commit(7, checkpoint(7))
        except OutputError as error:
            attempts += 1
            assert "no space left" in str(error) and "\n" not in str(error)
            assert f"biograd resume {path}" in str(error) and error.exit_code == 1
            with open_run(path) as run:
                assert check_rows(run, 4) == 4
                assert run.checkpoint()[1] == {"step": 3}
            assert not list(target.path.with_name("run.h5.parts").rglob("*.tmp"))
        else:
            break
    assert attempts >= 8  # three files with two calls and a folder each, and the line
    target.close()  # the rows had waited for space
    with open_run(path) as run:
        assert check_rows(run, 8) == 8
        assert run.commits[:, 0].tolist() == [0, 1]


def test_ctrl_c_at_any_moment_of_a_commit_neither_loses_nor_doubles_rows(tmp_path: Path) -> None:
    for after in range(10):
        path = tmp_path / f"{after}.h5"
        target = writer(path)
        for step in range(5):
            write_step(target, step)
        target.commit(4, checkpoint(4))
        for step in range(5, 8):
            write_step(target, step)
        stop: Any = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt), failing({os: ["fsync", "replace"]}, stop, after):
            target.commit(7, checkpoint(7))
        write_step(target, 8)
        target.close("interrupted")
        with open_run(path) as run:
            assert check_rows(run, 9) == 9


def test_a_full_disk_while_packing_leaves_the_parts(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    write_step(target, 0)
    usage = SimpleNamespace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match="no space left"):
            target.close()
    with open_run(path) as run:
        assert check_rows(run, 1) == 1 and run.status == "completed"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from runs_synthetic import writer, write_step
from biograd.runs.parts.pack import pack_run
from biograd.errors import OutputError
target = writer(Path(sys.argv[1]))
for step in range(400):
    write_step(target, step)
    if step % 20 == 19:
        target.commit(step)
target.abandon()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 100, 3000, 10_000, 40_000, 80_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        pack_run(target.path)
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_hdf5_that_meets_a_real_limit_while_packing_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    here = Path(__file__).parent
    variables = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    words = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all("no space left" in line for line in lines)
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5.parts"] and not done.stderr
    with open_run(path) as run:
        assert check_rows(run, 400) == 400


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        writer(tmp_path / "file" / "run.h5")
    assert "\n" not in str(caught.value)


def test_leaving_by_an_exception_records_how_it_ended(tmp_path: Path) -> None:
    for error, status in [(KeyboardInterrupt, "interrupted"), (ValueError, "crashed")]:
        path = tmp_path / f"{status}.h5"
        with pytest.raises(error), writer(path) as target:
            write_step(target, 0)
            raise error
        with open_run(path) as run:
            assert run.status == status and check_rows(run, 1) == 1


def test_an_abandoned_run_keeps_its_parts(tmp_path: Path) -> None:
    target = writer(tmp_path / "run.h5")
    write_step(target, 0)
    target.abandon("interrupted")
    target.abandon("crashed")
    assert not target.path.exists()
    with open_run(target.path) as run:
        assert run.status == "interrupted" and check_rows(run, 1) == 1


def test_it_stands_where_a_lightning_logger_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    target = writer(path)
    target.log_hyperparams({"rate": 0.1, "module": torch.nn.Identity()})
    target.log_hyperparams(SimpleNamespace(depth=3))
    target.log_metrics({"train/loss": 0.5, "epoch": 2}, step=5)
    target.log_metrics({"train/loss": 0.4})
    target.save()
    target.summary({"accuracy": 0.9})
    assert (target.name, target.version) == ("mine", "fixed")
    target.finalize("success")
    target.finalize("failed")
    with open_run(path) as run:
        assert run.status == "completed" and run.summary == {"accuracy": 0.9}
        assert run.hyperparameters["rate"] == 0.1 and run.hyperparameters["depth"] == 3
        assert "Identity" in run.hyperparameters["module"]
        table = run.scalars("metrics")
        assert table["step"].tolist() == [5, 5] and table["epoch"].tolist() == [2, -1]
        assert table["train.loss"][0] == 0.5


def test_only_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    target = writer(tmp_path / "run.h5")
    for step in range(6):
        write_step(target, step)
        target.commit(step, checkpoint(step))
    target.commit(5, checkpoint(5))  # the same step again: the first is not touched
    target.scalars("s", 6, 0, {})
    target.commit(6)
    folder = tmp_path / "run.h5.parts" / "checkpoints"
    assert sorted(p.name for p in folder.glob("*.json")) == ["5-6.json", "5.json"]
    assert len(list(folder.iterdir())) == 4
    target.close()


def test_a_commit_is_small(tmp_path: Path) -> None:
    target = writer(tmp_path / "run.h5", probe=probe())
    for step in range(60):
        write_step(target, step)
        if step % 3 == 2:
            target.commit(step)
    segments = list((tmp_path / "run.h5.parts" / "segments").iterdir())
    assert len(segments) == 20
    assert sum(path.stat().st_size for path in segments) / len(segments) < 40_000
    target.close()


def test_importing_the_package_loads_neither_h5py_nor_torch() -> None:
    code = "import sys, biograd.runs; print({'h5py', 'torch', 'numpy'} & set(sys.modules))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    import biograd.runs

    for name in biograd.runs.__all__:
        assert getattr(biograd.runs, name) is not None
    with pytest.raises(AttributeError):
        _ = biograd.runs.nonsense
