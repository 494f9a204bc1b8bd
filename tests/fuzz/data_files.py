"""One's own data: IDX, packed or not, ``.npz``, HDF5 and folders of ``.npy``, damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from .harness import Target, said
from .mutators import VALUES, damaged_bytes

ROWS = 12
IDX = {
    "train_images": (ROWS, 3, 3),
    "train_labels": (ROWS,),
    "test_images": (4, 3, 3),
    "test_labels": (4,),
}
NPY = ["<f8", ">f4", "|O", "<U3", "<f2", "<c8", "?", "<i8", "|V8", "<M8[s]"]


def idx(values: Any, sizes: Sequence[int] | None = None, kind: int = 8) -> bytes:
    """Return an array of bytes as IDX."""
    found = values.shape if sizes is None else sizes
    header = b"\0\0" + bytes([kind % 256, len(found) % 256])
    return header + b"".join((n % 2**32).to_bytes(4, "big") for n in found) + values.tobytes()


def prepare(folder: Path) -> None:
    """Write a data set in every format, and import what takes long."""
    import biograd.experiment  # noqa: F401

    draws = np.random.default_rng(0)
    for name, shape in IDX.items():
        (folder / name).write_bytes(idx((draws.random(shape) * 3).astype(np.uint8)))
    arrays = {"x": draws.random((ROWS, 4)), "y": np.arange(ROWS) % 3, "weight": np.ones(ROWS)}
    np.savez(folder / "data.npz", **arrays, meta='{"classes": 3, "dt_ms": 1.0}')
    with h5py.File(folder / "data.h5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip", chunks=True)
        file.attrs["classes"] = 3
    for label in "ab":
        (folder / "folder" / "train" / label).mkdir(parents=True)
        for number in range(4):
            np.save(folder / "folder" / "train" / label / f"{number}.npy", draws.random(3))


def mutate(stream: Random, folder: Path) -> str:
    """Damage one file, and write which data set is to be read to ``asked``."""
    kind = stream.choice(["idx", "idx", "idx", "npz", "hdf5", "folder"])
    (folder / "asked").write_text(kind)
    if kind == "idx":
        return f"idx {_idx(stream, folder)}"
    if kind == "npz":
        return f"npz {_npz(stream, folder / 'data.npz')}"
    if kind == "hdf5":
        return f"hdf5 {_hdf5(stream, folder / 'data.h5')}"
    path = stream.choice(sorted((folder / "folder").rglob("*.npy")))
    data, how = _npy(stream, path.read_bytes())
    path.write_bytes(data)
    return f"folder {how}"


def _idx(stream: Random, folder: Path) -> str:
    name = stream.choice(list(IDX))
    data, how = (folder / name).read_bytes(), stream.choice(["bytes", "header", "packed", "bomb"])
    values = np.frombuffer(data[4 + 4 * data[3] :], np.uint8)
    sizes = list(IDX[name])
    if how == "header":
        at = stream.randrange(len(sizes))
        sizes[at] = stream.choice([0, 1, 2**16, 2**31, 2**32 - 1, sizes[at] + 1])
        sizes = stream.choice([sizes, sizes * 2, sizes[:1], [2**32 - 1] * 255, []])
        data = idx(values, sizes, stream.choice([8, 8, 8, 9, 0x0D]))
    elif how == "bomb":
        count = stream.choice([10**6, 10**8])
        data = gzip.compress(
            idx(np.zeros(count, np.uint8), stream.choice([sizes, [count], [2**31]])), 1
        )
    elif how == "packed":
        data, more = damaged_bytes(stream, gzip.compress(data, 1))
        how += f" {more}"
    if how == "bytes" or stream.random() < 0.3:
        data, more = damaged_bytes(stream, data)
        how += f" {more}"
    (folder / name).write_bytes(data)
    return f"{name} {how}"


def _npy(stream: Random, data: bytes) -> tuple[bytes, str]:
    if stream.random() < 0.5:
        return damaged_bytes(stream, data)
    header, shape = (
        io.BytesIO(),
        stream.choice([(), (0,), (3,), (2**31, 2**31), (-1,), (2**62,) * 2]),
    )
    kind = stream.choice(NPY)
    table = {"descr": kind, "fortran_order": stream.random() < 0.5, "shape": shape}
    np.lib.format.write_array_header_1_0(header, table)
    return header.getvalue() + data[128:], f"{kind} {shape}"


def _npz(stream: Random, path: Path) -> str:
    if stream.random() < 0.4:
        data, how = damaged_bytes(stream, path.read_bytes())
        path.write_bytes(data)
        return how
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = stream.choice(list(parts))
    if name == "meta.npy" or stream.random() < 0.2:
        stored = io.BytesIO()
        np.save(
            stored, np.array(stream.choice(["", "[1]", "[" * 9999, '{"classes": 1e99}', "\0", "7"]))
        )
        parts[name], how = stored.getvalue(), "text"
    else:
        parts[name], how = _npy(stream, parts[name])
    renamed = stream.choice([name, name, name, "x_train.npy", "odd", "../y.npy", "times.npy"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for each, data in parts.items():
            file.writestr(renamed if each == name else each, data)
    return f"{name} {how} {renamed}"


def _hdf5(stream: Random, path: Path) -> str:
    if stream.random() < 0.4:
        data, how = damaged_bytes(stream, path.read_bytes())
        path.write_bytes(data)
        return how
    with h5py.File(path, "r+") as file:
        name = stream.choice(sorted(file))
        how = stream.choice(
            ["value", "shape", "huge", "group", "text", "attribute", "itself", "rename"]
        )
        values = file[name][()]
        if how == "attribute":
            given = stream.choice(VALUES[:-1])
            if isinstance(given, (int, float, str)) and "\0" not in str(given):
                key = stream.choice(["classes", "dt_ms", "axes", "task", "time_unit"])
                file.attrs[key] = float(given) if isinstance(given, int) else given
            return how
        if how == "rename":
            file.move(name, stream.choice(["x_train", "times", "offsets", "odd\x1b"]))
            return f"{how} {name}"
        del file[name]
        if how == "value":
            values = values.astype(float)
            values.ravel()[stream.randrange(values.size)] = stream.choice(
                [np.nan, np.inf, -1, 1e300, 2**40, 0.5]
            )
            file[name] = values
        elif how == "shape":
            file[name] = stream.choice(
                [values[:1], values[:0], values[None], np.array(3.0), values.T]
            )
        elif how == "huge":
            file.create_dataset(name, (10**9, 10**3), "f8", chunks=(1000, 10))
        elif how == "group":
            file.create_group(name)
        elif how == "text":
            file[name] = stream.choice(["a", np.array([b"a", b"b"]), np.zeros(3, [("a", "f4")])])
        elif how == "itself":
            file[name] = file["/"]
        return f"{how} {name}"


def main(words: Sequence[str]) -> int:
    """Load the data set that was asked for, and look at all of it."""
    return said(lambda: _load(Path(words[0])))


def _load(folder: Path) -> None:
    import torch

    from biograd.data import load
    from biograd.recipes import DatasetRecipe

    kind = (folder / "asked").read_text()
    if kind == "idx":
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in IDX}
        files: Any = {name: {"name": name, "sha256": digest} for name, digest in digests.items()}
        recipe, place = DatasetRecipe("idx", files=files), folder
    else:
        file = {"npz": "data.npz", "hdf5": "data.h5", "folder": "folder"}[kind]
        recipe, place = DatasetRecipe(kind, path=str(folder / file)), None
    dataset = load(recipe, name="mutant", data_dir=place, offline=True)
    dataset.evaluated.take(torch.arange(len(dataset.evaluated)))


TARGET = Target(prepare, mutate, (("{folder}",),), main=main)
