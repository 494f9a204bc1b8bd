"""Runs in the formats of others, read by the others."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import runs_synthetic as synthetic
from click.testing import CliRunner

from biograd.commands import console
from biograd.errors import RecipeError, RunFileError
from biograd.exporting.tables_export import plain
from biograd.runs.reader import open_run
from biograd.runs.views.validation import validate

UNITS = synthetic.LAYERS["1.lif"].units


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exporting") / "run.h5"
    with synthetic.writer(path) as target:
        for step in range(7):
            synthetic.write_step(target, step)
        target.scalars("=cmd|' C calc'!A0", 6, 1, {"\x1b[2Jloss": 1.0, "@SUM(A1)": 2.0})
        target.commit(6, synthetic.checkpoint(6))
    return path


def exported(path: Path, kind: str, out: Path) -> Path:
    done = CliRunner().invoke(console, ["export", str(path), "--format", kind, "-o", str(out)])
    assert done.exit_code == 0, done.output
    return out


def last() -> np.ndarray:
    return synthetic.spikes(6)[..., UNITS]


def test_nwb_has_units_with_their_intervals(path: Path, tmp_path: Path) -> None:
    pynwb = pytest.importorskip("pynwb")
    out = exported(path, "nwb", tmp_path / "run.nwb")
    with pynwb.NWBHDF5IO(out, "r") as reader:
        found = reader.read()
        trials, units = found.trials.to_dataframe(), found.units.to_dataframe()
        assert len(trials) == synthetic.PROBES and len(units) == len(UNITS)
        start = trials.start_time.to_numpy()
        for position, row in units.reset_index().iterrows():
            assert row.unit == UNITS[position] and row.layer == "1.lif"
            np.testing.assert_allclose(row.obs_intervals[:, 0], start)
            trial, step = np.nonzero(last()[..., position])
            np.testing.assert_allclose(row.spike_times, start[trial] + step * 5e-4)
        assert "rest" in found.notes and found.stimulus["stimuli"].data.shape == (5, 4)
        assert not pynwb.validate(io=reader)


@pytest.mark.slow
def test_the_inspector_finds_nothing_critical(path: Path, tmp_path: Path) -> None:
    inspector = pytest.importorskip("nwbinspector")
    out = exported(path, "nwb", tmp_path / "run.nwb")
    found = [
        one
        for one in inspector.inspect_nwbfile(nwbfile_path=out)
        if one.importance.value >= inspector.Importance.CRITICAL.value
    ]
    assert not found, found


def test_csv_is_text_that_no_spreadsheet_computes(path: Path, tmp_path: Path) -> None:
    folder = exported(path, "csv", tmp_path / "tables")
    names = sorted(file.name for file in folder.iterdir())
    assert "spikes_1.lif.csv" in names and "activity_0.linear.csv" in names
    with (folder / "spikes_1.lif.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(synthetic.spikes(s)[..., UNITS].sum() for s in (0, 3, 6))
    for file in folder.iterdir():
        assert file.name.isascii() and not set(file.name) & set("=|'! ")
        for line in csv.reader(file.read_text().splitlines()):
            assert not any(c.startswith(("=", "+", "@")) or "\x1b" in c for c in line), line
    assert "/" not in plain("a/b\x00") and "\0" not in plain("a/b\x00")


def test_netcdf_opens_group_by_group(path: Path, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    out = exported(path, "netcdf", tmp_path / "run.nc")
    with xarray.open_dataset(out, group="layers/1.lif", engine="h5netcdf") as layer:
        np.testing.assert_allclose(layer.activation[-1], last().mean(1), rtol=1e-6)


@pytest.mark.slow
def test_tensorboard_has_the_scalars(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = exported(path, "tensorboard", tmp_path / "events")
    events = EventAccumulator(str(out)).Reload()
    found = [(one.step, one.value) for one in events.Scalars("train_step/loss")]
    assert found == [(step, pytest.approx(1 / (step + 1))) for step in range(7)]


def test_attributes_that_netcdf_has_no_type_for(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with synthetic.writer(tmp_path / "run.h5", attributes={"resumed": True}) as target:
        synthetic.write_step(target, 0)
        target.commit(0, synthetic.checkpoint(0))
    out = exported(tmp_path / "run.h5", "netcdf", tmp_path / "run.nc")
    with xarray.open_datatree(out, engine="h5netcdf") as tree:
        assert tree.attrs["resumed"] == 1


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_a_folder_is_written_in_full_or_not_at_all(path: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tensorboard")
    run, out = tmp_path / "run.h5", tmp_path / "tables"
    run.write_bytes(path.read_bytes())
    with synthetic.edited(run) as file:
        file["scalars/train_step/loss"].attrs.create("units", "1")
        del file["scalars/train_step/step"]
    words = ["export", str(run), "--format", kind, "-o", str(out)]
    assert isinstance(CliRunner().invoke(console, words).exception, RunFileError)
    assert list(tmp_path.iterdir()) == [run]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert isinstance(CliRunner().invoke(console, [*words, "--force"]).exception, RunFileError)
    assert [one.name for one in out.iterdir()] == ["mine.txt"]
    words[1] = str(path)
    assert isinstance(CliRunner().invoke(console, words).exception, RecipeError)
    assert CliRunner().invoke(console, [*words, "--force"]).exit_code == 0
    assert len(list(out.iterdir())) > 1 and (out / "mine.txt").read_text() == "mine"


FULL = """
import os, resource, shutil, signal, sys
from biograd.__main__ import main
run, folder = sys.argv[1:]
os.chdir(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
kinds = ("sonata", "nwb", "csv", "netcdf", "tensorboard")
commands = [["export", run, "--format", kind, "-o", "out"] for kind in kinds]
commands += [["plot", run, "--what", "silence", "-o", "out"], ["report", run, "-o", "out"]]
commands += [["analyse", run, "--what", "silence"]]
for size in (100, 3000):
    for words in commands:
        print(words, file=sys.stderr)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            code = main(words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        left = os.listdir(folder)
        for name in left if code == 0 else ():
            os.unlink(name) if os.path.isfile(name) else shutil.rmtree(name)
        assert code == 0 or (code == 1 and not left), (words, size, code, left)
        print(code, end="")
"""


def test_a_full_disk_is_one_line_and_nothing_is_left(path: Path, tmp_path: Path) -> None:
    for name in ("pynwb", "h5netcdf", "tensorboard"):
        pytest.importorskip(name)
    words = [sys.executable, "-c", FULL, str(path), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1") >= 8
    said = [line for line in done.stderr.splitlines() if line[0] != "["]
    assert len(said) == done.stdout.count("1")
    assert all(line.startswith("biograd: ") and "no space left" in line for line in said)


def test_sonata_leads_back_to_the_run(path: Path, tmp_path: Path) -> None:
    out = exported(path, "sonata", tmp_path / "spikes.h5")
    with h5py.File(out) as file:
        assert file.attrs["run"] == "run.h5" and file.attrs["run_id"] == "fixed"
        assert (
            "from rest" in file["trials"].attrs["description"]
            or "rest" in file["trials"].attrs["description"]
        )


def test_a_sound_run_is_valid_and_a_changed_one_is_not(path: Path, tmp_path: Path) -> None:
    with open_run(path) as run:
        assert not [one for one in validate(run) if one.problem]
    other = tmp_path / "run.h5"
    other.write_bytes(path.read_bytes())
    with h5py.File(other, "r+") as file:
        file["layers/1.lif/activation"][1] = 0.5
        del file["trials/label"].attrs["units"]
    with open_run(other) as run:
        problems = {one.name: one.problem for one in validate(run) if one.problem}
    assert set(problems) == {"digest", "spikes/1.lif", "names, units and sentences"}
    done = CliRunner().invoke(console, ["validate", str(other)])
    assert isinstance(done.exception, RunFileError) and "snapshot 1" in str(done.exception)
    assert CliRunner().invoke(console, ["validate", str(path)]).exit_code == 0


def test_a_notebook_shows_texts_of_a_file_as_text(tmp_path: Path) -> None:
    attributes = {"rule": "<script>alert(1)</script>", "dataset": "\x1b[2J", "seed": 1}
    synthetic.writer(tmp_path / "run.h5", attributes=attributes).close()
    with open_run(tmp_path / "run.h5") as run:
        shown = run._repr_html_()
    assert "<script" not in shown and "&lt;script" in shown and "\x1b" not in shown
