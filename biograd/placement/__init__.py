"""Placement: work on the processes of this machine, of Slurm, of Dask.

::

    place(work, Placement("dask", workers=8), watch) -> what failed

An executor only places processes.  What was done is in files, so any of them can go on with what
another began.  To add one: a file with ``begin(placement, count) -> Executor``, and a line in
``ENGINES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from biograd.errors import RecipeError, nearest
from biograd.placement.jobs import Event, Failure, Work, drive
from biograd.placement.sbatch import sbatch
from biograd.placement.slurm import Placement

__all__ = ["ENGINES", "Event", "Failure", "Placement", "Work", "place", "sbatch"]


class ExecutorEntry(NamedTuple):
    """Where an executor lives, and which fields of a placement only some engines take."""

    module: str
    takes: tuple[str, ...] = ()


ENGINES = {
    "local": ExecutorEntry("biograd.placement.processes"),
    "submitit": ExecutorEntry("biograd.placement.submitit", ("options",)),
    "dask": ExecutorEntry("biograd.placement.dask", ("address",)),
}


def place(
    work: Sequence[Work], placement: Placement, watch: Callable[[Event], None]
) -> list[Failure]:
    """Do all work where the placement says and return those that failed, each with one line.

    What the machine fails is tried again after a pause; an error of the recipe is not; neither
    stops the others.

    Args:
        watch: is told of every start and every end.

    Raises:
        RecipeError: the placement is not valid.
        MissingExtraError: the package of the engine is not installed.
        BiogradError: the engine cannot be reached.
    """
    entry = ENGINES.get(placement.engine)
    if entry is None:
        raise RecipeError(f"engine {placement.engine!r}: {nearest(placement.engine, ENGINES)}")
    for field in ("options", "address"):
        if getattr(placement, field) and field not in entry.takes:
            takers = [name for name, other in ENGINES.items() if field in other.takes]
            raise RecipeError(
                f"engine {placement.engine!r} takes no {field}; only {', '.join(takers)} does"
            )
    if placement.workers is not None and placement.workers < 1:
        raise RecipeError(f"workers = {placement.workers}: must be at least 1")
    if not work:
        return []
    executor = importlib.import_module(entry.module).begin(placement, len(work))
    return drive(work, executor, watch)
