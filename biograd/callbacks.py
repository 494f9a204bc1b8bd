"""Callbacks: code of the user's that a training calls at its start, steps, epochs and end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

Log = Callable[[str, int, Mapping[str, float]], object]
"""Takes the stream ("train_step" or "epoch"), the number of steps done, and figures by name."""


class Stop(Exception):
    """Raised by a callback to end the training in good order: all of it is measured and saved."""


class Callback:
    """What a training calls; a subclass overrides what it wants.

    Only one of several processes that train together calls it.  An error in a callback ends the
    run as any other error does: what was committed is kept, and ``biograd.resume`` goes on.
    """

    def on_start(self, engine: Any, path: Any) -> None:
        """Be told of the attached engine and the run file, before the first step."""

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Be told of a step: loss, metrics, learning_rate, ...; ``step`` is 1 after the first."""

    def on_epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Be told of an epoch: what the run file's stream "epoch" holds."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Be told what came out."""


class Logged(Callback):
    """Hands every row of figures to a function; the first one that it fails at is its last.

    Args:
        log: see :data:`Log`.
        warn: is told, once, that and why it fails.
    """

    def __init__(self, log: Log, warn: Callable[[str], None]) -> None:
        self.log, self.warn, self.works = log, warn, True
        self.on_step = functools.partial(self._row, "train_step")  # type: ignore[method-assign]
        self.on_epoch = functools.partial(self._row, "epoch")  # type: ignore[method-assign]

    def _row(self, stream: str, step: int, values: Mapping[str, float]) -> None:
        if not self.works:
            return
        try:
            self.log(stream, step, values)
        except Exception as error:
            self.works = False
            self.warn(f"log: {type(error).__name__}: {error}: it is not called again")
