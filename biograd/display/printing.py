"""The one place that prints, on stdout and stderr.

Whatever comes from outside (names, attributes, keys of files, messages of others) could move the
cursor or retitle the window: only what is visible gets to a terminal.  A stream that is closed or
full ends no work: what failed on stdout is told at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from biograd.errors import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement

STREAMS = ("stdin", "stdout", "stderr")


class GuardedStream:
    """A text stream that keeps its first failure to itself.

    Attributes:
        failure: what went wrong; what is written later is lost without a word.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        with contextlib.suppress(AttributeError, ValueError):  # a stream of a test or a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or fail once."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or fail once."""
        self._try(self._stream.flush)

    def _try(self, act: Any, *arguments: str) -> None:
        if self.failure is not None:
            return
        try:
            act(*arguments)
        except (OSError, ValueError) as error:  # of a closed stream, a ValueError
            self.failure = error

    def abandon(self) -> None:
        """Let what is left in the buffer go nowhere, for Python flushes it at its end."""
        if self.failure is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Spoken(logging.Handler):
    """What is logged, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        say(self.format(record))


def _warn(message: Warning | str, category: type[Warning], *place: Any, **others: Any) -> None:
    page(warnings.formatwarning(message, category, *place[:2]).rstrip(), err=True)


@contextmanager
def streams() -> Iterator[GuardedStream]:
    """Guard stdout and stderr, and open those that are closed on nothing; yield stdout.

    Why: the next file to be opened, a run's for instance, would take the number of a closed one,
    and what others write on stderr would land in it.
    """
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    kept = sys.stdout, sys.stderr
    log, spoken, shown = logging.getLogger("biograd"), Spoken(), warnings.showwarning
    log.addHandler(spoken)
    warnings.showwarning = _warn
    sys.stdout, sys.stderr = out, errors = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    try:
        yield out
    finally:
        log.removeHandler(spoken)
        warnings.showwarning = shown
        for stream in (out, errors):
            stream.flush()
            stream.abandon()
        sys.stdout, sys.stderr = kept


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line; on stderr, if no stream is given."""
    _write(visible(text), stream or sys.stderr)


def page(text: str, err: bool = False) -> None:
    """Print lines on stdout, or on stderr."""
    _write(visible(text, "\n\t"), sys.stderr if err else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
    stream.flush()


def draw(thing: RenderableType) -> None:
    """Print what rich can draw on stdout."""
    # a terminal that is too narrow folds a line; rich would drop columns
    terminal(sys.stdout, 1000).print(Plain(thing), soft_wrap=True)


@contextmanager
def redrawn() -> Iterator[Callable[[str], None]]:
    """Yield what shows lines on stderr in place of those before; without a terminal, after them."""
    if not sys.stderr.isatty():
        yield lambda text: page(f"{text}\n", err=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal(sys.stderr), auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(Text(visible(text, "\n")), refresh=True)


def terminal(stream: TextIO, width: int | None = None) -> Console:
    """Return what draws on a stream; texts go to it as :class:`Plain`."""
    from rich.console import Console

    return Console(file=stream, highlight=False, width=width)


class Plain:
    """Something that rich can draw, whose texts are all visible."""

    def __init__(self, thing: RenderableType) -> None:
        self.thing = thing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for part in console.render(self.thing, options):
            yield part if part.control else Segment(visible(part.text, "\n"), part.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement.get(console, options, self.thing)


def dump(record: Mapping[str, Any]) -> None:
    """Print a JSON object on stdout; what is not visible in its texts is escaped as JSON does."""
    text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def escaped(found: re.Match[str]) -> str:
        sign = found[0]
        with contextlib.suppress(UnicodeEncodeError, LookupError):
            sign.encode(encoding)
            if visible(sign) == sign:
                return sign
        return json.dumps(sign)[1:-1] if sign != "\x7f" else "\\u007f"

    _write(re.sub(r"[^\n -~]", escaped, text), sys.stdout)


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: paths as text, a number that is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
