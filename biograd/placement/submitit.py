"""Trainings as Slurm jobs: submitit submits them as one array and looks after them.

A job that reaches its time limit or is preempted is queued again under its number and goes on where
its files say; one that is lost is submitted anew.  What a job says is in files beside its number in
the folder ``jobs``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from biograd.devices import VISIBLE, kind, visible
from biograd.errors import MissingExtraError, RecipeError
from biograd.placement.allotment import SHELL, THREADS, cores, own_device, shared, threads
from biograd.placement.jobs import (
    FROM_TERMINALS,
    Executor,
    Job,
    Outcome,
    Work,
    attempt,
    deaf_to,
    environment,
    line,
    pointed,
)
from biograd.placement.slurm import MINUTES, Placement, option, processes, read_options

REQUEUES = 100
"""How often a job may reach its time limit; each time it goes on."""
ARRAY = 1000
"""Jobs in one array at most: what Slurm allows unless it is told otherwise."""
GRACE = 15.0
"""Seconds for the result of a job that has ended to appear on a shared file system, and for a job
that was preempted, or lost its node, to be queued again."""
STOP = 10.0
"""Seconds to commit and end for jobs of this machine that are asked to stop."""
REQUEUED, TERMINATED = 144, 143
"""Exit codes of a job that leaves no result; the first asks submitit's stand-in for Slurm, which
runs jobs on this machine, to start it again."""


OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT", "not in the queue"),
}
"""States of Slurm's jobs that are not going on."""


def begin(placement: Placement, count: int) -> Executor:
    """Return the executor for so much work.

    Raises:
        RecipeError: an option is not valid, or there is no Slurm here.
        MissingExtraError: submitit is not installed.
    """
    options = read_options(placement.options)
    try:
        import submitit
    except ImportError:
        raise MissingExtraError(
            "the engine 'submitit' needs submitit: pip install 'biograd[sweep]'"
        ) from None
    cluster = options.pop("cluster", "slurm")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise RecipeError(
            "the engine 'submitit' finds no sbatch and srun on this machine: run it on a login "
            "node, try it here with the option cluster=local, or use --print-sbatch"
        )
    setup = options.pop("setup", [])
    away = [name for name in options if option(name).parameter.startswith("slurm_")]
    if cluster == "local" and away:
        raise RecipeError(f"option {away[0]}: has no effect with cluster=local: leave it out")
    if "%" in str(placement.logs.absolute()):  # Slurm's sign for what it fills in
        raise RecipeError(f"{placement.folder}: Slurm needs a folder without % in its path")
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its end is told by this executor
    placement.logs.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(
        placement.logs,
        cluster,
        slurm_max_num_timeout=REQUEUES,
        local_max_num_timeout=REQUEUES,
    )
    _update(executor, cluster, options, setup, placement.workers or min(count, ARRAY))
    ranks, cpus = processes(options), options.get("cpus")
    if cluster == "slurm":
        call = Call(device=placement.device, ranks=ranks)
        return SlurmJobs(executor, min(count, ARRAY), call, at_once=placement.workers)
    asked = kind(placement.device) in ("auto", "cuda") and "gpus" not in options
    given = visible() if asked else None
    call = Call(device=placement.device, ranks=ranks, study=os.getpid(), devices=given)
    workers = placement.workers or max(1, cores() // ranks)
    share = dict.fromkeys(THREADS, str(cpus)) if cpus else threads(workers * ranks)
    return LocalJobs(executor, min(workers, count), call, share)


def _update(
    executor: Any, cluster: str, options: dict[str, Any], setup: Sequence[str], parallel: int
) -> None:
    """Hand the options to submitit.

    Raises:
        RecipeError: it refuses one.
    """
    minutes = options.setdefault("time", MINUTES)
    lines = [*(SHELL if cluster == "slurm" else ()), *setup]
    own = {
        "name": "biograd",
        "slurm_array_parallelism": parallel,
        "slurm_signal_delay_s": min(90, 30 * minutes),
        f"{cluster}_setup": lines,
    }
    given = {option(name).parameter: value for name, value in options.items()}
    try:
        executor.update_parameters(**own | given)
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise RecipeError(f"--job: submitit says: {line(error)}") from None


@dataclasses.dataclass
class Call:
    """Work as submitit runs it: in the main thread of a process of its own.

    A try that is asked to stop leaves no result, for whoever stopped it may have queued it again.
    The tasks of a job of several train together, as the processes of torchrun do.

    Attributes:
        device: what the work computes on.
        ranks: tasks of the job.
        study: process on this machine without which the work should not go on.
        devices: CUDA devices that the work may use; None: those that the job sees.
    """

    function: Callable[..., object] = print
    arguments: tuple[Any, ...] = ()
    device: str = "auto"
    ranks: int = 1
    study: int | None = None
    devices: Sequence[str] | None = None
    requeued: bool = dataclasses.field(default=False, compare=False)

    def of(self, work: Work) -> Call:
        """Return the call that does some work."""
        return dataclasses.replace(self, function=work.function, arguments=work.arguments)

    def __call__(self) -> Outcome:
        """Do the work."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would let it pass without effect
        if self.study is not None:
            watch = threading.Thread(target=_die_with, args=(self.study,), daemon=True)
            watch.start()
        with self._among_ranks(), own_device(self._choice()):
            answer = attempt(self.function, self.arguments)
        if self.requeued:
            raise SystemExit(REQUEUED)
        if answer.interrupted:
            raise SystemExit(TERMINATED)
        return answer

    def __submitit_checkpoint__(self) -> Any:
        """Return what to run when the job is queued again: the same."""
        return self.checkpoint()

    def checkpoint(self) -> Any:
        """Return what to run when the job is queued again: the same."""
        from submitit.helpers import DelayedSubmission

        self.requeued = True
        return DelayedSubmission(dataclasses.replace(self, requeued=False))

    def _choice(self) -> Sequence[str]:
        """Return the CUDA devices of which one is to be this process's own."""
        if self.devices:  # submitit's stand-in for Slurm hides them
            os.environ[VISIBLE] = ",".join(self.devices)
        return shared(self.device) if self.ranks == 1 else ()

    @contextlib.contextmanager
    def _among_ranks(self) -> Iterator[None]:
        """Let the tasks of a job find each other."""
        if self.ranks == 1:
            yield
            return
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if self.study is not None:  # the only machine is this one, whatever it is called
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        yield


def _die_with(study: int) -> None:
    """End this process when the study's, or the one between, is gone."""
    between = os.getppid()
    while os.getppid() == between and _alive(study):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class SlurmJobs:
    """An executor: a Slurm job for each try, those that start together in one array.

    Why squeue and not sacct: it says the same of recent jobs, and there are clusters without
    accounting.
    """

    pause, asking = 2.0, 20.0
    """Seconds between two looks at the results, and at the queue."""
    grace = GRACE

    def __init__(
        self,
        executor: Any,
        capacity: int,
        call: Call,
        variables: Mapping[str, str] | None = None,
        at_once: int | None = None,
    ) -> None:
        self.executor, self.capacity, self.call = executor, capacity, call
        self.at_once = at_once or capacity
        self.variables = dict(variables or {})
        self._queue: dict[str, str] = {}
        self._asked = self._answered = time.monotonic()
        self._submitted: dict[Job, float] = {}
        self._over: dict[Job, float] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs."""
        from submitit.helpers import clean_env

        try:
            # what an enclosing job of Slurm has set would be taken for the new ones; what sbatch
            # says is in its error, too
            with (
                clean_env(),
                environment(self.variables),
                deaf_to(*FROM_TERMINALS),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                self._submit(jobs)
        except Exception as error:  # sbatch, the pickle, the file system
            for job in jobs:
                if job.handle is None:
                    job.answer = Outcome(True, f"its job could not be submitted: {line(error)}")
        self._submitted |= dict.fromkeys(jobs, time.monotonic())

    def _submit(self, jobs: Sequence[Job]) -> None:
        calls = [self.call.of(job.work) for job in jobs]
        for job, handle in zip(jobs, self.executor.submit_array(calls), strict=True):
            job.handle = handle

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """Return the jobs that have ended, or wait a little."""
        results = set(os.listdir(self.executor.folder))  # one look for all, and never an old one
        found = []
        for job in jobs:
            first = job.handle.task(0)  # of several it speaks for all
            there = first.paths.result_pickle.name in results
            answer = _result(first) if there else self._lost(job)
            if answer is not None:
                self._over.pop(job, None)
                found.append((job, answer))
        if not found:
            time.sleep(self.pause)
        return found

    def _lost(self, job: Job) -> Outcome | None:
        """Return how a job without a result ended; None if it may still have one."""
        state = self._ended_as(job)
        if state is None:
            self._over.pop(job, None)
            return None
        if time.monotonic() - self._over.setdefault(job, time.monotonic()) < self.grace:
            return None
        self._give_up(job.handle)
        text = f"its job {job.handle.job_id} ended without a result ({state})"
        again = not state.startswith("CANCELLED")
        return pointed(Outcome(again, text, logged=True), job.handle.task(0).paths.stderr)

    def _ended_as(self, job: Job) -> str | None:
        """Return the last state of a job that is over."""
        if time.monotonic() - self._asked > self.asking:
            self._ask()
        if self._answered <= self._submitted[job]:
            return None
        state = self._queue.get(job.handle.job_id, "not in the queue")
        return state if state in OVER else None

    def _ask(self) -> None:
        """Ask Slurm for the states of the user's jobs."""
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # it may answer next time
            said = subprocess.run(
                [*command, f"--user={os.getuid()}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
            entries = (entry.partition(" ") for entry in said.splitlines())
            self._queue = {number: state.strip() for number, _, state in entries}
            self._answered = time.monotonic()

    def _give_up(self, handle: Any) -> None:
        """See that a job that is about to be replaced does not come back."""
        _cancel([handle])

    def close(self, jobs: Sequence[Job]) -> None:
        """Cancel the jobs; Slurm gives them time to commit."""
        _cancel([job.handle for job in jobs if job.handle is not None])


class LocalJobs(SlurmJobs):
    """An executor: submitit's stand-in for Slurm, which runs jobs on this machine."""

    pause, grace = 0.1, 0.0

    def _ended_as(self, job: Job) -> str | None:
        return str(job.handle.state) if job.handle.done() else None

    def _submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.handle = self.executor.submit(self.call.of(job.work))

    def _give_up(self, handle: Any) -> None:
        """Nothing brings the job back."""

    def close(self, jobs: Sequence[Job]) -> None:
        """Ask the jobs to stop, let them commit, and kill what is still there."""
        handles = [job.handle for job in jobs if job.handle is not None]
        until = time.monotonic() + STOP
        try:
            _signal(handles, signal.SIGTERM)
            while not all(handle.done() for handle in handles) and time.monotonic() < until:
                time.sleep(0.05)
        finally:  # also if the user does not want to wait
            _signal(handles, signal.SIGKILL)  # its process dies with that of submitit
            while not all(handle.done() for handle in handles):
                time.sleep(0.05)


def _signal(handles: Sequence[Any], number: signal.Signals) -> None:
    for handle in handles:
        if not handle.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handle.job_id), number)


def _cancel(handles: Sequence[Any]) -> None:
    if handles:
        with contextlib.suppress(OSError):
            subprocess.run(
                ["scancel", *(handle.job_id for handle in handles)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


def _result(handle: Any) -> Outcome:
    """Return the result of a job that has ended."""
    from submitit.core.utils import FailedJobError

    try:
        found = handle.result()
    except FailedJobError as error:  # the job itself, not the work: no biograd there, say
        text = str(error).split("-" * 22)[1] if "-" * 22 in str(error) else str(error)
        last = text.strip().splitlines()[-1]
        return pointed(Outcome(False, f"its job failed: {last}", logged=True), handle.paths.stderr)
    except Exception as error:  # a result that cannot be read
        return Outcome(True, f"the result of its job cannot be read: {line(error)}")
    return pointed(Outcome(*found), handle.paths.stderr)
