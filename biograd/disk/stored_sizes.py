"""What a data set of HDF5 says of its size, against what its file can hold.

HDF5 allocates what a file declares, be it a data set, a chunk or one text, without a look at the
bytes that are there.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import numpy as np

HEAP = b"GCOL\1\0\0\0"
"""How a heap begins, in which values of varying length lie: texts, most attributes among them."""
HEADER, BLOCK = 16, 2**20

VARYING = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What HDF5 stores of a value of varying length, such as a text."""


def excess(dataset: h5py.Dataset, there: int, free: int, ratio: int) -> str:
    """Return why a data set cannot be as large as it says, "" if it can.

    Args:
        there: bytes of its file.
        free: bytes that it may declare whatever is stored.
        ratio: bytes that a stored one may unpack to.
    """
    stored, size = dataset.id.get_storage_size(), dataset.dtype.itemsize
    declared = size * max(math.prod(dataset.shape), math.prod(dataset.chunks or (0,)))
    if declared > free + ratio * min(stored, there):
        return f"it declares {declared} bytes, and {stored} are there"
    if max(stored, _largest_chunk(dataset), _longest(dataset)) > there:
        return f"it is said to take more than the file's {there} bytes"
    return ""


def _largest_chunk(dataset: h5py.Dataset) -> int:
    """Return the bytes of the largest chunk; one by one they would take time by their square."""
    sizes = [0]
    if dataset.chunks:
        dataset.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    return max(sizes)


def _longest(dataset: h5py.Dataset) -> int:
    """Return the length of the longest value of varying length."""
    start = dataset.id.get_offset() if dataset.dtype.hasobject else None
    if start is None:
        return 0
    with open(dataset.file.filename, "rb") as file:
        file.seek(start)
        found = file.read(math.prod(dataset.shape) * VARYING.itemsize)
    whole = len(found) // VARYING.itemsize * VARYING.itemsize
    return int(np.frombuffer(found[:whole], VARYING)["length"].max(initial=0))


def has_endless_heap(opened: h5py.File) -> bool:
    """Return whether a heap of a file holds free space of no size.

    HDF5 goes from one object of a heap to the next by their sizes, and would stay at this one for
    ever, where no signal is heard.
    """
    found, path = os.stat(opened.filename), str(opened.filename)
    width = opened.id.get_create_plist().get_sizes()[1]
    return _has_endless_heap(path, found.st_ino, found.st_size, found.st_mtime_ns, width)


@functools.lru_cache(4096)
def _has_endless_heap(path: str, inode: int, size: int, changed: int, width: int) -> bool:
    steps = size // HEADER  # for all: heaps do not overlap
    with open(path, "rb") as file:
        for start in list(_heaps(file)):
            for need in _needs(file, start, size, width):
                steps -= 1
                if not need or steps < 0:
                    return True
    return False


def _heaps(file: BinaryIO) -> Iterator[int]:
    """Yield where heaps begin."""
    start, rest = 0, b""
    while block := file.read(BLOCK):
        block, place = rest + block, -1
        while (place := block.find(HEAP, place + 1)) >= 0:
            yield start - len(rest) + place
        rest, start = block[-len(HEAP) + 1 :], start + len(block) - len(rest)


def _needs(file: BinaryIO, start: int, size: int, width: int) -> Iterator[int]:
    """Yield the bytes that each object of a heap takes, as HDF5 counts them.

    Args:
        size: of the file.
        width: bytes of each length that it holds.
    """

    def header(place: int) -> tuple[bytes, int]:
        file.seek(place)
        found = file.read(HEADER)
        return found, int.from_bytes(found[8 : 8 + width], "little")

    end = min(start + header(start)[1], size)
    place = start + HEADER
    while place + HEADER <= end:
        own, length = header(place)
        need = HEADER + -(-length // 8) * 8 if own[:2] != b"\0\0" else length
        yield need
        place += need or size
