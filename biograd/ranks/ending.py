"""How a rank ends: it tells the others of an error, and hears of theirs."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from biograd.errors import BiogradError
from biograd.ranks.world import HERE, World, join, leave, speaks

ANSWER_SECONDS = 3.0
"""So long the ranks that are left have to say that they are."""
GIVE_WAY_SECONDS = 10.0
"""So long a rank with nothing to say waits for the one that speaks; torchrun ends all with one."""


class Lost(BiogradError):
    """Another rank does not answer any more.

    Attributes:
        place: where in the work that was, and how to go on; whoever knows it sets it.
    """

    place = ""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other ranks for a training; tell them of an error, and hear of theirs.

    Raises:
        BiogradError: that of another rank, with its number.
        Lost: a rank ended without a word.
    """
    join()
    try:
        yield
    except BaseException as error:
        if HERE.world is None:
            raise
        with deaf():
            found = _fail(HERE.world, error)
        if found is error:
            raise
        raise found from error


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Do not hear SIGTERM: torchrun sends it as soon as a rank is lost, before that is reported."""
    if threading.current_thread() is not threading.main_thread() or HERE.world is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def give_way() -> None:
    """Wait for the rank that speaks: torchrun would stop it when this one ends first."""
    deadline = time.monotonic() + (0 if speaks() else GIVE_WAY_SECONDS)
    while time.monotonic() < deadline:
        if HERE.left is not None and 0 in notes(HERE.left):
            deadline = min(deadline, time.monotonic() + 1)  # it has only to print a line
        time.sleep(0.05)


def _fail(world: World, error: BaseException) -> BaseException:
    """Tell the others that this rank ends; return the error that it ends with."""
    victim = isinstance(error, (Lost, SystemExit, KeyboardInterrupt))
    note: dict[str, Any] = {"victim": victim}
    if not victim:
        known = isinstance(error, BiogradError)
        text = f"{error}" if known else f"unexpected {type(error).__name__}: {error}"
        note |= {"text": text, "code": getattr(error, "exit_code", 1)}
    with contextlib.suppress(RuntimeError):  # the store may be gone
        world.store.set(_end(world.rank), json.dumps(note))
    HERE.left = world
    leave()
    return _explained(world, error) if victim else error


def _explained(world: World, error: BaseException) -> BaseException:
    """Return why this rank cannot go on: the error of another, or which were lost."""
    deadline = time.monotonic() + (ANSWER_SECONDS if isinstance(error, Lost) else 0)
    others = [number for number in range(world.size) if number != world.rank]
    while True:
        left = notes(world)
        for number, note in left.items():
            if number != world.rank and not note["victim"]:
                return _Elsewhere(number, note)
        missing = [number for number in others if number not in left]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not isinstance(error, Lost):
        return error
    return _lost(world, missing, error)


def _lost(world: World, missing: list[int], error: Lost) -> Lost:
    if len(missing) == 1:
        who = f"rank {missing[0]} was lost"
    else:
        who = f"ranks {', '.join(map(str, missing))} do not answer" if missing else str(error)
    HERE.speaks = all(number in missing for number in range(world.rank))
    found = Lost(f"{who} {error.place}".strip())
    found.place = error.place
    return found


class _Elsewhere(BiogradError):
    """The error of another rank."""

    def __init__(self, number: int, note: dict[str, Any]) -> None:
        super().__init__(f"{note['text']} (rank {number})")
        self.exit_code = int(note["code"])


def notes(world: World) -> dict[int, dict[str, Any]]:
    """Return what the ranks have left behind that have ended."""
    found = {}
    with contextlib.suppress(RuntimeError):
        for number in range(world.size):
            if world.store.check([_end(number)]):
                found[number] = json.loads(world.store.get(_end(number)))
    return found


def _end(number: int) -> str:
    return f"end of {number}"
