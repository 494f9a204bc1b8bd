"""Locks for what one thread at a time can do."""

from __future__ import annotations

import threading


class Turn:
    """A lock for what one thread at a time can do; it can be copied, each copy is another lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()
