"""The console's entry: run a command, and turn every way of failing into one line and a code.

Exit codes: 0 done, 1 failed while running, 2 usage or recipe, 3 a requested check failed, 4 run
file, 5 a missing extra, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import click

from biograd import ranks
from biograd.commands import console
from biograd.commands.options import ConsoleSettings
from biograd.errors import BiogradError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """SIGTERM arrived; what is running may commit and must then let this pass."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console and return its exit code."""
    settings = ConsoleSettings()
    try:
        with _terminable():
            result = console.main(
                arguments, prog_name="biograd", standalone_mode=False, obj=settings
            )
            sys.stdout.flush()
    except BaseException as error:
        if settings.debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        code = _report(error)
        ranks.give_way()
    else:
        code = result if isinstance(result, int) else 0
    ranks.end(code)
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raise :class:`Terminated` on the first SIGTERM and ignore the next ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(error: BaseException) -> int:
    """Say on stderr, in one line, what ended the command; return the exit code."""
    if isinstance(error, Terminated):
        return _say("biograd: terminated", TERMINATED)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _say("biograd: interrupted", INTERRUPTED)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, BiogradError):
        return _say(f"biograd: {error}", error.exit_code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.message, err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _say(_usage(error), error.exit_code)
    text = f"unexpected {type(error).__name__}: {error}".rstrip(": ")
    return _say(f"biograd: {text} (run again with --debug for the traceback)", 1)


def _usage(error: click.ClickException) -> str:
    """Return a usage error as ``biograd COMMAND: what is wrong (see biograd COMMAND --help)``."""
    context = getattr(error, "ctx", None)
    place = context.command_path if context else "biograd"
    message = error.format_message().rstrip(".")
    return f"{place}: {message[:1].lower()}{message[1:]} (see {place} --help)"


def _say(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        if ranks.speaks():
            click.echo(" ".join(text.split()), err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
