"""Files that are there in full or not at all, and the folder in which a run grows.

Why fsync and rename: a rename replaces a name at once, and the file behind it must be on disk
before the name is; then the folder that holds the name must be, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from biograd.errors import BiogradError, RecipeError

try:
    import fcntl
except ImportError:  # Windows: nothing guards a run against a second writer there
    fcntl = None  # type: ignore[assignment]

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OutputError(BiogradError):
    """A run file cannot be written; what was committed before is intact."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where a run lies: the finished file, and the folder of its parts beside it."""

    file: Path

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> RunPaths:
        """Return the place of ``run.h5``, given that path or ``run.h5.parts``."""
        path = Path(path)
        if not path.name:
            raise RecipeError(f"{str(path)!r} is a folder: name a file, such as run.h5")
        return cls(path.with_suffix("") if path.suffix == ".parts" else path)

    def _beside(self, ending: str) -> Path:
        return self.file.with_name(self.file.name + ending)

    @property
    def parts(self) -> Path:
        """The folder of a run that is not finished."""
        return self._beside(".parts")

    @property
    def fresh(self) -> Path:
        """The parts folder before it is complete."""
        return self._beside(".parts.tmp")

    @property
    def aside(self) -> Path:
        """A parts folder that is about to be deleted."""
        return self._beside(".parts.old")

    @property
    def temporary(self) -> Path:
        """The finished file before it is complete."""
        return self._beside(".tmp")


@contextlib.contextmanager
def writing(path: Path, then: str) -> Iterator[None]:
    """Turn an error of the file system into one line; ``then`` says how to go on.

    Raises:
        OutputError: anything could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed flush as a RuntimeError
        code = getattr(error, "errno", None)
        text = str(error).replace("\n", " ")
        full = code in NO_SPACE or any(f"errno = {number}," in text for number in NO_SPACE)
        if full:
            message = (
                f"{path}: no space left on the disk (or quota reached); free space, then {then}"
            )
        else:
            reason = os.strerror(code) if code else text
            message = f"{path}: cannot be written ({reason}); make it writable, then {then}"
        raise OutputError(message) from error


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when all of it is on disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # give the space back
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that appears under its name only when all of it is on disk."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk; on failure nothing of it stays."""
    with open(path, "ab") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def discard(place: RunPaths) -> None:
    """Delete the parts folder; it vanishes at once, so a half-deleted one is never met."""
    remove(place.aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(place.parts, place.aside)
    remove(place.aside)


class Lock:
    """Says that a process writes into a parts folder; the system frees it if the process dies."""

    def __init__(self, path: Path) -> None:
        """Open the file that carries the lock."""
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self) -> bool:
        """Take the lock; False if another writer holds it."""
        for attempt in range(5):  # a reader that asks for the status holds it for an instant
            taken = _flock(self._descriptor, exclusive=True)
            if taken is not False:
                return True
            time.sleep(0.02 * attempt)
        return False

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            _unlock(self._descriptor)  # a process that was forked off would keep it otherwise
            os.close(self._descriptor)
            self._descriptor = None


def is_held(path: Path) -> bool | None:
    """Return whether a process holds the lock; None if the file system cannot say."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        free = _flock(descriptor, exclusive=False)
        return None if free is None else not free
    finally:
        os.close(descriptor)


def _flock(descriptor: int | None, *, exclusive: bool) -> bool | None:
    """Try to lock: True, False if another holds it, None if locks are not supported."""
    if fcntl is None or descriptor is None:
        return None
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _unlock(descriptor: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def own(place: RunPaths) -> Lock:
    """Take the lock of a parts folder.

    Raises:
        RecipeError: the run is still being written.
    """
    lock = Lock(place.parts / "lock")
    if not lock.take():
        lock.release()
        raise RecipeError(f"{place.parts}: another process still writes this run; wait for it")
    return lock
