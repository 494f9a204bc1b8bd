"""Recordings in every format: cameras, spikes, sounds, sessions, tables and CIFAR-10, damaged."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from .harness import Target, said
from .mutators import VALUES, damaged_bytes

SAMPLES = Path(__file__).parent.parent / "recordings"
SOURCES: dict[str, dict[str, Any]] = {
    "nmnist": {"files": {"train": "Train", "test": "Test"}},
    "ncars": {"files": {"train": "n-cars_train", "test": "n-cars_test"}},
    "stmnist": {"files": {"all": "0"}, "split": (0.5, 0.25, 0.25)},
    "dvs_gesture": {"files": {"all": "trials_to_train.txt"}},
    "cifar10_dvs": {"files": {"airplane": "airplane"}},
    "heidelberg": {"files": {"train": "shd_train.h5", "test": "shd_test.h5"}, "shape": (700,)},
    "speech_commands": {"files": {"all": "testing_list.txt"}, "settings": {"bands": 4}},
    "cifar10": {"files": {"all": "data_batch_1.bin"}},
    "nwb": {"path": "a.nwb", "settings": {"target": "hand", "after_ms": 500.0}},
    "sonata": {"path": "spikes.h5"},
    "csv": {"path": "a.csv", "settings": {"target": ["kind"]}},
    "folder": {"path": "events"},
}


def prepare(folder: Path) -> None:
    """Write a set for every source, and import what takes long."""
    import biograd.experiment  # noqa: F401

    for source, sample in (("nmnist", "nmnist"), ("ncars", "ncars"), ("dvs_gesture", "dvsgesture")):
        shutil.copytree(SAMPLES / sample, folder / source)
    shutil.copytree(SAMPLES / "shd", folder / "heidelberg")
    _copies(SAMPLES / "stmnist/0/trial_1.mat", folder / "stmnist/0", [f"{n}.mat" for n in range(8)])
    names = [f"cifar10_airplane_{n}.aedat" for n in (0, 1, 100, 101)]
    _copies(
        SAMPLES / "cifar10dvs/airplane/cifar10_airplane_0.aedat",
        folder / "cifar10_dvs/airplane",
        names,
    )
    for label, kind, sample in (
        ("a", "train", "slayer/spikes.bs1"),
        ("a", "test", "slayer/spikes.bs1"),
    ):
        _copies(SAMPLES / sample, folder / "folder/events" / kind / label, ["1.bs1", "2.bs1"])
        _copies(SAMPLES / sample, folder / "folder/events" / kind / "b", ["1.bs1"])
    for write in (_words, _pictures, _session, _spikes, _table):
        write(folder)


def _copies(sample: Path, folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(sample, folder / name)


def _words(folder: Path) -> None:
    root = folder / "speech_commands"
    for word in ("no", "yes"):
        (root / word).mkdir(parents=True)
        for speaker in "abc":
            with wave.open(str(root / word / f"{speaker}_nohash_0.wav"), "wb") as file:
                file.setnchannels(1), file.setsampwidth(2), file.setframerate(4000)
                file.writeframes(np.arange(800, dtype="<i2").tobytes())
    (root / "validation_list.txt").write_text("no/b_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")


def _pictures(folder: Path) -> None:
    (folder / "cifar10").mkdir()
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        records = np.random.default_rng(0).integers(0, 256, (3, 3073), np.uint8)
        records[:, 0] %= 3
        (folder / "cifar10" / name).write_bytes(records.tobytes())


def _session(folder: Path) -> None:
    (folder / "nwb").mkdir()
    times = np.arange(0, 12, 0.01)
    with h5py.File(folder / "nwb" / "a.nwb", "w") as file:
        file["units/spike_times"] = np.sort(
            np.random.default_rng(0).random((3, 40)) * 12, 1
        ).ravel()
        file["units/spike_times_index"] = np.array([40, 80, 120], np.uint8)
        file["units/heldout"] = np.array([False, True, False])
        file["intervals/trials/id"] = np.arange(12, dtype=np.uint8)
        file["intervals/trials/start_time"] = np.arange(12.0)
        file["intervals/trials/split"] = np.array([b"train"] * 8 + [b"val"] * 4)
        file.create_dataset("processing/behavior/hand/data", data=times, compression="gzip")
        file["processing/behavior/hand/timestamps"] = times


def _spikes(folder: Path) -> None:
    (folder / "sonata").mkdir()
    shutil.copy(SAMPLES / "sonata/spikes.h5", folder / "sonata" / "spikes.h5")
    rows = [f"{30 * n},{30 * n + 30},{n % 2},{'train' if n < 4 else 'test'}" for n in range(6)]
    (folder / "sonata" / "trials.csv").write_text("\n".join(["start_ms,end_ms,label,split", *rows]))


def _table(folder: Path) -> None:
    (folder / "csv").mkdir()
    rows = [f"{n / 3},{n},{'ab'[n % 2]}" for n in range(24)]
    (folder / "csv" / "a.csv").write_text("\n".join(["u,v,kind", *rows]))


def mutate(stream: Random, folder: Path) -> str:
    """Damage a file of one set, and write which one is to be read to ``asked``."""
    source = stream.choice(sorted(SOURCES))
    (folder / "asked").write_text(source)
    path = stream.choice(sorted(p for p in (folder / source).rglob("*") if p.is_file()))
    if path.suffix in (".h5", ".nwb") and stream.random() < 0.6:
        return f"{source} {path.name} {_hdf5(stream, path)}"
    data, how = damaged_bytes(stream, path.read_bytes())
    if stream.random() < 0.4:
        data, how = _header(stream, path, path.read_bytes())
    path.write_bytes(data)
    return f"{source} {path.name} {how}"


def _header(stream: Random, path: Path, data: bytes) -> tuple[bytes, str]:
    """Put an odd number, or an odd text, where a size may stand."""
    number = stream.choice([0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
    if path.suffix in (".csv", ".txt"):
        words = data.decode().replace("\n", ",").split(",")
        odd = str(stream.choice(VALUES)).encode("utf-8", "replace")
        return data.replace(stream.choice(words).encode(), odd, 1), f"text {odd[:20]!r}"
    start = data.find(b"END-HEADER\r\n") + 12 if path.suffix == ".aedat" else 0
    at = start + 4 * stream.randrange(max(1, min(16, (len(data) - start) // 4)))
    at = stream.choice([at, 128, 132]) if path.suffix == ".mat" else at
    return data[:at] + struct.pack("<I", number) + data[at + 4 :], f"{number} at {at}"


def _hdf5(stream: Random, path: Path) -> str:
    """Change a data set into another."""
    try:
        with h5py.File(path, "r+") as file:
            found = list[str]()
            file.visititems(
                lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) else None
            )
            name = stream.choice(found)
            how = stream.choice(["value", "shape", "huge", "group", "text", "attribute", "gone"])
            values = file[name][()]
            if how == "attribute":
                given = stream.choice([v for v in VALUES[:10] if isinstance(v, int | float | str)])
                file[name].attrs["units"] = str(given).replace("\0", "")
                return f"{how} {name}"
            del file[name]
            if how == "value" and values.size and values.dtype.kind in "iuf":
                values = values.astype(float)
                values.ravel()[stream.randrange(values.size)] = stream.choice(
                    [np.nan, np.inf, -1, 1e300, 2**40, 0.5]
                )
                file[name] = values
            elif how == "shape" and values.ndim:
                file[name] = stream.choice([values[:1], values[:0], values[None]])
            elif how == "huge":
                file.create_dataset(name, (10**9, 10**3), "f8", chunks=(1000, 10))
            elif how == "group":
                file.create_group(name)
            elif how == "text":
                file[name] = stream.choice(
                    ["a", np.array([b"a", b"b"]), np.zeros(3, [("a", "f4")])]
                )
            return f"{how} {name}"
    except (TypeError, ValueError) as error:  # of values that HDF5 does not take
        return f"left as it is: {error}"


def main(words: Sequence[str]) -> int:
    """Load the set that was asked for, and look at all of it."""
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = cache
        try:
            return said(lambda: _load(Path(words[0])))
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _load(folder: Path) -> None:
    import torch

    from biograd.data import load
    from biograd.recipes import DatasetRecipe

    source = (folder / "asked").read_text()
    keys = dict(SOURCES[source])
    if "files" in keys:
        keys["files"] = {key: {"name": key, "holds": name} for key, name in keys["files"].items()}
        place: Path | None = folder / source
    else:
        keys["path"], place = str(folder / source / keys["path"]), None
    recipe = DatasetRecipe(source, **keys)
    dataset = load(recipe, name="mutant", data_dir=place, offline=True, timed=True, dt_ms=10.0)
    for each in (dataset.train, dataset.evaluated):
        for row in range(len(each)):
            each.take(torch.tensor([row]))


TARGET = Target(prepare, mutate, (("{folder}",),), main=main)
