"""Sets of recordings: folders, splits, labels, groups, and the packed copy of their events."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data_paths import shared_data
from pictures import message

import biograd
from biograd import data
from biograd.commands import console
from biograd.data.files import fetch
from biograd.data.recordings import packed
from biograd.errors import DataError, RecipeError
from biograd.recipes import DatasetRecipe, load_dataset
from biograd.testing import check_source

HERE = Path(__file__).parent / "recordings"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache and folder out of every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOGRAD_DATA", raising=False)
    return tmp_path / "cache"


PLACES = ("train/background", "train/cars", "test/cars")


def load(name: str, folder: Path | None, dt_ms: float = 10.0, **keys: Any) -> data.Dataset:
    recipe = load_dataset(name)
    table = {**{k: getattr(recipe, k) for k in recipe.__dataclass_fields__}, **keys}
    return data.load(
        DatasetRecipe(**table), name=name, data_dir=folder, offline=True, timed=True, dt_ms=dt_ms
    )


def frames(name: str, dt_ms: float, shape: tuple[int, int], from_first: bool = False) -> np.ndarray:
    """Return the histogram of the expected events of a file, ``[T, 2, rows, columns]``."""
    due = dict(EXPECTED[name]["events"])
    due["t"] = np.array(due["t"]) - (min(due["t"]) if from_first else 0)
    steps = int(max(due["t"]) // (1000 * dt_ms)) + 1
    edges = [np.arange(steps + 1) * 1000 * dt_ms, *(np.arange(n + 1) for n in (2, *shape))]
    columns = [due[each] for each in ("t", "p", "y", "x")]
    return np.histogramdd(np.array(columns).T, edges)[0]


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("nmnist", "nmnist", ["Train/0/00002.bin", "Train/5/00001.bin", "Test/7/00001.bin"]),
        (
            "ncars",
            "ncars",
            [f"n-cars_{each}/obj_000000_td.dat" for each in PLACES],
        ),
    ],
)  # fmt: skip
def test_folders_of_classes(name: str, folder: str, files: list[str]) -> None:
    loaded = load(name, HERE / folder)
    paths = [f"{folder}/{file}" for file in files]
    for source, taken in ((loaded.train, paths[:2]), (loaded.test, paths[2:])):
        assert source is not None and source.targets is not None
        assert source.targets.tolist() == [EXPECTED[path]["label"] for path in taken]
        for row, path in enumerate(taken):
            batch = source.take(torch.tensor([row]))
            shape = (batch.inputs.shape[3], batch.inputs.shape[4])
            assert np.array_equal(batch.inputs[0].numpy(), frames(path, 10.0, shape))
    assert any("no recordings of" in note for note in loaded.notes)


def test_gestures_are_cut_by_their_labels() -> None:
    loaded = load("dvs_gesture", HERE / "dvsgesture", binning={})
    for source, user in ((loaded.train, "user01_fluorescent"), (loaded.test, "user24_led")):
        due = EXPECTED[f"dvsgesture/DvsGesture/{user}.aedat"]["samples"]
        assert source is not None and source.targets is not None
        assert source.targets.tolist() == [sample["label"] for sample in due]
        for row, sample in enumerate(due):
            inputs = source.take(torch.tensor([row])).inputs[0]
            columns, rows = torch.arange(128.0), torch.arange(128.0)[:, None]
            assert int(inputs.sum()) == sample["n"] and int(inputs[:, 1].sum()) == sample["on"]
            assert int((inputs * columns).sum()) == sample["sum_x"]
            assert int((inputs * rows).sum()) == sample["sum_y"]
    ten = load("dvs_gesture", HERE / "dvsgesture", settings={"other": False}, classes=10)
    assert ten.test is not None and len(ten.test) == 1


@pytest.mark.parametrize(
    ("source", "top", "train"),
    [("dvsgesture_npy", "ibmGestureTrain", ("user01_fluorescent", "0.npy")),
     ("events_npz", "train", ("0", "user01_fluorescent_0.npz"))],
)  # fmt: skip
def test_forms_of_gestures_that_others_make(
    tmp_path: Path, source: str, top: str, train: tuple[str, str]
) -> None:
    for split in (top, top.replace("Train", "Test").replace("train", "test")):
        shutil.copytree(HERE / source / top, tmp_path / split)
    loaded = load("dvs_gesture", tmp_path, binning={})
    path = f"{source}/{top}/{train[0]}/{train[1]}"
    inputs = loaded.train.take(torch.tensor([0])).inputs[0].numpy()
    assert np.array_equal(inputs, frames(path, 10.0, (128, 128), from_first=True))


def test_cifar10_dvs_is_tested_on_its_first_hundred(tmp_path: Path) -> None:
    folder = tmp_path / "airplane"
    folder.mkdir()
    sample = HERE / "cifar10dvs" / "airplane" / "cifar10_airplane_0.aedat"
    for number in (0, 99, 100):
        shutil.copy(sample, folder / f"cifar10_airplane_{number}.aedat")
    loaded = load("cifar10_dvs", tmp_path)
    assert loaded.test is not None and (len(loaded.train), len(loaded.test)) == (1, 2)
    assert loaded.shape == (2, 32, 32)
    raw = EXPECTED["cifar10dvs/airplane/cifar10_airplane_0.aedat"]["raw_events"]
    edges = [np.arange(3), np.arange(33) * 4, np.arange(33) * 4]
    kept = np.array(raw["t"]) < 1.3e6
    columns = [1 - np.array(raw["p"]), 127 - np.array(raw["x"]), 127 - np.array(raw["y"])]
    due = np.histogramdd(np.array(columns).T[kept], edges)[0]
    assert np.array_equal(loaded.train.take(torch.tensor([0])).inputs[0].sum(0).numpy(), due)


def test_taxels_have_no_split_of_their_own(tmp_path: Path) -> None:
    for label in ("0", "3"):
        (tmp_path / label).mkdir()
        for number in range(5):
            shutil.copy(
                HERE / "stmnist" / label / "trial_1.mat", tmp_path / label / f"{number}.mat"
            )
        (tmp_path / label / "LUT_1.mat").write_bytes(b"no sample")
    loaded = load("stmnist", tmp_path)
    assert loaded.validation is not None and loaded.test is not None
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 10


def test_heidelberg_digits() -> None:
    loaded = load("shd", HERE / "shd", 4.0)
    for source, split in ((loaded.train, "train"), (loaded.test, "test")):
        assert source is not None and source.targets is not None
        due = EXPECTED[f"shd/shd_{split}.h5"]["samples"]
        assert source.targets.tolist() == [sample["label"] for sample in due]
        for row, sample in enumerate(due):
            batch = source.take(torch.tensor([row]))
            channels = torch.arange(700.0)
            assert int(batch.inputs.sum()) == sample["n"]
            assert int((batch.inputs * channels).sum()) == sample["units_sum"]
            assert int(batch.inputs[..., :350].sum()) == sample["count_ch_lt_350"]
            assert batch.lengths is not None
            assert int(batch.lengths[0]) == int(sample["t_last"] * 1000 // 4) + 1
        check_source(source)


def test_a_file_of_the_layout_is_trained_on_from_the_console(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    asked = (
        f"train --model spiking_recurrent --dataset shd --data-dir {HERE / 'shd'} --offline "
        f"--epochs 1 --quiet --out {path} --set encoding.kind=given --set encoding.dt_ms=50 "
        "--set encoding.duration_ms=1400 --set dataset.binning.pool=[10] --set network.hidden=[8]"
    )
    done = CliRunner().invoke(console, asked.split())
    assert done.exit_code == 0, done.output
    with biograd.load(path) as run:
        assert run.config["data"]["source"] == "heidelberg"
        assert run.layers["blocks.0.activity"].n_steps == 28 and len(run.scalars("train_step")) > 0
    other = asked.replace(str(HERE / "shd"), str(tmp_path))
    refused = CliRunner().invoke(console, [*other.split(), "--force"])
    assert isinstance(refused.exception, DataError) and "shd_train.h5" in str(refused.exception)


def test_speakers_are_held_out_together() -> None:
    loaded = load("shd", HERE / "shd", validation=0.4)
    speakers = [sample["speaker"] for sample in EXPECTED["shd/shd_train.h5"]["samples"]]
    parts = []
    for source in (loaded.train, loaded.validation):
        assert source is not None
        rows = data.original(source, torch.arange(len(source))).tolist()
        parts.append({speakers[row] for row in rows})
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    assert any("by whole groups" in note for note in loaded.notes)


def test_speakers_in_both_channels_of_real_digits() -> None:
    folder = shared_data("spoken_digits_events")
    for name, rows in (("spoken_digits_events", 750), ("spoken_digits_events_700", 350)):
        loaded = load(name, folder)
        assert loaded.test is not None and len(loaded.test) == rows
        with h5py.File(
            folder / ("fsdd_events_test.h5" if rows == 750 else "fsdd_events_700ch_test.h5")
        ) as file:
            times, units = file["spikes/times"][3], file["spikes/units"][3]
        inside = times.astype(np.float64) < 1.0
        steps = np.floor(times.astype(np.float64)[inside] * 100 + 1e-6).astype(int)
        inputs = loaded.test.take(torch.tensor([3])).inputs[0]
        due = torch.zeros_like(inputs)
        for step, unit in zip(steps, units[inside].astype(int), strict=True):
            due[step, unit] += 1
        assert torch.equal(inputs, due)


def test_own_folders_of_events(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            shutil.copy(HERE / "slayer" / "spikes.bs1", tmp_path / split / label / "1.bs1")
    loaded = data.load(
        DatasetRecipe("folder", path=str(tmp_path)), name="mine", timed=True, dt_ms=10.0
    )
    due = EXPECTED["slayer/spikes.bs1"]["events"]
    assert loaded.shape == (max(due["n"]) + 1,)
    inputs = loaded.train.take(torch.tensor([1])).inputs[0]
    assert inputs.sum(0).tolist() == np.bincount(due["n"]).tolist()


# the packed copy


def test_events_are_packed_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("nmnist", HERE / "nmnist")
    (place,) = cache.rglob("*.h5")
    written = place.stat().st_mtime_ns
    monkeypatch.setattr(packed, "_write", lambda *_: pytest.fail("was packed again"))
    again = load("nmnist", HERE / "nmnist")
    assert place.stat().st_mtime_ns == written and first.digest == again.digest
    rows = torch.arange(2)
    assert torch.equal(first.train.take(rows).inputs, again.train.take(rows).inputs)


def test_packed_events_are_a_file_of_ones_own(cache: Path) -> None:
    loaded = load("nmnist", HERE / "nmnist")
    (place,) = cache.rglob("*.h5")
    with h5py.File(place) as file:
        assert file["times"].fletcher32 and dict(file.attrs)["time_unit"] == "us"
    recipe = DatasetRecipe("hdf5", path=str(place), split=(1, 1, 1), classes=10, shape=(2, 34, 34))
    mine = data.load(recipe, name="mine", timed=True, dt_ms=10.0)
    assert mine.shape == loaded.shape


def test_other_files_or_labels_are_packed_anew(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(HERE / "nmnist", folder)
    digests = {load("nmnist", folder).digest}
    (folder / "Train/0").rename(folder / "Train/1")
    digests.add(load("nmnist", folder).digest)
    file = folder / "Train/1/00002.bin"
    file.write_bytes(file.read_bytes()[5:])
    digests.add(load("nmnist", folder).digest)
    assert len(digests) == 3 and len(list(cache.rglob("*.h5"))) == 3


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_looks_complete(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    for split in ("Train", "Test"):
        (folder / split / "0").mkdir(parents=True)
        for number in range(1500):
            path = folder / split / "0" / f"{number}.bin"
            path.write_bytes((HERE / "nmnist/Train/0/00002.bin").read_bytes())
    program = (
        "from biograd import data; from biograd.recipes import load_dataset; from pathlib import "
        f"Path; data.load(load_dataset('nmnist'), name='nmnist', data_dir=Path({str(folder)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    limit = time.monotonic() + 60
    while not list(cache.rglob(".biograd-*")) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not list(cache.rglob("*.h5"))
    assert len(load("nmnist", folder).train) == 1500


@pytest.mark.parametrize("how", ["cut", "flip", "empty"])
def test_a_damaged_copy(cache: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load("nmnist", HERE / "nmnist")
    (place,) = cache.rglob("*.h5")
    content = bytearray(place.read_bytes())
    with h5py.File(place) as file:
        at = file["times"].id.get_chunk_info(0).byte_offset
    content[at + 9] ^= 1
    place.write_bytes({"cut": content[:900], "flip": content, "empty": b""}[how])

    def look() -> torch.Tensor:
        return load("nmnist", HERE / "nmnist").train.take(torch.arange(2)).inputs

    if how == "flip":  # the checksum of the piece
        assert str(place.name)[:12] in message(DataError, look)
    else:
        assert look().sum() == 240


def test_an_event_outside_of_the_sensor(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(HERE / "nmnist", folder)
    file = folder / "Train/0/00002.bin"
    file.write_bytes(bytes([34, 0, 0, 0, 1]))
    said = message(DataError, lambda: load("nmnist", folder))
    assert str(file) in said and "34 on axis 2 is outside 0..33" in said
    assert not list(cache.rglob("*"))[1:] or not list(cache.rglob("*.h5"))


# archives


def packed_digits(folder: Path, kind: str) -> dict[str, Any]:
    """Write archives of the two files of a set, and return the table of them."""
    table: dict[str, Any] = {}
    for split in ("train", "test"):
        name = f"shd_{split}.h5"
        path, content = folder / f"{name}.{kind}", (HERE / "shd" / name).read_bytes()
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr(name, content)
        elif kind == "gz":
            path.write_bytes(gzip.compress(content))
        else:
            with tarfile.open(path, "w:gz") as tar:
                tar.add(HERE / "shd" / name, f"below/{name}")
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        table[split] = {"name": path.name, "md5": digest, "holds": name}
    return table


@pytest.mark.parametrize("kind", ["zip", "gz", "tar.gz"])
def test_archives_are_unpacked_once(tmp_path: Path, kind: str) -> None:
    table = packed_digits(tmp_path, kind)
    loaded = load("shd", tmp_path, files=table)
    assert loaded.digest == load("shd", HERE / "shd").digest
    for file in table.values():
        (tmp_path / file["name"]).unlink()
    assert load("shd", None, files=table).digest == loaded.digest


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    table = packed_digits(tmp_path, "zip")
    path = tmp_path / "shd_train.h5.zip"
    path.write_bytes(path.read_bytes() + b" ")
    said = message(DataError, lambda: load("shd", tmp_path, files=table))
    assert "is truncated or altered: expected MD5" in said


def test_an_archive_that_leads_out_of_its_folder(tmp_path: Path) -> None:
    table, path = packed_digits(tmp_path, "zip"), tmp_path / "evil.tar"
    (tmp_path / "payload").write_text("x")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "payload", "../../outside")
    table["train"] = {
        "name": "evil.tar",
        "md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "holds": "shd_train.h5",
    }
    assert "cannot be unpacked" in message(DataError, lambda: load("shd", tmp_path, files=table))
    assert not list(tmp_path.rglob("outside"))


def test_what_nothing_fetches_says_so(tmp_path: Path) -> None:
    assert "get it from the makers" in message(DataError, lambda: load("ncars", None))
    assert "downloads are off" in message(DataError, lambda: load("nmnist", None))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"name": "a"}, "missing key files.train.sha256, or md5"),
        ({"name": "a", "md5": "0"}, "md5 = '0': must be 32 digits"),
        ({"name": "a", "md5": "0" * 32, "holds": "../a"}, "holds = '../a': must be a plain name"),
    ],
)
def test_tables_of_files_that_are_refused(table: dict[str, str], expected: str) -> None:
    recipe = DatasetRecipe("heidelberg", files={"train": table})
    assert expected in message(RecipeError, lambda: fetch.files(recipe, "a"))


def test_gestures_whose_tables_are_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "DvsGesture"
    for text, expected in (
        ("class,start,end\n", "must begin with class,startTime_usec,endTime_usec"),
        ("class,startTime_usec,endTime_usec\n0,1,2\n", "line 2: class 1 to 11"),
        ("class,startTime_usec,endTime_usec\n1,3,2\n", "line 2: class 1 to 11"),
        ("class,startTime_usec,endTime_usec\n1,x,2\n", "line 2: must be three whole numbers"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(HERE / "dvsgesture/DvsGesture", folder)
        (folder / "user01_fluorescent_labels.csv").write_text(text)
        assert expected in message(DataError, lambda: load("dvs_gesture", tmp_path))
    (folder / "trials_to_train.txt").write_text("../../secret.aedat\n")
    assert "is no name of a recording" in message(DataError, lambda: load("dvs_gesture", tmp_path))


# other packages' objects


class Records(torch.utils.data.Dataset[Any]):
    """Events as tonic gives them."""

    def __init__(
        self, random: bool = False, size: tuple[int, int, int] | None = (34, 34, 2)
    ) -> None:
        self.random = random
        if size:
            self.sensor_size = size

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        kind = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
        stream = np.random.default_rng(row)
        found = np.zeros(20 + row, kind)
        found["x"], found["y"] = stream.integers(0, 34, (2, len(found)))
        found["t"], found["p"] = np.sort(stream.integers(0, 50_000, len(found))), row % 2
        if self.random:
            found = found[np.random.random(len(found)) < 0.5]
        return found, row % 3


def own(given: Any, **keys: Any) -> data.Dataset:
    recipe = DatasetRecipe("torch", split=(1, 1, 1), **keys)
    return data.load(recipe, name="mine", own=given, timed=True, dt_ms=5.0)


def test_records_of_events_are_understood() -> None:
    loaded = own(Records())
    assert loaded.shape == (2, 34, 34) and loaded.task.outputs == 3
    row = int(data.original(loaded.train, torch.tensor([0])))
    events, label = Records()[row]
    batch = loaded.train.take(torch.tensor([0]))
    assert int(batch.targets) == label and int(batch.inputs.sum()) == len(events)
    for each in events:
        step, place = int(each["t"]) // 5000, (int(each["p"]), int(each["y"]), int(each["x"]))
        assert batch.inputs[0, step][place] >= 1
    check_source(loaded.train)


def test_records_that_are_refused() -> None:
    assert "dataset.shape of the sensor" in message(DataError, lambda: own(Records(size=None)))
    assert "draws at random" in message(DataError, lambda: own(Records(random=True)))
    assert "is outside 0..9" in message(DataError, lambda: own(Records(size=(10, 10, 2))))


class Pictures(torch.utils.data.Dataset[Any]):
    """What torchvision gives without a transform."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.fromarray(np.zeros((4, 5, 3), np.uint8)), row


def test_pictures_without_a_transform_are_refused() -> None:
    recipe = DatasetRecipe("torch", split=(1, 1, 1))

    def look() -> object:
        return data.load(recipe, name="mine", own=Pictures())

    assert "is a picture of PIL: give the Dataset transform" in message(DataError, look)


def test_tonic_reads_the_same() -> None:
    tonic = pytest.importorskip("tonic")
    for name in ("Train/0/00002.bin", "Test/7/00001.bin"):
        found = tonic.io.read_mnist_file(str(HERE / "nmnist" / name), tonic.io.events_struct)
        due = EXPECTED[f"nmnist/{name}"]["events"]
        assert found["t"].tolist() == due["t"] and found["x"].tolist() == due["x"]


# the console


def test_the_console_trains_on_recordings(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for split in ("Train", "Test"):
        for label in range(2):
            (folder / split / str(label)).mkdir(parents=True)
            for number, name in enumerate(("Train/0/00002.bin", "Train/5/00001.bin")):
                path = folder / split / str(label) / f"{number}.bin"
                shutil.copy(HERE / "nmnist" / name, path)
    words = (
        f"train --model spiking --dataset nmnist --data-dir {folder} --offline --epochs 1 --quiet "
        f"--out {tmp_path}/a.h5 --set encoding.kind=given --set encoding.dt_ms=10 "
        "--set encoding.duration_ms=400 --set dataset.binning.pool=[1,4,4] "
        "--set dataset.augmentation.jitter_ms=2 --set network.hidden=[8] "
        "--set training.batch_size=2"
    )
    found = CliRunner().invoke(console, words.split())
    assert found.exit_code == 0, found.output
    recipe = biograd.load(tmp_path / "a.h5").config["data"]
    assert recipe["augmentation"] == {"jitter_ms": 2.0} and recipe["binning"] == {"pool": [1, 4, 4]}
