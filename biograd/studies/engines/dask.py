"""Trainings on the workers of a Dask cluster: of this machine, or one that is reached by address.

A worker does one training at a time, in a thread of its process, and keeps its imports for the
next.  Whoever has Slurm jobs or containers as Dask workers starts them and gives the address.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from biograd import __version__
from biograd.errors import BiogradError, MissingExtraError, RecipeError
from biograd.studies.engines.placement import Placement
from biograd.studies.tasks import (
    Answer,
    Engine,
    Job,
    attempt,
    deaf_to,
    environment,
    line,
    log_of,
    pointed,
    speak_into,
    threads,
)

CONNECT, STOP = 5.0, 10.0
"""Seconds to reach a scheduler, and to commit and end for trainings that are asked to stop."""


def begin(placement: Placement, count: int) -> Engine:
    """Return the engine for so many tasks.

    Raises:
        MissingExtraError: distributed is not installed.
        RecipeError: the address is not one.
        BiogradError: the scheduler cannot be reached, or its workers are no match.
    """
    try:
        import distributed
    except ImportError:
        raise MissingExtraError(
            "the engine 'dask' needs distributed: pip install 'biograd[dask]'"
        ) from None
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if placement.address is None:
            workers = min(placement.workers, count)
            client = _here(stack, distributed, workers)
            engine = Workers(client, workers, "this machine", placement.logs)
        else:
            client = _there(stack, distributed, placement.address)
            engine = Workers(client, count, f"the scheduler at {placement.address}")
        engine.ending = stack.pop_all()
    return engine


def _here(stack: ExitStack, distributed: Any, workers: int) -> Any:
    """Start workers on this machine, each with its share of the cores."""
    # Dask adds variables of its own; this lets go of them at the end
    stack.enter_context(environment(threads(workers)))
    try:
        with deaf_to(signal.SIGINT, signal.SIGTERM), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=None,  # a training may need more than its share
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={"allowed_failures": 0},  # tries are counted here
            )
            stack.callback(_suppressed, cluster.close, timeout=STOP)
            client = distributed.Client(cluster, set_as_default=False)
            stack.callback(_suppressed, client.close)
    except Exception as error:  # ports, memory, processes
        raise BiogradError(f"Dask's workers could not be started: {line(error)}") from error
    return client


def _there(stack: ExitStack, distributed: Any, address: str) -> Any:
    """Reach a scheduler, and see that its workers have the same biograd."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other versions, which may well do
            client = _client(distributed)(address, timeout=CONNECT, set_as_default=False)
    except ValueError as error:
        raise RecipeError(f"address {address!r}: {line(error)}") from None
    except Exception as error:
        raise BiogradError(f"no Dask scheduler answers at {address}: {line(error)}") from None
    stack.callback(_suppressed, client.close)
    try:
        versions = client.run(_version, on_error="return")
    except Exception as error:
        raise BiogradError(f"the Dask workers of {address} do not answer: {line(error)}") from None
    for worker, version in versions.items():
        if isinstance(version, BaseException):
            text = f"{type(version).__name__}: {line(version)}"
            raise BiogradError(f"the Dask worker {worker} cannot load biograd: {text}")
        if version != __version__:
            raise BiogradError(
                f"the Dask worker {worker} has biograd {version}, and here is {__version__}: "
                "install the same"
            )
    return client


def _client(distributed: Any) -> Any:
    """Return a kind of client that ends itself if it cannot start, and not as the program ends."""

    class Client(distributed.Client):
        def start(self, **arguments: Any) -> None:
            try:
                # a server of another kind may accept the connection and never answer
                super().start(callback_timeout=CONNECT + 1, **arguments)
            except BaseException:
                _suppressed(self.close, timeout=1)
                raise

    return Client


def _version() -> str:
    return __version__


def _suppressed(function: Callable[..., object], **arguments: Any) -> None:
    """Call a function that ends something, whether or not it is there any more."""
    with contextlib.suppress(Exception):
        function(**arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Dask's logs go nowhere: what matters of them is told in a line."""
    known = [
        name
        for name in logging.root.manager.loggerDict
        if name.startswith(("distributed", "tornado"))
    ]
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio", *known)]
    kept = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers, logger.propagate = handlers, propagate


class Workers:
    """An engine: workers of Dask.

    Args:
        client: of the scheduler.
        capacity: tasks that are handed to it at a time.
        name: of the cluster.
        logs: folder for what the workers say; None: that is theirs.
    """

    def __init__(self, client: Any, capacity: int, name: str, logs: Path | None = None) -> None:
        self.client, self.capacity, self.name, self.logs = client, capacity, name, logs
        self.study = uuid.uuid4().hex
        self.ending = ExitStack()
        """What ends the cluster."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Hand the jobs to the scheduler."""
        for job in jobs:
            try:
                if self.client.status != "running":
                    raise ConnectionError("the connection was lost")
                job.handle = self.client.submit(
                    _work,
                    self.study,
                    job.task.function,
                    job.task.arguments,
                    self._log(job),
                    key=f"biograd-{uuid.uuid4().hex}",
                    pure=False,
                    retries=0,
                )
            except Exception as error:
                job.answer = Answer(False, f"Dask, {self.name}: {line(error)}")

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Answer]]:
        """Return the jobs that have ended, or wait a little."""
        looked = [(job, self._answer(job.handle)) for job in jobs if job.handle.done()]
        found = [
            (job, pointed(answer, self._log(job))) for job, answer in looked if answer is not None
        ]
        if not found:
            time.sleep(0.1)
        return found

    def _answer(self, future: Any) -> Answer | None:
        """Return how a job went; None if its worker died before it told."""
        from distributed import KilledWorker

        if future.status == "finished":
            try:
                return Answer(*future.result(timeout=30))
            except Exception:  # it will be done again
                return None
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                return Answer(True, "the Dask worker that ran it died", logged=True)
            return Answer(
                isinstance(error, OSError),
                f"its Dask worker: {type(error).__name__}: {line(error)}",
            )
        return Answer(True, f"Dask, {self.name}: the connection was lost")

    def close(self, jobs: Sequence[Job]) -> None:
        """Ask the running trainings to stop, let them commit, and end client and cluster."""
        with self.ending, contextlib.suppress(Exception):
            futures = [job.handle for job in jobs if job.handle is not None]
            until = time.monotonic() + STOP
            if futures and self.client.status == "running":
                self.client.cancel(futures, force=True)
                while any(self.client.run(_stop, self.study).values()):
                    if time.monotonic() > until:
                        break
                    time.sleep(0.1)
        for job in jobs:
            pointed(Answer(False, ""), self._log(job))

    def _log(self, job: Job) -> Path | None:
        return None if self.logs is None else log_of(job.task.name, self.logs)


# In the process of a worker ---------------------------------------------------------------------

_alone = threading.Lock()
_at_work: dict[int, str] = {}
"""Thread that does a task, to the study that it belongs to."""


def _work(
    study: str, function: Callable[..., object], arguments: tuple[Any, ...], log: Path | None
) -> Answer:
    """Do a task in a thread of a worker; a process does one at a time, for its state is one."""
    with _alone:
        if log is not None:
            speak_into(log)
        thread = threading.get_ident()
        _at_work[thread] = study
        try:
            return attempt(function, arguments)
        except BaseException as error:  # must not end the worker
            return Answer(True, f"it ended with {type(error).__name__}: {line(error)}", logged=True)
        finally:
            del _at_work[thread]


def _stop(study: str) -> bool:
    """Ask the trainings of a study to stop; return whether there are tasks of it."""
    recording = sys.modules.get("biograd.recording")  # else nobody trains
    mine = [thread for thread, owner in list(_at_work.items()) if owner == study]
    for thread in mine:
        if recording is not None:
            recording.ask_to_stop(thread)
    return bool(mine)
