"""SIGINT, SIGTERM and SIGHUP: heard once, whenever they come; exit codes 130, 143 and 129.

The last comes when a terminal is closed, or a connection ends; ``nohup`` has it ignored.

Why an import defers them: C code that is being initialised does what it likes with an exception.
NumPy turns it into another error, others into none; so it is raised when the import is over.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from biograd.errors import BiogradError

BASE = 128
"""Exit codes above name the signal that ended a process."""
WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if sys.platform != "win32":
    WORDS[signal.SIGHUP] = "the terminal was closed"
PAUSE, IMPORT_SECONDS = 0.02, 15.0
"""Seconds between two deliveries, and for which an import may go on after a signal."""


class Interrupted(BiogradError):
    """The run was asked to stop; everything up to the last step is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = BASE + number


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived; what is running may commit and must then let this pass."""


@dataclasses.dataclass
class Heard:
    """What has arrived.

    Attributes:
        number: of the first signal; 0: none.
        answered: an exception or a request to stop has told of it.
        repeated: the next call is not another signal, but the first delivered again.
    """

    number: int = 0
    answered: bool = False
    repeated: bool = False


HEARD = Heard()


@contextmanager
def ending(keep: bool) -> Iterator[Heard]:
    """Raise KeyboardInterrupt at SIGINT, :class:`Terminated` at the first of the others.

    Args:
        keep: give the handlers of before back; else a later signal ends the process by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Heard()
        return
    HEARD.number, HEARD.answered, HEARD.repeated = 0, False, False
    before = {number: signal.signal(number, _hear) for number in _heard()}
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield HEARD
    finally:
        HEARD.number, sys.unraisablehook = 0, hook
        for number, handler in before.items():
            signal.signal(number, handler if keep else signal.SIG_DFL)


def _heard() -> list[int]:
    return [number for number in WORDS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def graceful() -> Iterator[list[int]]:
    """Turn the first signal into a request to stop after the step; a second one kills.

    One that is ignored, as by ``nohup`` or in the background of a script, stays ignored.
    Why: an interrupt inside the optimiser would leave half a step in the weights.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        again, HEARD.repeated = HEARD.repeated, False
        if stop and not again:
            _raise(number, frame)
        elif not stop:
            HEARD.number, HEARD.answered = HEARD.number or number, True
            stop.append(number)

    kept = {number: signal.signal(number, ask) for number in _heard()}
    if HEARD.number and not HEARD.answered:  # it came in an import
        ask(HEARD.number, None)
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore these signals, in what is short and comes last."""
    main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in WORDS if main}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _hear(number: int, frame: FrameType | None) -> None:
    """Raise what a signal means; those that follow, but SIGINT, are the same once more."""
    again, HEARD.repeated = HEARD.repeated, False
    if HEARD.answered and (again or number != signal.SIGINT):
        return
    first, HEARD.number = not HEARD.number, HEARD.number or number
    if not _importing(frame):
        _raise(number, frame)
    if first:
        _later()
    elif number == signal.SIGINT and not again:
        end_now(number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    if _importing(frame):
        end_now(number)
    HEARD.answered = True
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(BASE + number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _later() -> None:
    """Deliver the first signal again and again, until something can be made of it.

    Why not ``threading``: a handler may have interrupted that at a lock.
    """
    _thread.start_new_thread(_deliver, (HEARD.number, time.monotonic() + IMPORT_SECONDS))


def _deliver(number: int, until: float) -> None:
    main = threading.main_thread().ident or 0
    time.sleep(PAUSE)
    while HEARD.number == number and not HEARD.answered:
        if time.monotonic() > until:
            end_now(number)
        HEARD.repeated = True
        if sys.platform == "win32":
            _thread.interrupt_main(signal.Signals(number))
        else:
            signal.pthread_kill(main, number)  # wakes it, too
        time.sleep(PAUSE)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Deliver a signal again that was raised where no exception can go, as in ``__del__``."""
    if isinstance(lost.exc_value, (KeyboardInterrupt, Terminated)) and HEARD.answered:
        HEARD.answered = False
        _later()
    else:
        sys.__unraisablehook__(lost)


def end_now(number: int) -> NoReturn:
    """End the process at once: nothing is lost that a kill would not lose."""
    with contextlib.suppress(OSError):
        os.write(2, f"biograd: {WORDS[number]}\n".encode())
    os._exit(BASE + number)
