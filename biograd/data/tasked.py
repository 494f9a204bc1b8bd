"""Sources whose targets are those of a task: packed, checked, missing where a trial has ended."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from biograd.data.dataset import finite
from biograd.data.request import Parts
from biograd.data.rows.arrays import Arrays, missing
from biograd.data.rows.events import Events
from biograd.data.rows.stream import FIRST
from biograd.data.source import FIXED, Batch, Key, Source, many, streams
from biograd.errors import RecipeError
from biograd.recipes import DatasetRecipe
from biograd.tasks import MISSING, TASKS, Task, Weighted, infer, make

SHORTER = (
    "lengths: inputs are 0 behind them, and the readout takes all steps of a trial, those too: "
    "give targets in every step if it shall not"
)


def set_task(parts: Parts, recipe: DatasetRecipe, name: str) -> tuple[Task, str, tuple[str, ...]]:
    """Return the task of the recipe and its name, or the one that the targets ask for.

    With it comes what is to be said: what the targets were taken for, where nobody named it.

    Raises:
        DataError: the targets could be of several tasks.
        RecipeError: no such task, or a setting that it does not have.
    """
    train = parts.sources["train"]
    many = train.targets is None  # then the first ones tell
    first = train.take(torch.arange(min(len(train), FIRST if many else 1)))
    targets = first.targets if train.targets is None else train.targets
    settings: dict[str, Any] = dict(recipe.task)
    classes = recipe.classes or parts.classes
    known = settings.pop("name", "") or parts.task or ("classes" if classes else "")
    where = f"dataset {name}"
    kind = known or infer(targets, f"{where}: targets")
    made = TASKS.find(kind, f"{where}: task.name")
    given = {**made.fitting(targets), **settings}
    outputs = int(given.pop("outputs", 0))
    if made.whole:  # of a reward that depends on the reward
        outputs = classes or outputs
    if made.closed_loop is (parts.environment is None):
        raise RecipeError(
            f"{where}: task = {kind!r}: "
            + ("is that of an environment: the data are none" if made.closed_loop else
               "an environment has its own: decisions")
        )  # fmt: skip
    task = make(kind, outputs, in_environment(parts) | given, where)
    if first.weight is not None:
        task = Weighted(task=task)
    if recipe.classes and not made.whole:
        raise RecipeError(f"{where}: classes = {recipe.classes}: has no effect on task = {kind!r}")
    return task, kind, _taken(task, kind, targets, where, bool(known))


def in_environment(parts: Parts) -> dict[str, Any]:
    """Return the settings of a task that its environment tells."""
    if parts.environment is None:
        return {}
    solved = getattr(parts.environment, "solved", None)
    return {"continuous": parts.environment.continuous, "solved": solved}


def _taken(task: Task, kind: str, targets: Tensor, where: str, named: bool) -> tuple[str, ...]:
    """Return what is to be said of how targets are taken."""
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    what = f"{targets.dtype} {list(targets.shape)}".removeprefix("torch.")
    if not named:
        count = f"{task.outputs} of them" if task.whole else f"{task.outputs} outputs"
        return (f"{where}: targets {what} are taken for {kind}, {count}: task says otherwise",)
    if whole and kind in ("regression", "time_series"):
        return (f"{where}: targets {what}: whole numbers are taken as real ones by {kind}",)
    return ()


def tasked(source: Source, task: Task, where: str, steps: int = 0) -> Source:
    """Return a source whose targets are the task's.

    Args:
        steps: to which trials are padded; 0: not at all.
    """
    if isinstance(source, Arrays):
        targets = source.targets
        if source.lengths is not None and task.timed:
            targets = missing(targets, source.inputs, source.lengths)
        targets = packed(task, targets, source.weight, where)
        inputs, targets = lasting(source.inputs, targets, steps)
        return Arrays(inputs, targets, source.timed, source.lengths, origin=source.origin)
    return (TaskedStream if streams(source) else Tasked)(source, task, where, steps)


def shorter(source: Source, task: Task, where: str) -> tuple[str, ...]:
    """Return what is to be said of trials with an end of their own where the task has one value.

    Of rows that are not in memory the first are looked at; of what comes later, it is said when it
    comes.  Events are left out: they say themselves when they end.
    """
    if task.timed or not source.timed:
        return ()
    if isinstance(source, Arrays):
        ends = source.lengths is not None and bool((source.lengths < source.steps).any())
        return (f"{where}: {SHORTER}",) if ends else ()
    if not isinstance(source, Tasked) or isinstance(source.source, Events):
        return ()
    source.told = _ends(source.source.take(torch.arange(min(len(source), FIRST))))
    return (f"{where}: {SHORTER}",) if source.told else ()


def _ends(batch: Batch) -> bool:
    """Return whether trials end before the longest."""
    return batch.lengths is not None and bool((batch.lengths < batch.inputs.shape[1]).any())


def lasting(inputs: Tensor, targets: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return trials of at least ``steps``: inputs 0 and targets missing behind their end."""
    more = steps - inputs.shape[1] if steps else 0
    if more <= 0:
        return inputs, targets
    if targets.dim() > 1 and targets.shape[1] == inputs.shape[1]:
        absent = torch.nan if targets.is_floating_point() else MISSING
        targets = torch.cat([targets, targets.new_full(_of(targets, more), absent)], 1)
    return torch.cat([inputs, inputs.new_zeros(_of(inputs, more))], 1), targets


def _of(values: Tensor, steps: int) -> tuple[int, ...]:
    return (len(values), steps, *values.shape[2:])


def packed(task: Task, targets: Tensor, weight: Tensor | None, where: str) -> Tensor:
    """Return targets, with the weights of their rows, as the task takes them."""
    if isinstance(task, Weighted):
        weight = torch.ones(len(targets)) if weight is None else weight
        return task.pack((targets, weight), where)
    return task.pack(targets, where)


class Tasked:
    """A source that is not in memory: its batches are checked and packed when they are taken."""

    def __init__(self, source: Source, task: Task, where: str, steps: int = 0) -> None:
        self.source, self.task, self.where, self.least = source, task, where, steps
        self.shape, self.timed = source.shape, source.timed
        self.told = isinstance(source, Events)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def steps(self) -> int:
        """Most steps of a trial."""
        return max(self.source.steps, self.least)

    @property
    def digest(self) -> str:
        """Of the source."""
        return self.source.digest

    @cached_property
    def targets(self) -> Tensor | None:
        """Of all rows, as the task takes them; None: they cannot be known beforehand."""
        found, weight = self.source.targets, getattr(self.source, "weight", None)
        return None if found is None else packed(self.task, found, weight, self.where)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``."""
        return self._packed(self.source.take(index, key))

    def many(self, orders: Sequence[Tensor], key: Key) -> Iterator[Batch]:
        """Yield a batch for each index."""
        yield from map(self._packed, many(self.source, orders, key))

    def _packed(self, batch: Batch) -> Batch:
        finite(batch.inputs, self.where, batch.index)
        targets = batch.targets
        if batch.lengths is not None and self.task.timed:
            targets = missing(targets, batch.inputs, batch.lengths)
        elif not self.told and _ends(batch):
            self.told = True
            warnings.warn(f"{self.where}: {SHORTER}", stacklevel=2)
        targets = packed(self.task, targets, batch.weight, self.where)
        if self.source.targets is None:
            self.task.check(targets, self.where)
        inputs, targets = lasting(batch.inputs, targets, self.least)
        return dataclasses.replace(batch, inputs=inputs, targets=targets, weight=None)


class TaskedStream(Tasked):
    """The same of a stream."""

    def batches(self, size: int, key: Key, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        yield from map(self._packed, self.source.batches(size, key, skip))  # type: ignore[attr-defined]
