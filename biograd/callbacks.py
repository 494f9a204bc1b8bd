"""Callbacks: code of the user's that a training calls at its start, steps, epochs and end."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from biograd.errors import RecipeError

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
    """Hands every row of figures to a function; it warns of the first that it fails at, its last.

    Args:
        log: see :data:`Log`.
    """

    def __init__(self, log: Log) -> None:
        self.log, self.works = log, True
        self.on_step = functools.partial(self._row, "train_step")  # type: ignore[method-assign]
        self.on_epoch = functools.partial(self._row, "epoch")  # type: ignore[method-assign]

    def _row(self, stream: str, step: int, values: Mapping[str, float]) -> None:
        if not self.works:
            return
        try:
            self.log(stream, step, values)
        except Exception as error:
            self.works = False
            failed = f"log: {type(error).__name__}: {error}: it is not called again"
            warnings.warn(failed, RuntimeWarning, stacklevel=2)


class StopAt(Callback):
    """Ends a training after a step, as another callback has ended it.

    Args:
        step: the number of steps.
        why: what that one has said.
    """

    def __init__(self, step: int, why: str) -> None:
        self.step, self.why = step, why

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Ask for the end."""
        if step == self.step:
            raise Stop(self.why)


@dataclasses.dataclass(frozen=True)
class Watchers:
    """Code of the user's that looks at a training and changes nothing in it, but when it ends.

    Attributes:
        callbacks: called in this order.
    """

    callbacks: tuple[Callback, ...] = ()

    @classmethod
    def of(cls, callbacks: object, log: Log | None) -> Watchers:
        """Return the watchers that a call names.

        Args:
            callbacks: one, or several.

        Raises:
            RecipeError: one of them cannot watch.
        """
        several = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)  # type: ignore[call-overload]
        for one in several:
            if not isinstance(one, Callback):
                raise RecipeError(f"callbacks: {one!r} is no biograd.Callback")
        if log is not None:
            if not callable(log):
                raise RecipeError(f"log: {log!r} is no function of a stream, a step and figures")
            several.append(Logged(log))
        return cls(tuple(several))


NONE = Watchers()
