"""Trainings on the workers of a Dask cluster: of this machine, or one that is reached by address.

A worker does each training in a process of its own, so that a training that is killed, or crashes,
does not take the worker and its other work along, and one that should stop can be asked to.
Whoever has Slurm jobs or containers as Dask workers starts them and gives the address; they see
the same folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from biograd import __version__
from biograd.errors import BiogradError, MissingExtraError, RecipeError
from biograd.placement.allotment import cores, shared, threads
from biograd.placement.jobs import (
    Executor,
    Job,
    Outcome,
    Work,
    environment,
    line,
)
from biograd.placement.processes import Processes
from biograd.placement.slurm import Placement

CONNECT = 5.0
"""Seconds to reach a scheduler."""
STOP = 15.0
"""Seconds to end for trainings that are asked to stop: longer than their workers let them."""


def begin(placement: Placement, count: int) -> Executor:
    """Return the executor for so much work.

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
            workers = min(placement.workers or cores(), count)
            client = _here(stack, distributed, workers)
            executor = Workers(client, workers, "this machine", placement, {})
        else:
            client = _there(stack, distributed, placement.address)
            name = f"the scheduler at {placement.address}"
            executor = Workers(client, count, name, placement, _crowd(client))
        executor.ending = stack.pop_all()
    return executor


def _here(stack: ExitStack, distributed: Any, workers: int) -> Any:
    """Start workers in this process, each with its share of the cores."""
    stack.enter_context(environment(threads(workers)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,  # each training has one anyway
                dashboard_address=None,
                memory_limit=None,
                silence_logs=logging.CRITICAL,
            )
            stack.callback(_suppressed, cluster.close)
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


def _crowd(client: Any) -> dict[str, int]:
    """Return how many trainings at a time the workers of every machine do, by its address."""
    found: dict[str, int] = {}
    for worker in client.scheduler_info()["workers"].values():
        found[worker["host"]] = found.get(worker["host"], 0) + int(worker["nthreads"])
    return found


def _client(distributed: Any) -> Any:
    """Return a kind of client that ends itself if it cannot start, and not as the program ends."""

    def start(client: Any, **arguments: Any) -> None:
        try:
            # a server of another kind may accept the connection and never answer
            distributed.Client.start(client, callback_timeout=CONNECT + 1, **arguments)
        except BaseException:
            _suppressed(client.close, timeout=1)
            raise

    return type("Client", (distributed.Client,), {"start": start})


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
    """An executor: workers of Dask.

    Args:
        client: of the scheduler.
        capacity: jobs that are handed to it at a time.
        name: of the cluster.
        placement: of the trainings.
        crowd: trainings at a time on every machine, which share its cores.
    """

    def __init__(
        self, client: Any, capacity: int, name: str, placement: Placement, crowd: Mapping[str, int]
    ) -> None:
        self.client, self.name = client, name
        self.capacity = self.at_once = capacity
        self.placement, self.crowd = placement, crowd
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
                    job.work,
                    dataclasses.replace(self.placement, folder=self.placement.folder.absolute()),
                    self.crowd,
                    Path.cwd(),
                    key=f"biograd-{uuid.uuid4().hex}",
                    pure=False,
                    retries=0,
                )
            except Exception as error:
                job.answer = Outcome(False, f"Dask, {self.name}: {line(error)}")

    def ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
        """Return the jobs that have ended, or wait a little."""
        found = [(job, self._answer(job.handle)) for job in jobs if job.handle.done()]
        if not found:
            time.sleep(0.1)
        return found

    def _answer(self, future: Any) -> Outcome:
        """Return how a job went.

        Nothing is fetched from the worker, which may have died meanwhile.
        """
        from distributed import KilledWorker

        if future.status == "finished":
            return Outcome(False, "")
        if future.status != "error":
            return Outcome(True, f"Dask, {self.name}: the connection was lost")
        error = future.exception()
        if isinstance(error, _Failed):
            return Outcome(*error.args)
        if isinstance(error, KilledWorker):
            return Outcome(True, "the Dask worker that ran it died")
        text = f"its Dask worker: {type(error).__name__}: {line(error)}"
        return Outcome(isinstance(error, OSError), text)

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


# In a worker --------------------------------------------------------------------------------------

_at_work: list[str] = []
"""The study of each work that is under way here."""
_stopping: set[str] = set()


class _Failed(Exception):
    """An answer that is not a success: the scheduler keeps errors, but results only the worker."""


def _work(
    study: str, work: Work, placement: Placement, crowd: Mapping[str, int], folder: Path
) -> None:
    """Do work in a process of its own, which runs in ``folder``.

    Raises:
        _Failed: it was not done.
    """
    from distributed import get_worker
    from distributed.comm.addressing import get_address_host

    worker = get_worker()
    processes = Processes(
        worker.state.nthreads,
        shared(placement.device),
        placement.logs,
        folder,
        crowd.get(get_address_host(worker.address)),
    )
    job = Job(work)
    _at_work.append(study)
    try:
        processes.start([job])
        ended = [] if job.answer is None else [(job, job.answer)]
        while not ended and study not in _stopping:
            ended = processes.ended([job])
        if not ended:
            processes.close([job])
    finally:
        _at_work.remove(study)
    answer = ended[0][1] if ended else Outcome(True, "it was asked to stop")
    if answer.reason:
        raise _Failed(*answer)


def _stop(study: str) -> bool:
    """Ask the trainings of a study to stop; return whether there are any."""
    _stopping.add(study)
    return study in _at_work
