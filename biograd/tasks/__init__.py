"""Tasks: what targets are, what is minimised and what is reported.

To add one: write a class in a file of its own, and name it in ``TASKS``, or in the entry points
``biograd.tasks`` of another package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from biograd.checking import Count, NotNegative, construct
from biograd.errors import CapabilityError, DataError, RecipeError, nearest
from biograd.registry import Registry
from biograd.tasks.classes import LOSSES, Classes, check_no_vectors
from biograd.tasks.decisions import Decisions
from biograd.tasks.heads import Head, Heads
from biograd.tasks.multi_label import MultiLabel
from biograd.tasks.own_loss import NAMES, OwnLoss, of_torch
from biograd.tasks.rates import Firing, Rates
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
    "Decisions",
    "Firing",
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
    "check_loss",
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
        "firing": Firing,
        "reward": Reward,
        "decisions": Decisions,
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
    if not given.is_floating_point() and given.dim() == 2 and given.shape[1] == 1:
        raise DataError(
            f"{where}: a column of whole numbers, {list(given.shape)}: give targets[:, 0] for "
            "classes, or real numbers for a regression"
        )
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


def learned(
    task: Task,
    loss: str | None,
    own: str | None = None,
    function: Callable[..., Any] | None = None,
) -> Task:
    """Return the task with the loss that a model's recipe or a call gives; else it has its own.

    Args:
        loss: one of the task's, or of torch's, by name; None: the recipe gives none.
        own: the loss that the settings of the task name.
        function: a loss of the user's own, which ``loss`` then only names.

    Raises:
        RecipeError: the task cannot have it, or has been given another.
    """
    if loss is None:
        return task
    if own is not None and (loss != own or function is not None):
        raise RecipeError(f"training.loss = {loss!r} beside task.loss = {own!r}: give one of them")
    if isinstance(task, Weighted):
        return dataclasses.replace(task, task=learned(task.task, loss, own, function))
    if function is None and loss in own_losses(type(task)):
        return dataclasses.replace(task, loss=loss)  # type: ignore[call-arg]
    known = {*own_losses(type(task)), *NAMES}
    if loss in LOSSES:
        raise RecipeError(
            f"training.loss = {loss!r} is for classes: {type(task).__name__} has its own: leave it "
            f"out, or take another ({', '.join(sorted(known))})"
        )
    if isinstance(task, Heads):
        raise RecipeError(
            f"training.loss = {loss!r}: heads have a loss each, task.heads.NAME.loss: leave it out"
        )
    if isinstance(task, Reward | Decisions):
        raise RecipeError(f"training.loss = {loss!r}: a reward is its own loss: leave it out")
    if getattr(task, "class_weights", ()):
        raise RecipeError(f"training.loss = {loss!r}: task.class_weights has no effect beside it")
    if function is None and loss not in NAMES:
        raise RecipeError(f"training.loss = {loss!r}: {nearest(loss, known)}")
    return OwnLoss(loss=_taken_as(function) if function else of_torch(loss, task), task=task)


def _taken_as(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a user's loss; one that takes the steps first is given them so."""
    return StepsFirst(function) if is_steps_first(function) else function


def own_losses(task: type[Task]) -> tuple[str, ...]:
    """Return the losses that a task has by name."""
    if not any(field.name == "loss" for field in dataclasses.fields(task)):
        return ()
    return get_args(get_type_hints(task)["loss"]) if task is not OwnLoss else ()


def check_loss(loss: str) -> None:
    """Refuse a name that is no loss of any task, nor of torch.

    Raises:
        RecipeError: with the nearest one.
    """
    known = {name for task in TASKS.own.values() for name in own_losses(task)} | {*NAMES}
    others = {name for name in TASKS if name not in TASKS.own}
    if loss not in known and not others:
        raise RecipeError(f"training.loss = {loss!r}: {nearest(loss, known)}")


def of_loss(loss: str | Callable[..., Any]) -> Task:
    """Return the task of a bare loss: a name of those of classes, or a user's function.

    Raises:
        CapabilityError: no such loss.
    """
    if not isinstance(loss, str):
        return OwnLoss(loss=_taken_as(loss))
    if loss not in LOSSES:
        raise CapabilityError(f"no loss {loss!r}: {nearest(loss, LOSSES)}")
    return Classes(0, loss=loss)  # type: ignore[arg-type]
