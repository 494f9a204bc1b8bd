"""Work placed on processes of this machine, each of which can be killed without harm to the others.

What is done is in files, not in the processes: a task that is started again goes on where its
files say.  So a killed process is started again, and so is one that the machine failed (a full
disk, say); an error of the recipe is not, it would come again.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from biograd.errors import BiogradError

TRIES, PAUSE = 3, 1.0
"""How often a task is started before it is given up, and the first pause between, in seconds."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of work: a function of a module, with arguments that can be pickled."""

    name: str
    function: Callable[..., object]
    arguments: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """A task that was given up, and why, in one line."""

    name: str
    reason: str


@dataclasses.dataclass
class _Job:
    task: Task
    tries: int = 0
    ready: float = 0.0
    process: BaseProcess | None = None
    answers: Connection | None = None


def run(tasks: Sequence[Task], workers: int, watch: Callable[[str], None]) -> list[Failure]:
    """Run all tasks, ``workers`` at a time, and return those that failed.

    The cores are divided: each process computes with its share of threads.  If this process dies,
    those that it started end, too.

    Args:
        watch: is told of every end in a line.
    """
    waiting, running = [_Job(task) for task in tasks], list[_Job]()
    failures = []
    context = multiprocessing.get_context("spawn")
    done = 0
    try:
        with _threads(workers):
            while waiting or running:
                now = time.monotonic()
                for job in [job for job in waiting if job.ready <= now][: workers - len(running)]:
                    waiting.remove(job)
                    _start(job, context)
                    running.append(job)
                for job in _ended(running):
                    running.remove(job)
                    again, reason = _outcome(job)
                    if reason and again and job.tries < TRIES:
                        job.ready = time.monotonic() + PAUSE * 2 ** (job.tries - 1)
                        waiting.append(job)
                        watch(f"{job.task.name}: {reason}; started again")
                        continue
                    done += 1
                    if reason:
                        failures.append(Failure(job.task.name, reason))
                    watch(f"{job.task.name}: {reason or 'done'} ({done} of {len(tasks)})")
    finally:
        for job in running:
            _stop(job)
    return failures


def _start(job: _Job, context: Any) -> None:
    ours, theirs = context.Pipe()
    job.tries += 1
    job.answers = ours
    arguments = (theirs, job.task.function, job.task.arguments)
    job.process = context.Process(target=_work, args=arguments, name=job.task.name)
    job.process.start()
    theirs.close()


def _ended(running: Sequence[_Job]) -> list[_Job]:
    """Wait a little and return the jobs whose process has ended."""
    sentinels = {job.process.sentinel: job for job in running if job.process}
    if not sentinels:
        time.sleep(0.05)
        return []
    return [sentinels[found] for found in wait(list(sentinels), 0.2) if found in sentinels]


def _outcome(job: _Job) -> tuple[bool, str]:
    """Return whether another try could succeed, and what went wrong, "" if nothing did."""
    assert job.process and job.answers
    job.process.join()
    try:
        found: tuple[bool, str] | None = job.answers.recv() if job.answers.poll() else None
    except (EOFError, OSError):
        found = None
    job.answers.close()
    code = job.process.exitcode or 0
    job.process.close()
    if found is not None:
        return found
    if code < 0:
        return True, f"its process was killed by {signal.Signals(-code).name}"
    return True, f"its process ended with exit code {code} and without an answer"


def _stop(job: _Job) -> None:
    assert job.process
    job.process.terminate()
    job.process.join(10)
    if job.process.is_alive():
        job.process.kill()
        job.process.join()


def _work(answers: Connection, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Do a task in its own process and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, args=(answers,), daemon=True).start()
    try:
        function(*arguments)
        answers.send((False, ""))
    except BiogradError as error:
        answers.send((isinstance(error.__cause__, OSError), " ".join(str(error).split())))
    except OSError as error:
        answers.send((True, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    except Exception as error:  # whatever it is must not stop the other tasks
        answers.send((False, f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _die_with_parent(answers: Connection) -> None:
    """End this process when the other end of its pipe is gone."""
    wait([answers])  # the parent never sends: what arrives is the end
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Let every process that starts meanwhile compute with its share of the cores."""
    share = str(max(1, (os.cpu_count() or 1) // workers))
    kept = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, share))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
