"""What a person sees while a network trains: a bar on a terminal, else plain lines.

In a notebook a few lines are written anew in their place; in a pipe, or a file, there is a line for
each epoch, but no more than a person would read.  All but a notebook's lines goes to stderr, so
that stdout holds the result alone.  NO_COLOR is honoured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TextIO

from biograd.display.columns import duration, percent
from biograd.display.notebooks import NotebookLines, in_notebook
from biograd.display.printing import say, terminal
from biograd.errors import visible
from biograd.metrics import headline, words, written
from biograd.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Record = Mapping[str, Any]

Fields = dict[str, tuple[str, Callable[[float], str]]]


def fields(metric: str, evaluated: str = "test") -> Fields:
    """Return what a record may hold, in the order in which it is shown; the rest is passed over.

    Args:
        metric: the task's headline.
        evaluated: the split that the training looks at.
    """
    number = partial(written, metric)
    return {
        "loss": ("loss", "{:.4f}".format),
        metric: (words(metric), number),
        "train_loss": ("loss", "{:.4f}".format),
        f"train_{metric}": ("train", number),
        "test_loss": (f"{evaluated} loss", "{:.4f}".format),
        f"test_{metric}": (evaluated, number),
        **OTHERS,
    }


OTHERS: Fields = {
    "spikes_per_neuron": ("spikes/neuron", "{:.2f}".format),
    "silent_fraction": ("silent", percent),
    "steps_per_second": ("", "{:.0f} steps/s".format),
    "seconds": ("", duration),
}
REDRAW_SECONDS = 0.1
FIRST_LINES, LINE_SECONDS = 20, 2.0
"""Away from a terminal: so many epochs have a line each, later ones that are so far apart."""
SILENT_SECONDS = 60.0
"""Away from a terminal a step has a line if nothing was said for so long."""


class ProgressDisplay(Progress):
    """Shows the progress of a training.

    Why one object: who trains knows neither terminals nor ``--quiet``; it calls :meth:`begin`,
    then :meth:`step` and :meth:`epoch` with plain records.  As a context manager it gives the
    terminal back whatever happens.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self._bar: Bar | None = None
        self._in_place = NotebookLines() if not quiet and in_notebook() else None
        self._drawn = 0.0
        self._said, self._lines = time.monotonic(), 0
        self._done, self._total = 0.0, 0
        self._steps = 0
        self._since = time.monotonic()

    def begin(self, total_steps: int, title: str) -> None:
        """Start the bar of a training of ``total_steps`` steps; an earlier bar ends.

        They may also be forward passes or seconds, which each step then tells (``spent``).
        """
        self.close()
        self._restart()
        if self.quiet:
            return
        self._tell(title)
        self._done, self._total, self._lines = 0.0, total_steps, 0
        self._said = time.monotonic()
        if self._in_place is None and self.stream.isatty():
            self._bar = _bar(self.stream)
            self._bar.add_task(title, total=total_steps, facts="")
            self._bar.start()

    def step(self, record: Record) -> None:
        """Count one optimiser step; ``record`` holds what :func:`fields` names.

        ``spent`` in it is by how much the bar advances: 1 unless a budget is counted otherwise.
        """
        self._steps += 1
        spent = record.get("spent", 1)
        self._done += spent
        if self._bar is None:
            if not self.quiet:
                self._plain_step(record)
            return
        task = self._bar.task_ids[-1]
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._bar.update(task, advance=spent, facts=describe(self._timed(record)))
        else:
            self._bar.update(task, advance=spent)

    def epoch(self, record: Record) -> None:
        """Report an epoch: ``epoch`` and ``epochs`` count from 1, the rest as in a step."""
        if self.quiet:
            return
        if not self._wanted(record):
            self._restart()
            return
        total = str(record.get("epochs", ""))
        number = str(record.get("epoch", "")).rjust(len(total))
        facts = describe(self._timed(record))
        self._tell(f"epoch {number}{'/' if total else ''}{total}  {facts}")
        self._restart()

    def _plain_step(self, record: Record) -> None:
        """Say how far it went, in place in a notebook, or where nothing was said for long."""
        now = time.monotonic()
        since = now - (self._said if self._in_place is None else self._drawn)
        if since < (SILENT_SECONDS if self._in_place is None else 2 * REDRAW_SECONDS):
            return
        text = f"{self._done:g}/{self._total}  {describe(self._timed(record))}"
        if self._in_place is None:
            self._print(text)
        else:
            self._drawn = now
            self._in_place.write(visible(text))

    def _wanted(self, record: Record) -> bool:
        """Return whether an epoch has a line: away from a terminal not every one of thousands."""
        self._lines += 1
        last = record.get("epoch") is not None and record.get("epoch") == record.get("epochs")
        if self._bar is not None or last or self._lines <= FIRST_LINES:
            return True
        return time.monotonic() - self._said >= LINE_SECONDS

    def note(self, text: str) -> None:
        """Say something worth knowing in one line."""
        if not self.quiet:
            self._print(text)

    def close(self) -> None:
        """Give the terminal back; harmless when there is nothing to give back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _restart(self) -> None:
        self._steps, self._since = 0, time.monotonic()

    def _timed(self, record: Record) -> Record:
        """Return the record with the speed since the last epoch."""
        elapsed = time.monotonic() - self._since
        return {"steps_per_second": self._steps / elapsed, **record} if elapsed > 0 else record

    def _tell(self, text: str) -> None:
        """Say how it goes on, which a notebook shows in place; what went wrong stays on stderr."""
        if self._in_place is None:
            self._print(text)
        else:
            self._in_place.add(visible(text))

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(visible(text), markup=False, soft_wrap=True)
        else:
            say(text, self.stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe(record: Record) -> str:
    """Write the known fields of a record side by side.

    >>> describe({"test_accuracy": 0.95, "epoch": 3, "loss": 0.25})
    'loss 0.2500  test 95.0 %'
    """
    parts = []
    evaluated = str(record.get("evaluated_on", "test"))
    for key, (label, write) in fields(headline(record), evaluated).items():
        value = record.get(key)
        if value is not None:
            parts.append(f"{label} {write(value)}".strip())
    return "  ".join(parts)


def _bar(stream: TextIO) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    facts = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Bar(
        BarColumn(bar_width=10, table_column=Column(width=10)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[facts]}", markup=False, table_column=facts),
        console=terminal(stream),
        expand=True,
        transient=True,
    )
