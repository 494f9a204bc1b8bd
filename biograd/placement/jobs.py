"""Pieces of work and how they are tried: the part that every executor shares.

::

    work -> drive -> an executor starts jobs -> those that ended, and how -> again, done, failed

What is done is in files, not in processes: work that is started again goes on where its files
say.  So what the machine failed (a killed process, a lost node, a full disk) is tried again after a
pause; an error of the recipe is not, it would come again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from biograd.errors import BiogradError, visible
from biograd.ranks import Lost

TRIES, PAUSE = 3, 1.0
"""How often work is started before it is given up, and the first pause between, in seconds."""
INTERRUPTED = 128
"""Exit codes above say that a signal asked the work to stop."""
LONGEST = 1000
"""Characters of what is said about an error."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A piece of work: a function of a module, with arguments that can be pickled.

    The module is one that can be imported, not the script that runs.
    Doing it twice must be the same as doing it once.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """Work that was given up, and why, in one line."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Event:
    """How it goes on with some work; ``reason`` is one line, "" unless something went wrong.

    "started" is what was handed to the executor, which may let it wait in a queue of its own.
    """

    name: str
    state: Literal["started", "retried", "done", "failed"]
    reason: str = ""


class Outcome(NamedTuple):
    """How a try went.

    Attributes:
        again: another try could succeed.
        reason: what went wrong, in one line; "" if nothing did.
        interrupted: it was asked to stop.
        logged: its log says more.
    """

    again: bool
    reason: str
    interrupted: bool = False
    logged: bool = False


@dataclasses.dataclass(eq=False)
class Job:
    """A piece of work and its tries.

    Attributes:
        ready: when it may be started again, on the monotonic clock in seconds.
        handle: what the executor knows it by.
        answer: of a try that could not even be started.
    """

    work: Work
    tries: int = 0
    ready: float = 0.0
    handle: Any = None
    answer: Outcome | None = None


class Executor(Protocol):
    """Where work is done."""

    capacity: int
    """Jobs that may be started and not ended at a time."""
    at_once: int
    """Of those, how many may run; a job that is tried again waits until there are fewer."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a try of each job; one that cannot be started receives its ``answer``."""

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """Wait a little and return those of the jobs that have ended."""

    def close(self, jobs: Sequence[Job]) -> None:
        """Stop the jobs that still run, so that they can be resumed, and end the executor."""


def drive(
    work: Sequence[Work], executor: Executor, watch: Callable[[Event], None]
) -> list[Failure]:
    """Try all work and return those that failed; none stops the others.

    Args:
        watch: is told of every start and every end.
    """
    waiting, running = [Job(one) for one in work], list[Job]()
    failures = []
    try:
        while waiting or running:
            now = time.monotonic()
            ready = [job for job in waiting if job.ready <= now]
            most = executor.at_once if any(job.tries for job in ready) else executor.capacity
            begun = ready[: max(0, most - len(running))]
            for job in begun:
                waiting.remove(job)
                job.tries += 1
                job.handle = job.answer = None
            running += begun
            if begun:
                executor.start(begun)
            for job in begun:
                watch(Event(job.work.name, "started"))
            for job, answer in _ended(executor, running, waiting):
                running.remove(job)
                name, reason = job.work.name, answer.reason
                if reason and answer.again and job.tries < TRIES:
                    job.ready = time.monotonic() + PAUSE * 2 ** (job.tries - 1)
                    waiting.append(job)
                    watch(Event(name, "retried", reason))
                    continue
                if reason:
                    failures.append(Failure(name, reason))
                watch(Event(name, "failed" if reason else "done", reason))
    finally:
        executor.close(running)
    return failures


def _ended(
    executor: Executor, running: Sequence[Job], waiting: Sequence[Job]
) -> list[tuple[Job, Outcome]]:
    failed = [(job, job.answer) for job in running if job.answer is not None]
    if failed:
        return failed
    if running:
        return executor.ended(running)
    time.sleep(max(0.0, min(job.ready for job in waiting) - time.monotonic()))
    return []


def attempt(function: Callable[..., object], arguments: tuple[Any, ...]) -> Outcome:
    """Do work in this process and say how it went; the traceback of a surprise goes to stderr."""
    try:
        function(*arguments)
    except BiogradError as error:
        interrupted = error.exit_code > INTERRUPTED
        again = interrupted or isinstance(error, Lost) or isinstance(error.__cause__, OSError)
        return Outcome(again, line(error), interrupted)
    except OSError as error:
        return Outcome(True, f"{type(error).__name__}: {line(error)}")
    except Exception as error:  # whatever it is must not stop the other work
        sys.stderr.write(visible(traceback.format_exc(), "\n"))
        return Outcome(False, f"{type(error).__name__}: {line(error)}", logged=True)
    return Outcome(False, "")


def killed(number: int) -> Outcome:
    """Return the answer of a process that a signal killed."""
    known = number in signal.Signals._value2member_map_
    name = signal.Signals(number).name if known else f"signal {number}"
    return Outcome(True, f"its process was killed by {name}", logged=True)


def line(error: BaseException) -> str:
    """Return the text of an error as one line, neither empty nor endless.

    >>> line(ValueError("two\\n  lines"))
    'two lines'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let every process that starts meanwhile have these variables."""
    kept = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        os.environ.update(kept)


FROM_TERMINALS = (signal.SIGINT,) if sys.platform == "win32" else (signal.SIGINT, signal.SIGHUP)


@contextmanager
def deaf_to(*signals: signal.Signals) -> Iterator[None]:
    """Let every process and thread that starts meanwhile be deaf to these signals.

    What a terminal sends reaches all of its processes; the parent alone decides what it means.
    Here a signal waits until the block ends.
    """
    if sys.platform == "win32":
        yield
        return
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def log_of(name: str, folder: Path) -> Path:
    """Return the file for what the process of some work says."""
    stem = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
    return folder / f"{stem[:100]}.log"


def pointed(answer: Outcome, log: Path | None) -> Outcome:
    """Let what went wrong name the log that says more; a log in which nothing was said goes."""
    with contextlib.suppress(OSError):
        if log is not None and log.stat().st_size == 0:
            log.unlink()
        elif log is not None and answer.logged:
            return answer._replace(reason=f"{answer.reason} (see {log})")
    return answer
