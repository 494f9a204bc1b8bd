"""Streams through which HDF5 writes files that appear in full or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, cast

import h5py

from biograd.disk.atomic import WholeWrites, replacing


class _Steady(WholeWrites):
    """A file that keeps its first error to itself, for HDF5 crashes if it cannot flush."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            if self.error is None:
                super().write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and (count := super().readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)  # what a write that failed has left out
        return len(view)


@contextlib.contextmanager
def steady(target: Path, folder: Path | None = None) -> Iterator[FileIO]:
    """Yield a stream for HDF5 that takes the name of a file at the end; see ``replacing``.

    Raises:
        OSError: something could not be written.
    """
    with replacing(target, folder=folder, opened=lambda d: _Steady(d, "w+")) as stream:
        try:
            yield stream
        except (OSError, RuntimeError):
            if cast(_Steady, stream).error is None:
                raise
        failed = cast(_Steady, stream).error
        if failed is not None:
            raise failed


@contextlib.contextmanager
def create(target: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file for writing; see :func:`steady`."""
    with steady(target) as stream, h5py.File(stream, "w") as file:
        yield file
