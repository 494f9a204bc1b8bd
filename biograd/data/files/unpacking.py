"""What files say of their sizes, checked before anything of that size is allocated."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from biograd.disk.stored_sizes import excess, has_endless_heap
from biograd.errors import DataError, brief

FREE, RATIO = 16 * 2**20, 1100
"""Bytes that a file may unpack to whatever its size is, and how many to one byte beyond: a little
more than deflate can."""


def check_size(declared: int, stored: int, where: object, ratio: int = RATIO) -> None:
    """Refuse what says that it unpacks to far more than data do.

    Args:
        ratio: bytes to one that is stored.

    Raises:
        DataError: it does; ``where`` opens the message.
    """
    if declared > max(FREE, ratio * stored):
        raise DataError(
            f"{where}: {declared} bytes in {stored}: no data are packed so well; it is damaged, or "
            "made to fill the memory"
        )


def check_dataset(dataset: h5py.Dataset, where: object) -> None:
    """Refuse a data set of HDF5 that says more than its file can hold, as a whole or of a chunk.

    Raises:
        DataError: it does, or its values are those of any other file of this machine; ``where``
            opens the message.
    """
    virtual = dataset.virtual_sources() if dataset.is_virtual else []
    if dataset.external or any(source.file_name != "." for source in virtual):
        raise DataError(f"{where}: its values are in another file: write them here")
    if dataset.shape is None:
        return
    there = os.path.getsize(dataset.file.filename)
    if virtual:
        declared = dataset.size * dataset.dtype.itemsize
        check_size(declared, there, where)
        return
    why = excess(dataset, there, FREE, RATIO)
    if why:
        raise DataError(f"{where}: {why}: it is damaged, or made to fill the memory")


def check_ordinary(path: Path) -> None:
    """Refuse what would be read without end, or be waited for: a device, a pipe, a socket.

    Raises:
        DataError: it is one.
    """
    with contextlib.suppress(OSError):  # what is missing is told by who opens it
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{path}: is no ordinary file")


def check_heap(file: h5py.File, where: object) -> None:
    """Refuse a file of HDF5 whose texts HDF5 would read for ever.

    Raises:
        DataError: it is one.
    """
    if has_endless_heap(file):
        raise DataError(f"{where}: is damaged (HDF5 would read it for ever)")


def check_memory(declared: int, where: object, instead: str = "use HDF5") -> None:
    """Refuse what takes more than half of this machine's memory.

    Args:
        instead: what to do then.

    Raises:
        DataError: it does; ``where`` opens the message.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return
    if declared > memory // 2:
        raise DataError(f"{where}: {declared} bytes: this machine's memory has {memory}: {instead}")


def read_npy(stream: IO[bytes], stored: int, where: object) -> np.ndarray[Any, Any]:
    """Return the array of an ``.npy`` stream, which cannot hold objects.

    Args:
        stored: bytes of the stream, with its header.

    Raises:
        DataError: it is damaged, or an array of objects.
    """
    try:
        version = np.lib.format.read_magic(stream)
        first = version == (1, 0)
        header = (
            np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{where}: an array of objects: write rows of different lengths one behind the "
                "other, with offsets"
            )
        declared, found = math.prod(shape) * dtype.itemsize, stored - stream.tell()
        if declared != found:
            raise DataError(
                f"{where}: {list(shape)} of {dtype} need {declared} bytes, found {found}"
            )
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # the header is parsed as Python is
        raise DataError(f"{where}: cannot be read as npy: {brief(str(error))}") from error


def open_npy(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of an ``.npy`` file.

    Raises:
        DataError: it cannot be read, or see :func:`read_npy`.
    """
    try:
        with path.open("rb") as stream:
            return read_npy(stream, path.stat().st_size, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` by their names.

    Raises:
        DataError: it is none, an array is of objects, or would take more memory than there is.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                where = f"{path}: {info.filename}"
                if info.filename.removesuffix(".npy") in found:
                    raise DataError(f"{where}: is there twice")
                check_size(info.file_size, info.compress_size, where)
                check_memory(info.file_size, where)
                with file.open(info) as stream:
                    name = info.filename.removesuffix(".npy")
                    found[name] = read_npy(stream, info.file_size, where)
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read as npz: {brief(str(error))}") from error
    return found


DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What a zip file can come to; an unknown method is a RuntimeError."""
