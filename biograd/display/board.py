"""What a person sees while a study trains: a live table on a terminal, else one line an event."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from biograd.display.columns import duration
from biograd.display.printing import terminal
from biograd.display.progress_display import ProgressDisplay
from biograd.errors import visible
from biograd.metrics import Shown, figure, headline, words, written
from biograd.progress import Key

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class Board(ProgressDisplay):
    """Shows which trainings of a study are done, run, or failed, and how well they did so far.

    Args:
        live: draw a table that is kept up to date, if the stream is a terminal; else lines.
    """

    def __init__(
        self, quiet: bool = False, live: bool = True, stream: TextIO | None = None
    ) -> None:
        super().__init__(quiet, stream)
        self.live = live
        self._table: Live | None = None
        self._cells: dict[str, dict[int, str]] = {}
        self._found: dict[Key, float] = {}
        self._shown = Shown()
        self._begun: dict[Key, float] = {}
        self._start = time.monotonic()
        self._lock = threading.Lock()  # the table is drawn by a thread of its own

    def trainings(self, order: Sequence[Key], known: Mapping[Key, Mapping[str, Any]]) -> None:
        """Show what is to be trained; of some the summaries are known already."""
        for cell, seed in order:
            self._cells.setdefault(cell, {})[seed] = "done" if (cell, seed) in known else ""
        for key, found in known.items():
            self._note(key, found)
        if self.quiet:
            return
        if known:
            self._tell(f"{len(known)} of {len(order)} trainings are in the folder already")
        watched = self.live and self._in_place is None and self.stream.isatty()
        if watched and len(known) < len(order):
            from rich.live import Live

            self._table = Live(
                get_renderable=self._draw,
                console=terminal(self.stream),
                refresh_per_second=2,
                transient=True,
            )
            self._table.start()

    def event(self, training: Key, state: str, reason: str, summary: Any) -> None:
        """Show that a training was started, or how it ended."""
        cell, seed = training
        with self._lock:
            self._cells.setdefault(cell, {})[seed] = state
            if state == "started":
                self._begun[training] = time.monotonic()
            if summary is not None:
                self._note(training, summary)
            ended = [s for of in self._cells.values() for s in of.values() if s in _ENDS]
        told = {"retried": f"{reason}; started again", "failed": reason}.get(state, state)
        if state == "done" and summary is not None:
            seconds = duration(float(summary["seconds"]))
            told = f"{written(headline(summary), figure(summary))} in {seconds}"
        total = sum(map(len, self._cells.values()))
        place = f" ({len(ended)} of {total})" if state in _ENDS else ""
        # a table shows all but what went wrong
        if not self.quiet and (self._table is None or reason):
            (self._print if reason else self._tell)(f"{cell}, seed {seed}: {told}{place}")

    def _note(self, training: Key, summary: Mapping[str, Any]) -> None:
        self._shown = Shown.of([summary], False)
        self._found[training] = self._shown.value(figure(summary))

    def close(self) -> None:
        """Give the terminal back."""
        if self._table is not None:
            self._table.stop()
            self._table = None
        super().close()

    def _print(self, text: str) -> None:
        if self._table is not None:
            self._table.console.print(visible(text), markup=False, soft_wrap=True)
        else:
            super()._print(text)

    def _draw(self) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for name in ("seeds", f"test {self._shown.unit or words(self._shown.name)}", "now"):
            table.add_column(name, justify="left" if name == "now" else "right")
        with self._lock:
            for cell, seeds in self._cells.items():
                table.add_row(*self._line(cell, seeds))
            table.caption = self._caption()
        return table

    def _line(self, cell: str, seeds: Mapping[int, str]) -> tuple[str, str, str, str]:
        from rich.markup import escape

        found = [self._found[cell, seed] for seed in seeds if (cell, seed) in self._found]
        now = time.monotonic()
        running = [
            f"seed {seed}, {duration(now - self._begun[cell, seed])}"
            for seed, state in seeds.items()
            if state == "started"
        ]
        failed = [f"seed {seed} failed" for seed, state in seeds.items() if state == "failed"]
        digits = ".1f" if self._shown.share else ".4g"
        mean = f"{statistics.mean(found):{digits}}" if found else ""
        return (
            escape(visible(cell)),
            f"{len(found)}/{len(seeds)}",
            mean,
            "; ".join(running + failed),
        )

    def _caption(self) -> str:
        states = [state for seeds in self._cells.values() for state in seeds.values()]
        ended = sum(state in _ENDS for state in states)
        elapsed = time.monotonic() - self._start
        return f"{ended} of {len(states)} trainings, {duration(elapsed)}"


_ENDS = ("done", "failed")
