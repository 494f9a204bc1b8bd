"""Work placed on processes of this machine, each of which can be killed without harm to the others.

Processes and not threads, for what a training changes in its process (random states, the simulator,
signals) is its own, and so is its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from biograd.studies.tasks import (
    Answer,
    Event,
    Failure,
    Job,
    Task,
    attempt,
    deaf_to,
    drive,
    environment,
    killed,
    line,
    log_of,
    pointed,
    speak_into,
    threads,
)

__all__ = ["Event", "Failure", "Processes", "Task", "run"]

GRACE = 10.0
"""Seconds to commit and end for a process that is asked to stop."""


def run(
    tasks: Sequence[Task],
    workers: int,
    watch: Callable[[Event], None],
    *,
    devices: Sequence[str] = (),
    logs: Path | None = None,
) -> list[Failure]:
    """Run all tasks, ``workers`` at a time, and return those that failed.

    Args:
        watch: is told of every start and every end.
        devices: see :class:`Processes`.
        logs: folder for what the processes say.
    """
    if not tasks:
        return []
    return drive(tasks, Processes(min(workers, len(tasks)), devices, logs), watch)


@dataclasses.dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    device: str | None
    log: Path | None


class Processes:
    """An engine: a process of this machine for each try.

    The cores are divided: each process computes with its share of threads.  If this process dies,
    those that it started end, too.

    Args:
        workers: processes at a time.
        devices: names of the CUDA devices; several are dealt in turn, so that each process sees one
            of them, the one that the fewest others use.
        logs: folder for what the processes say; None: it is lost.
    """

    def __init__(self, workers: int, devices: Sequence[str] = (), logs: Path | None = None) -> None:
        self.capacity, self.devices, self.logs = workers, list(devices), logs
        self._context = multiprocessing.get_context("spawn")
        self._used: list[str] = []

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job."""
        for job in jobs:
            try:
                work = pickle.dumps((job.task.function, job.task.arguments))
            except Exception as error:  # it raises what it likes
                job.answer = Answer(False, f"cannot be sent to another process: {line(error)}")
                continue
            try:
                job.handle = self._begin(job.task.name, work)
            except OSError as error:
                job.answer = Answer(True, f"no process could be started: {line(error)}")

    def _begin(self, name: str, work: bytes) -> _Process:
        device = min(self.devices, key=self._used.count) if len(self.devices) > 1 else None
        variables = threads(self.capacity)
        if device is not None:
            variables["CUDA_VISIBLE_DEVICES"] = device
        log = None if self.logs is None else log_of(name, self.logs)
        ours, theirs = self._context.Pipe()
        with theirs, environment(variables), deaf_to(signal.SIGINT):
            process = self._context.Process(target=_work, args=(theirs, work, log), name=name)
            process.start()
        if device is not None:
            self._used.append(device)
        return _Process(process, ours, device, log)

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Answer]]:
        """Wait a little and return the jobs whose process has ended."""
        sentinels = {job.handle.process.sentinel: job for job in jobs}
        found = [sentinels[key] for key in wait(list(sentinels), 0.2) if isinstance(key, int)]
        return [(job, self._outcome(job.handle)) for job in found]

    def _outcome(self, handle: _Process) -> Answer:
        """Return how a process that has ended went."""
        handle.process.join()
        try:
            answer: Answer | None = handle.pipe.recv() if handle.pipe.poll() else None
        except (EOFError, OSError):
            answer = None
        code = handle.process.exitcode or 0
        self._release(handle)
        if answer is None and code < 0:
            answer = killed(-code)
        elif answer is None:
            text = f"its process ended with exit code {code} and without an answer"
            answer = Answer(True, text, logged=True)
        return pointed(answer, handle.log)

    def _release(self, handle: _Process) -> None:
        handle.pipe.close()
        handle.process.close()
        if handle.device is not None:
            self._used.remove(handle.device)

    def close(self, jobs: Sequence[Job]) -> None:
        """Ask the processes to stop, let them commit, and kill what is still there."""
        handles = [job.handle for job in jobs if isinstance(job.handle, _Process)]
        until = time.monotonic() + GRACE
        try:
            for handle in handles:
                with contextlib.suppress(OSError):  # it has ended already
                    handle.pipe.send("stop")
            for handle in handles:
                handle.process.join(max(0.0, until - time.monotonic()))
        finally:  # also if the user does not want to wait
            for handle in handles:
                if handle.process.is_alive():
                    handle.process.kill()
                handle.process.join()
                self._release(handle)
                pointed(Answer(False, ""), handle.log)


def _work(pipe: Connection, work: bytes, log: Path | None) -> None:
    """Do a task in its own process and say how it went."""
    speak_into(log)
    faulthandler.enable()  # a crash says where
    seen = _signals()
    threading.Thread(target=_obey, args=(pipe, seen), daemon=True).start()
    try:
        function, arguments = pickle.loads(work)  # written by the parent
    except Exception as error:
        answer = Answer(False, f"cannot be read in another process: {line(error)}")
    else:
        answer = attempt(function, arguments)
    pipe.send(answer)


def _signals() -> int | None:
    """Return a descriptor from which the numbers of arriving signals can be read."""
    if sys.platform == "win32":
        return None
    read, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    return read


def _obey(pipe: Connection, signals: int | None) -> None:
    """Stop when the parent says so, and die when it is gone.

    Why not a signal of the parent: whoever stops a whole group of processes has signalled this one
    already, and a second signal would not let it commit.
    """
    asked = False
    sources: list[Connection | int] = [pipe] if signals is None else [pipe, signals]
    while True:
        ready = wait(sources)
        if signals is not None and signals in ready:
            asked = asked or signal.SIGTERM in os.read(signals, 4096)
        if pipe in ready:
            try:
                pipe.recv()
            except (EOFError, OSError):  # the other end is gone
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            if not asked:
                asked = True
                os.kill(os.getpid(), signal.SIGTERM)


def cuda_devices() -> list[str]:
    """Return the CUDA devices of this machine by the names of ``CUDA_VISIBLE_DEVICES``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
