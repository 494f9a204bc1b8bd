"""Locks of the system, by which one process says that it writes into a folder."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from biograd.disk.atomic import OWN

try:
    import fcntl
except ImportError:  # Windows: nothing guards a folder against a second writer there
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Says that a process writes into a folder; the system frees it if the process dies."""

    def __init__(self, path: Path) -> None:
        """Open the file that carries the lock, which is never written to."""
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | OWN, 0o666)

    def take(self, tries: int = 5) -> bool:
        """Take the lock; False if another writer holds it."""
        for attempt in range(tries):  # a reader that asks for the status holds it for an instant
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
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
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
