"""Who shows how a call goes on: what ``progress=`` says."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from biograd.display.notebooks import in_notebook
from biograd.errors import RecipeError
from biograd.progress import Key, Progress

Listener = Callable[[str, Mapping[str, Any]], object]
"""Takes what happens ("begin", "step", "epoch", "note", "training") and its figures by name."""
ProgressChoice = bool | None | Progress | Listener
"""Of ``progress=``: None: on a terminal and in a notebook; True: also in a pipe; False: nowhere."""


@contextlib.contextmanager
def shown(choice: ProgressChoice, *, several: bool = False) -> Iterator[Progress]:
    """Yield who shows how a call goes on, and give the terminal back at its end.

    Args:
        several: the call trains several networks.

    Raises:
        RecipeError: it is no such choice.
    """
    if isinstance(choice, Progress):
        yield choice
    elif callable(choice):
        yield Told(choice)
    elif choice is None or isinstance(choice, bool):
        quiet = choice is False or sys.stderr is None or (choice is None and not _watched())
        if quiet:
            yield Progress()
            return
        from biograd.display.board import Board
        from biograd.display.progress_display import ProgressDisplay

        with Board() if several else ProgressDisplay() as display:
            yield display
    else:
        raise RecipeError(
            f"progress: {choice!r}: give True, False, None, or a function of what happens and "
            "figures"
        )


def _watched() -> bool:
    """Return whether a person looks on."""
    with contextlib.suppress(AttributeError, ValueError):  # a closed stream, or one of a test's
        return bool(sys.stderr.isatty()) or in_notebook()
    return in_notebook()


class Told(Progress):
    """Hands everything that happens to a function of the user's; an error of it ends the call.

    Args:
        listener: see :data:`Listener`.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def begin(self, total_steps: int, title: str) -> None:
        """Say "begin": ``total``, what is to do, and ``title``."""
        self.listener("begin", {"total": total_steps, "title": title})

    def step(self, record: Mapping[str, Any]) -> None:
        """Say "step"."""
        self.listener("step", record)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Say "epoch"."""
        self.listener("epoch", record)

    def note(self, text: str) -> None:
        """Say "note": ``text``."""
        self.listener("note", {"text": text})

    def trainings(self, order: Sequence[Key], known: Mapping[Key, Mapping[str, Any]]) -> None:
        """Say "training" of every one that is known already."""
        for cell, seed in order:
            if (cell, seed) in known:
                self.event((cell, seed), "known", "", known[cell, seed])

    def event(
        self, training: Key, state: str, reason: str, summary: Mapping[str, Any] | None
    ) -> None:
        """Say "training": ``cell``, ``seed``, ``state``, ``reason`` and ``summary``."""
        cell, seed = training
        found = {"cell": cell, "seed": seed, "state": state, "reason": reason}
        self.listener("training", {**found, "summary": summary})
