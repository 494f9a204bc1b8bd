"""Events as a sensor sends them: a time and the place in its array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from biograd import disk
from biograd.data.files.unpacking import check_memory
from biograd.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class AddressEvents:
    """The events of one recording, in the order of the file.

    Attributes:
        times: microseconds, int64 ``[n]``.
        places: a column for each axis of the sensor, int64 ``[n, axes]``: of a camera polarity
            (1: brighter), row (downwards), column; of other sensors the channel.
        shape: of the sensor, if the file says so; (): it does not.
    """

    times: np.ndarray
    places: np.ndarray
    shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    def between(self, start: int, end: int) -> AddressEvents:
        """Return the events ``start <= t < end``, with times from ``start``."""
        inside = (self.times >= start) & (self.times < end)
        return AddressEvents(self.times[inside] - start, self.places[inside], self.shape)

    def numbers(self, shape: tuple[int, ...], where: object) -> np.ndarray:
        """Return the places as numbers of channels of a sensor of ``shape``, last axis fastest.

        Raises:
            DataError: an event lies outside.
        """
        if self.places.shape[1] != len(shape):
            axes = self.places.shape[1]
            raise DataError(f"{where}: events have {axes} axes, the shape is {list(shape)}")
        for axis, size in enumerate(shape):
            column = self.places[:, axis]
            wrong = np.flatnonzero((column < 0) | (column >= size))
            if len(wrong):
                raise DataError(
                    f"{where}: event {wrong[0]}: {int(column[wrong[0]])} on axis {axis} is outside "
                    f"0..{size - 1} of shape {list(shape)}"
                )
        return np.ravel_multi_index(tuple(self.places.T), shape).astype(np.int64).reshape(-1)


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """How files of recordings are read.

    Attributes:
        read: returns the events of a file; of a sound ``(samples, rate in Hz)``.
        endings: of the files' names.
        sound: whether the files hold sound, which becomes events by filters.
    """

    read: Callable[[Path], Any]
    endings: tuple[str, ...]
    sound: bool = False


def camera(times: Any, x: Any, y: Any, polarity: Any) -> AddressEvents:
    """Return the events of a camera; ``x`` to the right, ``y`` downwards, microseconds."""
    columns = [np.asarray(each).astype(np.int64).reshape(-1) for each in (polarity, y, x)]
    return AddressEvents(np.asarray(times).astype(np.int64).reshape(-1), np.stack(columns, 1))


def content(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: it cannot be read, or is larger than half of the memory.
    """
    try:
        check_memory(path.stat().st_size, path)
        return disk.read_bytes(path, 2**40)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def records(data: bytes, size: int, where: object) -> np.ndarray:
    """Return records of ``size`` bytes as a table of bytes ``[n, size]``.

    Raises:
        DataError: the last one is not complete.
    """
    if len(data) % size:
        raise DataError(
            f"{where}: truncated: {len(data)} bytes of events are no multiple of {size}"
        )
    return np.frombuffer(data, np.uint8).reshape(-1, size)
