"""Recordings with trials: NWB and SONATA; tables as text, and CIFAR-10's binary files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_paths import shared_data
from pictures import message

from biograd import data
from biograd.data.formats.sonata_spikes import populations
from biograd.data.recordings.sessions import courses
from biograd.errors import BiogradError, DataError, RecipeError
from biograd.recipes import DatasetRecipe
from biograd.testing import check_source

UNITS, TRIALS = 5, 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(
    source: str, path: Path, dt_ms: float = 10.0, timed: bool = True, **keys: Any
) -> data.Dataset:
    recipe = DatasetRecipe(source, path=str(path), **keys)
    return data.load(recipe, name="mine", timed=timed, dt_ms=dt_ms)


def spike_trains(seed: int = 0, rate: int = 60) -> list[np.ndarray]:
    stream = np.random.default_rng(seed)
    return [np.sort(stream.random(rate) * TRIALS) for _ in range(UNITS)]


def session(path: Path, **change: Any) -> list[np.ndarray]:
    """Write a session in NWB's layout: a trial a second, small index types, gaps in behaviour."""
    trains = spike_trains()
    ends = np.cumsum([len(train) for train in trains])
    starts = np.arange(TRIALS, dtype=float)
    onset = starts + 0.3
    onset[2] = np.nan
    inside = np.concatenate([start + np.arange(800) / 1000 for start in starts])
    columns: dict[str, Any] = {
        "units/spike_times": np.concatenate(trains),
        "units/spike_times_index": ends.astype("u2" if ends[-1] > 255 else "u1"),
        "units/heldout": np.arange(UNITS) == 1,
        "intervals/trials/id": np.arange(TRIALS, dtype=np.uint8),
        "intervals/trials/start_time": starts,
        "intervals/trials/move_onset_time": onset,
        "intervals/trials/side": np.array([b"left", b"right"] * (TRIALS // 2)),
        "intervals/trials/split": np.array([b"train"] * 4 + [b"val", b"test", b"none", b"test"]),
        "processing/behavior/hand/data": np.stack([inside, -2 * inside], 1),
        "processing/behavior/hand/timestamps": inside,
    }
    columns.update(change)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file[name] = values
    return trains


ALIGNED = {"align": "move_onset_time", "before_ms": 100.0, "after_ms": 200.0}


def test_spikes_of_trials_and_their_classes(tmp_path: Path) -> None:
    trains = session(tmp_path / "a.nwb")
    loaded = load("nwb", tmp_path / "a.nwb", settings={"target": "side", **ALIGNED})
    assert loaded.validation is not None and loaded.test is not None
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [3, 1, 2]
    assert any("2 trials without a time or a split" in note for note in loaded.notes)
    assert loaded.train.targets is not None and loaded.train.targets.tolist() == [0, 1, 1]
    for row, trial in enumerate((0, 1, 3)):
        edges = np.round(trial + 0.2 + np.arange(31) * 0.01, 6)
        due = np.stack([np.histogram(train, edges)[0] for train in trains], 1)
        found = loaded.train.take(torch.tensor([row])).inputs[0].numpy()
        assert np.array_equal(found, due[: len(found)]) and not due[len(found) :].any()
    check_source(loaded.train)


def test_behaviour_in_every_step(tmp_path: Path) -> None:
    session(tmp_path / "a.nwb")
    settings = {"target": "hand", **ALIGNED, "lag_ms": 50.0}
    loaded = load("nwb", tmp_path / "a.nwb", settings=settings)
    assert (
        loaded.task_name == "time_series"
        and loaded.train.take(torch.arange(1)).inputs.shape[1] == 30
    )
    batch = loaded.train.take(torch.arange(3))
    for row, trial in enumerate((0, 1, 3)):
        middle = trial + 0.2 + 0.05 + (np.arange(30) + 0.5) * 0.01
        due = torch.from_numpy(np.stack([middle, -2 * middle], 1)).float()
        assert torch.allclose(batch.targets[row], due, atol=1e-3)


def test_no_value_is_invented_between_trials() -> None:
    times = np.concatenate([np.arange(0, 1, 0.01), np.arange(2, 3, 0.01)])
    found = courses(times, times[:, None], np.array([0.5, 1.5]), 10, 0.1)[..., 0]
    assert torch.isnan(found[0]).tolist() == [False] * 5 + [True] * 5
    assert torch.isnan(found[1]).tolist() == [True] * 5 + [False] * 5
    assert found[0, 0] == pytest.approx(0.55) and found[1, 5] == pytest.approx(2.05)


def test_held_out_units_are_left_out_if_asked(tmp_path: Path) -> None:
    trains = session(tmp_path / "a.nwb")
    settings = {"target": "side", "after_ms": 900.0, "held_out": False}
    loaded = load("nwb", tmp_path / "a.nwb", settings=settings)
    assert loaded.shape == (UNITS - 1,)
    sums = loaded.train.take(torch.arange(4)).inputs.sum(1)[0]
    due = [((train >= 0) & (train < 0.9)).sum() for unit, train in enumerate(trains) if unit != 1]
    assert sums.tolist() == due


def test_a_session_that_others_read() -> None:
    root = shared_data("event_camera") / "fixtures"
    (name, due), *_ = (
        (key, value) for key, value in json.loads((root / "expected.json").read_text()).items()
        if key.startswith("mc_maze")
    )  # fmt: skip
    settings = {"target": "trial_type", "after_ms": 600.0, "held_out": True}
    loaded = load("nwb", root / name, settings=settings)
    assert loaded.shape == (len(due["units"]),)
    assert len(loaded.train) == sum(trial["split"] == "train" for trial in due["trials"])
    pynwb = pytest.importorskip("pynwb")
    with pynwb.NWBHDF5IO(str(root / name), "r") as file:
        units = file.read().units
        trains = [np.asarray(units["spike_times"][unit]) for unit in range(len(units))]
    found = loaded.train.take(torch.arange(len(loaded.train))).inputs.sum(1)
    starts = [trial["start_time"] for trial in due["trials"] if trial["split"] == "train"]
    for row, start in enumerate(starts):
        inside = [((train >= start) & (train < start + 0.6)).sum() for train in trains]
        assert found[row].tolist() == inside


@pytest.mark.parametrize(
    ("kind", "change", "settings", "expected"),
    [
        (RecipeError, {}, {}, "give target, a column of the trials or a course"),
        (DataError, {}, {"target": "hands", **ALIGNED}, "no course and no column of the trials"),
        (DataError, {}, {"target": "side", **ALIGNED, "align": "go"}, "no column 'go'"),
        (DataError, {"units/spike_times": None}, {"target": "side", **ALIGNED}, "no spike_times"),
        (
            DataError,
            {"units/spike_times_index": np.arange(UNITS, dtype="u1")},
            {"target": "side", **ALIGNED},
            "does not divide",
        ),
        (RecipeError, {}, {"target": "side", "after_ms": 15.0}, "is not a whole number of steps"),
        (RecipeError, {}, {"target": "side", "beforems": 1.0}, "did you mean 'before_ms'"),
        (
            DataError,
            {"intervals/trials/split": np.array([b"none"] * TRIALS)},
            {"target": "side", **ALIGNED},
            "no trial with a time and a split",
        ),
    ],
)
def test_sessions_that_are_refused(
    tmp_path: Path,
    kind: type[BiogradError],
    change: dict[str, Any],
    settings: dict[str, Any],
    expected: str,
) -> None:
    session(tmp_path / "a.nwb", **change)
    said = message(kind, lambda: load("nwb", tmp_path / "a.nwb", settings=settings))
    assert expected in said


def test_sonata_with_a_table_of_trials(tmp_path: Path) -> None:
    trains = spike_trains()
    times, nodes = np.concatenate(trains) * 1000, np.repeat(np.arange(UNITS), 60)
    with h5py.File(tmp_path / "spikes.h5", "w") as file:
        for name in ("cortex", "other"):
            group = file.create_group(f"spikes/{name}")
            group["timestamps"], group["node_ids"] = times, nodes.astype(np.uint64)
            group["timestamps"].attrs["units"] = "ms"
    rows = [
        f"{1000 * n},{1000 * n + 900},{'ab'[n % 2]},{'train' if n < 6 else 'test'}"
        for n in range(8)
    ]
    (tmp_path / "trials.csv").write_text("\n".join(["start_ms,end_ms,label,split", *rows]))
    path = tmp_path / "spikes.h5"
    loaded = load("sonata", path, settings={"population": "cortex"})
    assert loaded.test is not None and (len(loaded.train), len(loaded.test)) == (6, 2)
    assert loaded.train.targets is not None and loaded.train.targets.tolist() == [0, 1] * 3
    found = loaded.train.take(torch.arange(6)).inputs.sum(1)
    for row in range(6):
        due = [((train >= row) & (train < row + 0.9)).sum() for train in trains]
        assert found[row].tolist() == due
    assert "settings.population" in message(DataError, lambda: load("sonata", path))
    assert set(populations(path)) == {"cortex", "other"}
    assert "did you mean 'cortex'" in message(
        DataError, lambda: load("sonata", path, settings={"population": "cortx"})
    )
    assert "must be the name of a .csv" in message(
        RecipeError, lambda: load("sonata", path, settings={"trials": "../trials.csv"})
    )


# tables as text


def table(path: Path, rows: list[str], names: str = "a,b,kind,who") -> Path:
    path.write_text("\n".join([names, *rows]) + "\n")
    return path


ROWS = [f"{n / 7},{n % 3},{'xyz'[n % 3]},s{n % 6}" for n in range(60)]


def test_a_table_of_examples(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ROWS)
    loaded = load("csv", path, timed=False, settings={"target": ["kind"], "group": "who"})
    assert loaded.shape == (2,) and loaded.task.outputs == 3
    assert any("by group" in note for note in loaded.notes)
    rows = data.original(loaded.train, torch.arange(len(loaded.train)))
    batch = loaded.train.take(torch.arange(len(loaded.train)))
    assert torch.allclose(batch.inputs[:, 0], rows / 7) and torch.equal(batch.targets, rows % 3)


def test_a_regression_and_a_tab(tmp_path: Path) -> None:
    rows = [
        row.replace(",", "\t").replace("x", "0.5").replace("y", "1").replace("z", "2")
        for row in ROWS
    ]
    path = table(tmp_path / "a.tsv", rows, "a\tb\tkind\twho")
    settings = {"target": ["kind", "a"], "ignore": ["who"]}
    loaded = load("csv", path, timed=False, settings=settings)
    assert loaded.shape == (1,) and loaded.task.outputs == 2


def test_rows_as_steps_of_trials(tmp_path: Path) -> None:
    rows = [
        f"{trial},{step},{trial + step},{trial % 2}"
        for trial in range(12)
        for step in range(2 + trial % 3)
    ]
    path = table(tmp_path / "a.csv", rows, "trial,u,v,label")
    loaded = load("csv", path, settings={"target": ["label"], "trial": "trial"})
    row = int(data.original(loaded.train, torch.tensor([0])))
    batch = loaded.train.take(torch.tensor([0]))
    assert batch.lengths is not None and int(batch.lengths[0]) == 2 + row % 3
    due = [[step, row + step] for step in range(2 + row % 3)]
    assert batch.inputs[0, : len(due)].tolist() == due and int(batch.targets[0]) == row % 2


def test_folders_of_courses(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                rows = [f"{step},{number}" for step in range(3 + number)]
                table(tmp_path / split / label / f"{number}.csv", rows, "u,v")
    loaded = load("folder", tmp_path)
    batch = loaded.train.take(torch.tensor([1, 2]))
    assert batch.lengths is not None and batch.lengths.tolist() == [4, 5]
    assert batch.inputs[0, :, 0].tolist() == [0, 1, 2, 3, 0]
    assert "set dataset.timed=true" in message(
        RecipeError, lambda: load("folder", tmp_path, timed=False)
    )


@pytest.mark.parametrize(
    ("kind", "rows", "settings", "expected"),
    [
        (RecipeError, ROWS, {}, "name the column of what is asked for"),
        (DataError, ROWS, {"target": ["kid"]}, "no column 'kid': did you mean 'kind'"),
        (DataError, ROWS, {"target": ["kind"]}, "row 2: who = 's0': is no number"),
        (DataError, ["1,2", "3"], {"target": ["kind"]}, "row 2: 2 values for 4 columns"),
        (
            DataError,
            ["1,,x,s"],
            {"target": ["kind"], "ignore": ["who"]},
            "row 2: b = '': is no number",
        ),
        (
            DataError,
            ["1,nan,x,s"],
            {"target": ["kind"], "ignore": ["who"]},
            "row 2: b: is not finite",
        ),
        (DataError, [], {"target": ["kind"]}, "at least one of values"),
        (RecipeError, ROWS, {"target": ["kind"], "trial": "who"}, "makes a time axis"),
    ],
)
def test_tables_that_are_refused(
    tmp_path: Path,
    kind: type[BiogradError],
    rows: list[str],
    settings: dict[str, Any],
    expected: str,
) -> None:
    path = table(tmp_path / "a.csv", rows)
    assert expected in message(kind, lambda: load("csv", path, timed=False, settings=settings))


def test_tables_from_the_library_by_split(tmp_path: Path) -> None:
    import biograd

    paths = {split: table(tmp_path / f"{split}.csv", ROWS) for split in ("train", "test")}
    run = biograd.train(
        "ann", paths, path=tmp_path / "a.h5",
        settings=["dataset.settings.target=['kind']", "dataset.settings.ignore=['who']",
                  "training.epochs=1", "network.hidden=[4]"],
    )  # fmt: skip
    assert run.scalars("epoch")["test_accuracy"][-1] >= 0


# CIFAR-10


def cifar(folder: Path, rows: int = 3) -> dict[str, np.ndarray]:
    stream, found = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        records = stream.integers(0, 256, (rows, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
        found[name] = records
    return found


def pictures(folder: Path) -> data.Dataset:
    from biograd.recipes import load_dataset

    return data.load(load_dataset("cifar10"), name="cifar10", data_dir=folder, offline=True)


def test_cifar10_as_its_page_describes_it(tmp_path: Path) -> None:
    written = cifar(tmp_path)
    loaded = pictures(tmp_path)
    assert loaded.test is not None and (len(loaded.train), len(loaded.test)) == (15, 3)
    batch, due = loaded.train.take(torch.tensor([4])), written["data_batch_2.bin"][1]
    assert int(batch.targets) == due[0]
    assert float(batch.inputs[0, 1, 2, 3]) == pytest.approx(due[1 + 1024 + 2 * 32 + 3] / 255)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data_batch_2.bin", b"\0" * 3072, "3072 bytes: must be records of 3073"),
        ("test_batch.bin", b"\x0a" * 3073, "row 0: label 10 is outside 0..9"),
        ("data_batch_3.bin", None, "no such file: the published set has six"),
    ],
)
def test_cifar10_that_is_damaged(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    cifar(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    said = message(DataError, lambda: pictures(tmp_path))
    assert expected in said and str(tmp_path / name) in said
