"""Work placed on processes of this machine, each of which can be killed without harm to the others.

Processes and not threads, for what a training changes in its process (random states, the simulator,
signals) is its own, and so is its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from biograd import devices, disk
from biograd.placement import allotment
from biograd.placement.allotment import Dealt, deal, shared, threads
from biograd.placement.jobs import (
    FROM_TERMINALS,
    Event,
    Executor,
    Failure,
    Job,
    Outcome,
    Work,
    deaf_to,
    drive,
    killed,
    line,
    log_of,
    pointed,
)
from biograd.placement.slurm import Placement

GRACE = 10.0
"""Seconds to commit and end for a process that is asked to stop."""
LOOK = 0.05
"""Seconds between two looks at the processes."""


def begin(placement: Placement, count: int) -> Executor:
    """Return the executor for so much work."""
    workers = min(placement.workers or allotment.cores(), count)
    return Processes(workers, shared(placement.device), placement.logs)


def run(
    work: Sequence[Work],
    workers: int,
    watch: Callable[[Event], None],
    *,
    devices: Sequence[str] = (),
    logs: Path | None = None,
) -> list[Failure]:
    """Do all work, ``workers`` at a time, and return those that failed.

    Args:
        watch: is told of every start and every end.
        devices: see :class:`Processes`.
        logs: folder for what the processes say.
    """
    if not work:
        return []
    return drive(work, Processes(min(workers, len(work)), devices, logs), watch)


@dataclasses.dataclass
class _Process:
    process: subprocess.Popen[bytes]
    device: Dealt | None
    log: Path | None


class Processes:
    """An executor: a process of this machine for each try.

    The cores are divided: each process computes with its share of threads.  If this process dies,
    those that it started end, too.

    Args:
        workers: processes at a time.
        devices: names of the CUDA devices; of several each process sees one, the one that the
            fewest others use.
        logs: folder for what the processes say; None: it is lost.
        folder: in which they run; None: that of this process.
        sharing: processes that share the cores; None: ``workers``.
    """

    def __init__(
        self,
        workers: int,
        devices: Sequence[str] = (),
        logs: Path | None = None,
        folder: Path | None = None,
        sharing: int | None = None,
    ) -> None:
        self.capacity = self.at_once = workers
        self.devices, self.logs = list(devices), logs
        self.folder, self.sharing = folder, sharing or workers

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job."""
        for job in jobs:
            try:
                work = pickle.dumps((job.work.function, job.work.arguments))
            except Exception as error:  # it raises what it likes
                job.answer = Outcome(False, f"cannot be sent to another process: {line(error)}")
                continue
            try:
                job.handle = self._begin(job.work.name)
            except OSError as error:
                job.answer = Outcome(True, f"no process could be started: {line(error)}")
                continue
            with contextlib.suppress(OSError):  # it has ended already, and its end will be seen
                pickle.dump(work, job.handle.process.stdin)
                job.handle.process.stdin.flush()

    def _begin(self, name: str) -> _Process:
        variables, device = threads(self.sharing), deal(self.devices)
        if device is not None:
            variables[devices.VISIBLE] = device.name
        # the modules of the work are to be found as they are here
        variables["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        log, errors = None if self.logs is None else log_of(name, self.logs), subprocess.DEVNULL
        if log is not None:
            with contextlib.suppress(OSError):  # a full disk must not fail the work here
                log.parent.mkdir(parents=True, exist_ok=True)
                errors = disk.open_appending(log)
        process = None
        try:
            with deaf_to(*FROM_TERMINALS):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "biograd.placement.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=os.environ | variables,
                    cwd=self.folder,
                )
        finally:
            if errors != subprocess.DEVNULL:
                os.close(errors)
            if process is None and device is not None:
                device.back()
        return _Process(process, device, log)

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """Return the jobs whose process has ended, or wait a little."""
        found = [job for job in jobs if job.handle.process.poll() is not None]
        if not found:
            time.sleep(LOOK)
        return [(job, self._outcome(job.handle)) for job in found]

    def _outcome(self, handle: _Process) -> Outcome:
        """Return how a process that has ended went."""
        said, code = handle.process.stdout, handle.process.returncode
        assert said
        try:
            answer = Outcome(*pickle.load(said))
        except (EOFError, pickle.UnpicklingError):
            text = f"its process ended with exit code {code} and without an answer"
            answer = killed(-code) if code < 0 else Outcome(True, text, logged=True)
        self._release(handle)
        return pointed(answer, handle.log)

    def _release(self, handle: _Process) -> None:
        for stream in (handle.process.stdin, handle.process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        if handle.device is not None:
            handle.device.back()

    def close(self, jobs: Sequence[Job]) -> None:
        """Ask the processes to stop, let them commit, and kill what is still there."""
        handles = [job.handle for job in jobs if isinstance(job.handle, _Process)]
        until = time.monotonic() + GRACE
        try:
            for handle in handles:
                with contextlib.suppress(OSError):  # it has ended already
                    assert handle.process.stdin
                    handle.process.stdin.write(b"s")
                    handle.process.stdin.flush()
            while time.monotonic() < until:
                if all(handle.process.poll() is not None for handle in handles):
                    break
                time.sleep(LOOK)
        finally:  # also if the user does not want to wait
            for handle in handles:
                handle.process.kill()
                handle.process.wait()
                self._release(handle)
                pointed(Outcome(False, ""), handle.log)
