"""Tasks: what targets are, what is minimised and what is reported.

To add one: write a class in a file of its own, and name it in ``TASKS``, or in the entry points
``biograd.tasks`` of another package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from biograd.checking import Count, NotNegative, construct
from biograd.errors import CapabilityError, DataError, RecipeError, nearest
from biograd.registry import Registry
from biograd.tasks.classes import LOSSES, Classes, check_no_vectors
from biograd.tasks.heads import Head, Heads
from biograd.tasks.multi_label import MultiLabel
from biograd.tasks.own_loss import OwnLoss
from biograd.tasks.rates import Rates
from biograd.tasks.regression import Regression, TimeSeries
from biograd.tasks.reward import Reward
from biograd.tasks.spike_train import SpikeTrain
from biograd.tasks.steps_first import StepsFirst, is_steps_first
from biograd.tasks.task import MISSING, Metrics, Task, Totals, added, flat, folded, summed
from biograd.tasks.weighted import Weighted

__all__ = [
    "MISSING",
    "TASKS",
    "Classes",
    "Head",
    "Heads",
    "Metrics",
    "MultiLabel",
    "OwnLoss",
    "Rates",
    "Regression",
    "Reward",
    "SpikeTrain",
    "Task",
    "TimeSeries",
    "Totals",
    "Weighted",
    "added",
    "flat",
    "folded",
    "infer",
    "learned",
    "make",
    "of_loss",
    "suited",
    "summed",
]

TASKS: Registry[type[Task]] = Registry(
    "biograd.tasks",
    {
        "classes": Classes,
        "multi_label": MultiLabel,
        "regression": Regression,
        "time_series": TimeSeries,
        "spike_train": SpikeTrain,
        "rates": Rates,
        "reward": Reward,
        "heads": Heads,
    },
)


def make(name: str, outputs: int, settings: Mapping[str, Any], where: object) -> Task:
    """Return the task ``name`` with its own ``settings``, checked like every recipe.

    ``heads`` takes a table by name, each of a task: ``name`` (of the task), ``outputs``, ``weight``
    and the task's own settings.

    Args:
        outputs: ``K``.
        where: the file or option that the settings came from.

    Raises:
        RecipeError: no such task, or a setting that it does not have.

    >>> make("regression", 2, {"loss": "huber"}, "here").outputs
    2
    """
    kind = TASKS.find(name, f"{where}: task.name")
    if kind is Heads:
        tables = settings.get("heads", {})
        if not isinstance(tables, Mapping):
            raise RecipeError(f"{where}: task.heads: a table for each head, by its name")
        heads = tuple(_head(str(head), table, where) for head, table in tables.items())
        return Heads(outputs, heads=heads)
    return construct(kind, {"outputs": outputs, **settings}, where, "task")


@dataclasses.dataclass(frozen=True)
class _HeadTable:
    name: str
    outputs: Count
    weight: NotNegative = 1.0


def _head(name: str, table: Any, where: object) -> Head:
    key = f"{where}: task.heads.{name}"
    if not isinstance(table, Mapping):
        raise RecipeError(f"{key}: must be a table")
    fields = [field.name for field in dataclasses.fields(_HeadTable)]
    own = construct(_HeadTable, {k: v for k, v in table.items() if k in fields}, key)
    rest = {k: v for k, v in table.items() if k not in fields}
    return Head(name, make(own.name, own.outputs, rest, key), own.weight)


def infer(targets: Any, where: str = "targets") -> str:
    """Return the name of the task that targets ask for, if there is no other.

    Whole numbers are classes, real numbers ``[N]`` or ``[N, K]`` regression, ``[N, T, K]`` a time
    series.

    Raises:
        DataError: they could be of several tasks: the message asks for ``task``.
    """
    if isinstance(targets, Mapping):
        raise DataError(f"{where}: targets by name are of several tasks: give task = 'heads'")
    given = torch.as_tensor(targets)
    check_no_vectors(given, where)
    if not given.is_floating_point() and given.dtype != torch.bool and given.dim() in (1, 2):
        if _classes(given):
            return "classes"
        raise DataError(
            f"{where}: whole numbers that may be counts: give task = 'classes', or make them real "
            "numbers for a regression"
        )
    binary = bool(((given == 0) | (given == 1) | given.isnan()).all())
    if given.is_floating_point() and given.dim() in (1, 2, 3) and not binary:
        return "time_series" if given.dim() == 3 else "regression"
    found = f"{given.dtype} {list(given.shape)}".removeprefix("torch.")
    raise DataError(f"{where}: {found} may be of several tasks: give one ({', '.join(TASKS)})")


def _classes(targets: Tensor) -> bool:
    values = targets[targets != MISSING].unique()
    if not len(values) or int(values[0]) < 0:
        return False
    dense = int(values[-1]) + 1 <= 2 * len(values)
    return dense and (len(values) <= max(10, targets.numel() // 2))


def suited(
    targets: Any, name: str = "", settings: Mapping[str, Any] | None = None, where: str = "targets"
) -> Task:
    """Return a task that fits targets: outputs, and whether they change in time, are theirs.

    Args:
        name: of the task; "": the one that the targets ask for.
        settings: of the task; they win over what the targets tell.

    Raises:
        DataError, RecipeError: see ``infer`` and ``make``.

    >>> suited(torch.tensor([0.5, 1.5, 2.5]))
    Regression(outputs=1, timed=False, loss='squared_error', delta=1.0)
    """
    name = name or infer(targets, where)
    given = {**TASKS.find(name, f"{where}: task").fitting(targets), **(settings or {})}
    return make(name, int(given.pop("outputs", 0)), given, where)


def learned(task: Task, loss: str | None, own: str | None = None) -> Task:
    """Return the task with the loss that a model's recipe gives to classes; others have their own.

    Args:
        loss: None: the recipe gives none.
        own: the loss that the settings of the task name.

    Raises:
        RecipeError: the recipe asks for another loss than the task has.
    """
    if loss is not None and own is not None and loss != own:
        raise RecipeError(f"training.loss = {loss!r} beside task.loss = {own!r}: give one of them")
    if loss is not None and isinstance(task, Classes):
        return dataclasses.replace(task, loss=loss)  # type: ignore[arg-type]
    if loss is not None and loss != getattr(task, "loss", ""):
        raise RecipeError(
            f"training.loss = {loss!r} is for classes: {type(task).__name__} has its own: leave it "
            "out"
        )
    return task


def of_loss(loss: str | Callable[..., Any]) -> Task:
    """Return the task of a bare loss: a name of those of classes, or a user's function.

    Raises:
        CapabilityError: no such loss.
    """
    if not isinstance(loss, str):
        return OwnLoss(loss=StepsFirst(loss) if is_steps_first(loss) else loss)
    if loss not in LOSSES:
        raise CapabilityError(f"no loss {loss!r}: {nearest(loss, LOSSES)}")
    return Classes(0, loss=loss)  # type: ignore[arg-type]
