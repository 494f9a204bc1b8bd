"""Declared sizes of HDF5 against what is there: honest ones pass, and others are not believed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from biograd.data import load
from biograd.data.files.unpacking import check_dataset
from biograd.disk.stored_sizes import HEAP, VARYING, excess, has_endless_heap
from biograd.errors import DataError, RecipeError, RunFileError
from biograd.interchange.graph_checks import check_file
from biograd.recipes import DatasetRecipe
from biograd.runs.checked import open_file


def made(path: Path, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", **options)
    return path


HONEST: dict[str, dict[str, Any]] = {
    "plain": {"data": np.arange(10.0)},
    "packed": {"data": np.zeros((400, 300)), "chunks": (50, 50), "compression": "gzip"},
    "texts": {"data": ["a", "bc"], "dtype": h5py.string_dtype()},
    "scalar": {"data": 3},
    "none": {"shape": (0, 4), "dtype": "f4", "maxshape": (None, 4), "chunks": (2, 4)},
}


@pytest.mark.parametrize("kind", HONEST)
def test_what_is_there_passes(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", **HONEST[kind])
    with h5py.File(path) as file:
        assert excess(file["x"], path.stat().st_size, 64, 1100) == ""
        check_dataset(file["x"], "x")
    with open_file(path) as file:
        file.dataset("x", "iufO")


FALSE: dict[str, dict[str, Any]] = {
    "large": {"shape": (10**12,), "dtype": "f8", "chunks": (10**5,)},
    "contiguous": {"shape": (2**40,), "dtype": "f4"},
    "a multiple of 2^64": {"shape": (2**32, 2**32), "dtype": "f8", "chunks": (1, 2**20)},
    "one chunk": {"shape": (1,), "dtype": "f8", "chunks": (2**28,), "maxshape": (None,)},
}


@pytest.mark.parametrize("kind", FALSE)
def test_what_cannot_be_there_is_refused(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", **FALSE[kind])
    with h5py.File(path) as file, pytest.raises(DataError, match="bytes"):
        check_dataset(file["x"], "x")
    with open_file(path) as file, pytest.raises(RunFileError, match="it declares"):
        file.dataset("x")


def test_a_text_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", data=["a", "bc"], dtype=h5py.string_dtype())
    with h5py.File(path) as file:
        start = file["x"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[start : start + 4] = (2**31).to_bytes(4, "little")
    assert np.frombuffer(bytes(data[start : start + 16]), VARYING)["length"] == 2**31
    path.write_bytes(data)
    with h5py.File(path) as file, pytest.raises(DataError, match="more than the file's"):
        check_dataset(file["x"], "x")
    with open_file(path) as file, pytest.raises(RunFileError, match="more than the file's"):
        file.dataset("x")


def test_many_chunks_take_no_time_by_their_square(tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", data=np.random.rand(20000, 4), chunks=(1, 4))
    with h5py.File(path) as file:
        begun = time.process_time()
        assert excess(file["x"], path.stat().st_size, 0, 1) == ""
        assert time.process_time() - begun < 2


@pytest.mark.parametrize("place", [0, 2**20 - 4, 3 * 2**20])
def test_a_heap_that_hdf5_would_read_for_ever_is_refused(place: int, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=2**22 if place else 0) as file:
        file.attrs["text"] = "a"  # a userblock may hold anything
        file["x"] = ["some", "texts"]
    with h5py.File(path) as file:
        assert not has_endless_heap(file)
    with open_file(path) as file:
        assert file.attributes("")["text"] == "a"
    data = bytearray(path.read_bytes())
    heap = place or data.index(HEAP)
    data[heap : heap + 16] = HEAP + (4096).to_bytes(8, "little")
    data[heap + 16 : heap + 4096] = bytes(4080)
    path.write_bytes(data)
    with pytest.raises(RunFileError, match="would read it for ever"):
        open_file(path)
    with pytest.raises(RecipeError, match="would read it for ever"):
        check_file(path)
    recipe = DatasetRecipe("hdf5", path=str(path))
    with pytest.raises(DataError, match="would read it for ever"):
        load(recipe, name="mine")


def test_heaps_that_overlap_take_no_time_by_their_square(tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", data=3)
    value = (1).to_bytes(8, "little") + (16).to_bytes(8, "little")
    with open(path, "ab") as file:  # each heap is the value of an object of all those before
        file.write((value + HEAP + (2**40).to_bytes(8, "little")) * 50000)
    begun = time.process_time()
    with pytest.raises(RunFileError, match="would read it for ever"):
        open_file(path)
    assert time.process_time() - begun < 5
