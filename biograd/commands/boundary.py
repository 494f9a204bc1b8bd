"""What the console does around a command: it turns every way of failing into one line and a code.

Exit codes: 0 done, 1 failed while running, 2 usage or recipe, 3 a requested check failed, 4 run
file, 5 a missing extra, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence

import click

from biograd import ranks, signals
from biograd.commands import console
from biograd.commands.options import ConsoleSettings
from biograd.display.printing import page, say, streams
from biograd.errors import BiogradError, brief

LONGEST = 4000
"""Characters of what is said of an error: a value of a file may stand in it."""


def run(arguments: Sequence[str] | None, heard: signals.Heard) -> int:
    """Run the console and return its exit code.

    Args:
        heard: signals; one that arrived decides the code, whatever became of its exception.
    """
    settings = ConsoleSettings()
    with streams() as out:
        try:
            result = console.main(
                arguments, prog_name="biograd", standalone_mode=False, obj=settings
            )
            code = result if isinstance(result, int) else 0
        except BaseException as error:
            with signals.deaf():
                if settings.debug and not isinstance(error, SystemExit):
                    page(traceback.format_exc(), err=True)
                code = _report(error, heard)
            ranks.give_way()
        else:
            code = _say(_signalled(heard), signals.BASE + heard.number) if heard.number else code
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            reason = getattr(out.failure, "strerror", None) or out.failure
            _say(f"biograd: the answer cannot be written to stdout: {reason}", 1)
        code = code or int(out.failure is not None)
    ranks.end(code)
    return code


def _report(error: BaseException, heard: signals.Heard) -> int:
    """Say on stderr, in one line, what ended the command; return the exit code."""
    signalled = signals.BASE + heard.number if heard.number else 0
    if isinstance(error, BiogradError):
        return _say(f"biograd: {error}", max(error.exit_code, signalled))
    if signalled:
        return _say(_signalled(heard), signalled)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _say("biograd: interrupted", signals.BASE + 2)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        page(error.message, err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _say(_usage(error), error.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _say(f"biograd: {brief(str(error.filename), 80)}: {error.strerror}", 2)
    text = f"unexpected {type(error).__name__}: {error}".rstrip(": ")
    return _say(f"biograd: {text} (run again with --debug for the traceback)", 1)


def _signalled(heard: signals.Heard) -> str:
    return f"biograd: {signals.WORDS[heard.number]}"


def _usage(error: click.ClickException) -> str:
    """Return a usage error as ``biograd COMMAND: what is wrong (see biograd COMMAND --help)``."""
    context = getattr(error, "ctx", None)
    place = context.command_path if context else "biograd"
    message = error.format_message().rstrip(".")
    return f"{place}: {message[:1].lower()}{message[1:]} (see {place} --help)"


def _say(text: str, code: int) -> int:
    if ranks.speaks():
        say(brief(" ".join(text.split()), LONGEST))
    return code
