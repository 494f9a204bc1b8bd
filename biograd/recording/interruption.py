"""Stopping after a step when asked to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from biograd.errors import BiogradError


class Interrupted(BiogradError):
    """The run was asked to stop; everything up to the last step is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def graceful() -> Iterator[list[int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one kills.

    Why: an interrupt inside the optimiser would leave half a step in the weights.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)

    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
