"""A dataset: up to three sources and the task that their targets set."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

import torch
from torch import Tensor

from biograd.data.choosing import by_turns
from biograd.data.digests import combined, update
from biograd.data.rows.arrays import Arrays
from biograd.data.source import Batch, Source, batches, streams
from biograd.environments import Environment
from biograd.errors import DataError
from biograd.tasks import Task

Evaluated = Literal["validation", "test"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset ready for training.

    Attributes:
        task: what the outputs are to be.
        validation: rows that training is judged on and settings are chosen by; None: there are
            none.
        test: rows that nothing is chosen by; None: there are none, or they are not to be looked at.
        digest: SHA-256 by which the data are known again; "": they do not repeat.
        covers: of what the digest is, if not of everything.
        notes: what is to be said of them, a sentence each.
        environment: gives observations and rewards; the rows are seeds of episodes.
    """

    name: str
    task: Task
    train: Source
    validation: Source | None = None
    test: Source | None = None
    digest: str = ""
    notes: tuple[str, ...] = ()
    task_name: str = ""
    covers: str = ""
    environment: Environment | None = None

    @property
    def evaluated_on(self) -> Evaluated:
        """What training looks at after every epoch; the test rows only if nothing else is there."""
        return "test" if self.validation is None else "validation"

    @property
    def evaluated(self) -> Source:
        """The source that training looks at.

        Raises:
            DataError: there is neither validation nor test.
        """
        found = self.test if self.validation is None else self.validation
        if found is None:
            raise DataError(f"{self.name}: no rows to evaluate on: give a validation or test split")
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, or of one step of it; in an environment of an observation."""
        if self.environment is not None:
            return tuple(self.environment.observation)
        return self.train.shape

    @property
    def steps(self) -> int:
        """Steps of the longest trial."""
        return max(self.train.steps, self.evaluated.steps)

    def open_test(self) -> Source | None:
        """Return the test rows, looked at for the first time where validation rows are there.

        Raises:
            DataError: see ``validate``.
        """
        if self.test is not None and self.validation is not None:
            validate(self.test, self.task, self.train.shape, f"{self.name}: test split")
        return self.test

    def shown(self, source: Source, count: int, seed: int = 0) -> Batch:
        """Return the examples of ``probes``; of a stream the first ones."""
        if streams(source):
            return next(batches(source, min(count, len(source)), None))
        return source.take(self.probes(source, count, seed))

    def probes(self, source: Source, count: int, seed: int = 0) -> Tensor:
        """Return ``count`` rows of a source: the task's strata take turns, else drawn by seed."""
        strata = None if source.targets is None else self.task.strata(source.targets)
        return by_turns(strata, len(source), count, seed)


def validate(source: Source, task: Task, shape: tuple[int, ...], where: str) -> None:
    """Refuse a source of other inputs than ``shape``, or whose targets the task refuses.

    Inputs that are in memory are looked at here, others when they are read.
    """
    if not len(source) or (isinstance(source, Arrays) and not len(source.inputs)):
        raise DataError(f"{where} holds no rows")
    if tuple(source.shape) != tuple(shape):
        found, due = list(source.shape), list(shape)
        raise DataError(f"{where}: inputs have shape {found}, the recipe says {due}")
    if isinstance(source, Arrays):
        if len(source.inputs) != len(source.targets):
            counts = f"{len(source.inputs)} inputs, {len(source.targets)} labels"
            raise DataError(f"{where} holds {counts}")
        finite(source.inputs, where)
    if source.targets is not None:
        task.check(source.targets, where)


def finite(inputs: Tensor, where: str, rows: Tensor | None = None) -> None:
    """Refuse inputs that are NaN or infinite; ``rows`` are their numbers."""
    if not inputs.is_floating_point():
        raise DataError(f"{where}: inputs must be floating-point numbers, not {inputs.dtype}")
    good = torch.isfinite(inputs).flatten(1).all(1)
    if not good.all():
        place = int((~good).nonzero()[0])
        row = place if rows is None else int(rows[place])
        raise DataError(f"{where}, row {row}: an input is NaN or infinite")


def digest(*sources: Source) -> str:
    """Return the SHA-256 by which sources are known: of the values themselves if in memory."""
    if not all(isinstance(source, Arrays) for source in sources):
        return combined(*[source.digest for source in sources])
    total = hashlib.sha256()
    for source in sources:
        for values in source.all():  # type: ignore[attr-defined]
            update(total, values)
    return total.hexdigest()
