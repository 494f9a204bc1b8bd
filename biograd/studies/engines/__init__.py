"""Engines place the trainings of a study on processes: of this machine, of Slurm, of Dask.

An engine only places processes.  What was done is in the folder of the study, so any engine can go
on with what another began.  To add one: a file with ``begin(placement, count) -> Engine``, and a
line in ``ENGINES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from biograd.errors import RecipeError, nearest
from biograd.studies.engines.placement import Placement
from biograd.studies.engines.sbatch import sbatch
from biograd.studies.tasks import Event, Failure, Task, drive

__all__ = ["ENGINES", "Placement", "place", "sbatch"]


class Entry(NamedTuple):
    """Where an engine lives, and which fields of a placement only some engines take."""

    module: str
    takes: tuple[str, ...] = ()


ENGINES = {
    "local": Entry("biograd.studies.engines.local"),
    "submitit": Entry("biograd.studies.engines.submitit", ("options",)),
    "dask": Entry("biograd.studies.engines.dask", ("address",)),
}


def place(
    tasks: Sequence[Task], placement: Placement, watch: Callable[[Event], None]
) -> list[Failure]:
    """Run all tasks where the placement says and return those that failed, each with one line.

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
    if placement.workers < 1:
        raise RecipeError(f"workers = {placement.workers}: must be at least 1")
    if not tasks:
        return []
    engine = importlib.import_module(entry.module).begin(placement, len(tasks))
    return drive(tasks, engine, watch)
