"""What the outputs of a network are to be: targets, a loss an example, metrics.

Shapes: ``B`` examples, ``T`` steps, ``K`` outputs.  A network owes ``[B, K]``, or ``[B, T, K]`` to
a task that is ``timed``.

A missing target is NaN, or ``MISSING`` for a class: so a mask travels in the targets and needs no
place of its own in plans, copies, ranks and hooks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from biograd.checking import Checked, Range
from biograd.errors import CapabilityError, DataError

MISSING = -100
"""A class that is not known; the value that torch's losses ignore."""
Metrics = dict[str, tuple[Tensor, ...]]
"""By name what is summed over rows, batches and ranks, each ``[B]`` or ``[B, ...]``; two of them
are a sum and a count, whose quotient is the metric."""
Totals = dict[str, list[list[float]]]
"""Metrics summed over rows."""


@dataclasses.dataclass(frozen=True)
class Task(Checked):
    """A question to a network.

    Attributes:
        outputs: ``K``, the number of outputs; 0: as many as the network has.
        timed: whether the network owes an output in every step, ``[B, T, K]``.
        headline: name of the metric by which runs are compared.
        better: ``"higher"`` or ``"lower"``: which values of it are better.
        differentiable: whether the losses have a graph; rules that need one refuse a task without.
        whole: whether targets are whole numbers (classes).
        closed_loop: whether the outputs act on an environment, which gives the next inputs.
        discount: factor by which a loss counts less with every step that it comes later.
    """

    outputs: Annotated[int, Range(0)]
    timed: bool = False

    headline: ClassVar[str] = "loss"
    better: ClassVar[str] = "lower"
    differentiable: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    closed_loop: ClassVar[bool] = False
    discount: ClassVar[float] = 1.0

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse targets that cannot be learned from, the whole split at once.

        Args:
            targets: ``[N, ...]``.
            where: opens the message: the data and their split.

        Raises:
            DataError: type, shape or a value; one line with the first row at fault.
        """
        raise NotImplementedError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        return self.stepwise(outputs, targets).sum(1)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the part of every step in the losses of a timed task, ``[B, T]``; they sum to it.

        Raises:
            NotImplementedError: the loss is not a sum over the steps.
        """
        raise NotImplementedError

    def by_step(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of the steps, ``[B, T]``, if the task has them; else ``losses``."""
        if not self.timed:
            return self.losses(outputs, targets)
        try:
            return self.stepwise(outputs, targets)
        except NotImplementedError:
            return self.losses(outputs, targets)

    def part(
        self, targets: Tensor, first: int, steps: int, trial: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return the targets of a part of the trials, and the factor ``[B]`` of its losses.

        The loss of a trial is the sum of its parts' losses, each by its factor.  None: a part has
        no loss of its own.

        Args:
            targets: of whole trials of ``trial`` steps, ``[B, T, ...]``.
            first: number of the part's first step, of ``steps``.
        """
        return None

    def alive(self, outputs: Tensor) -> Tensor:
        """Return whether each trial still went on in each step, ``[B, T]``, of a closed loop."""
        return torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return targets in the outputs' shape, for rules that use them in place of an error."""
        return vectors(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return what ``figures`` needs, by name; ``headline`` is one of the names, or "loss"."""
        return {}

    def each(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return what a run file keeps of every example that is learned from, each ``[B]``."""
        return {}

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the metrics from their totals: sum / count, NaN where nothing was counted."""
        return {name: ratio(sum(top), sum(low)) for name, (top, low) in totals.items()}

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return a group number a row, int64 ``[N]``; None: any row is like any other.

        Rows are held out and probed in the proportion of the groups.
        """
        return None

    @property
    def width(self) -> int:
        """The number of targets of an example, or of a step, when they are packed in a tensor."""
        return 1 if self.whole else self.outputs

    def pack(self, targets: Any, where: str) -> Tensor:
        """Return targets as they are given, an array for instance, as the tensor of the task.

        Raises:
            DataError: a mapping, for a task that has one kind of targets.
        """
        if isinstance(targets, Mapping):
            raise DataError(
                f"{where}: targets by name ({', '.join(map(str, targets))}), but the task has one "
                "kind: take the task 'heads'"
            )
        given = torch.as_tensor(targets)
        if self.whole:
            return given if given.is_floating_point() else given.long()
        return given if given.is_floating_point() else given.to(torch.get_default_dtype())

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return the settings that targets ``[N, ...]`` themselves tell: outputs, timed."""
        shape = torch.as_tensor(targets).shape
        found = {"outputs": int(shape[-1]) if len(shape) > 1 else 1}
        return found | ({"timed": True} if len(shape) > 2 else {})

    def check_outputs(self, outputs: Tensor) -> None:
        """Refuse a network that returns another shape than the task needs.

        Raises:
            CapabilityError: with both shapes.
        """
        if not self.outputs:
            return
        owed = f"[{'examples, steps' if self.timed else 'examples'}, {self.outputs}]"
        wrong = outputs.shape[-1] != self.outputs
        if wrong or outputs.dim() != 2 + self.timed:
            raise CapabilityError(
                f"the task {type(self).__name__} needs outputs {owed}, the network returns "
                f"{list(outputs.shape)}"
            )


class ByFunction(Task):
    """A task whose losses a function gives: ``[B]``, or ``[B, T]`` of outputs in time, summed."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        found = self.by_step(outputs, targets)
        return found if found.dim() == 1 else found.sum(1)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every step, ``[B, T]``, if the function gives it."""
        found = self.by_step(outputs, targets)
        if found.dim() == 1:
            raise NotImplementedError
        return found


def summed(metrics: Metrics) -> Totals:
    """Return metrics of rows summed over the rows, in double precision."""
    return {
        name: [part.double().flatten(1).sum(0).tolist() if part.dim() > 1 else [float(part.sum())]
               for part in parts]
        for name, parts in metrics.items()
    }  # fmt: skip


def added(one: Totals, other: Totals) -> Totals:
    """Return the totals of both; of nothing and something the latter."""
    if not one:
        return other
    return {
        name: [
            [a + b for a, b in zip(*pair, strict=True)]
            for pair in zip(parts, other[name], strict=True)
        ]
        for name, parts in one.items()
    }


def flat(totals: Totals) -> list[float]:
    """Return all numbers of totals, one after the other."""
    return [value for parts in totals.values() for part in parts for value in part]


def folded(values: Sequence[float], like: Totals) -> Totals:
    """Return totals of the names and sizes of others from the numbers that ``flat`` gave."""
    rest = iter(values)
    return {name: [[next(rest) for _ in part] for part in parts] for name, parts in like.items()}


def ratio(top: float, low: float) -> float:
    """Return the quotient, NaN by zero."""
    return top / low if low else float("nan")


def aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets in the outputs' shape: ``[B]`` stands for ``[B, 1]``; also in time.

    Raises:
        DataError: they are of another shape.
    """
    if targets.dim() == outputs.dim() - 1 and outputs.shape[-1] == 1:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise DataError(f"targets {list(targets.shape)} do not fit outputs {list(outputs.shape)}")
    return targets


def vectors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets in the outputs' shape if they can be: classes as one-hot vectors.

    Numbers stay as they are; what is missing is 0.
    """
    if targets.is_floating_point() or outputs.shape[-1] == 1:
        whole = targets.numel() == outputs.numel()
        return (targets.view_as(outputs) if whole else targets).to(outputs).nan_to_num()
    if targets.shape == outputs.shape or targets.shape not in (
        outputs.shape[:1], outputs.shape[:-1]
    ):  # fmt: skip
        return targets.to(outputs)
    if targets.dim() < outputs.dim() - 1:
        targets = targets[:, None].expand(outputs.shape[:-1])
    marks = functional.one_hot(targets.clamp_min(0), outputs.shape[-1])
    return (marks * (targets >= 0).unsqueeze(-1)).to(outputs)


def natural(task: Task, packed: Tensor) -> Tensor:
    """Return a task's targets of those packed, ``[B, (T,) width]``: without the axis of one."""
    own = packed.squeeze(-1) if task.width == 1 else packed
    return own.long() if task.whole else own


def known(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets with the outputs in place of missing ones, and a mask of what is known.

    In place of, and not times zero behind the difference: ``0 * NaN`` is NaN in a gradient.
    """
    targets = aligned(outputs, targets).to(outputs.dtype)
    mask = ~targets.isnan()
    return torch.where(mask, targets, outputs.detach()), mask


def per_example(
    function: Callable[[Tensor, Tensor], Tensor], what: str, outputs: Tensor, targets: Tensor
) -> Tensor:
    """Return what a user's function finds, ``[B]``, or ``[B, T]`` of outputs in time.

    Raises:
        CapabilityError: another shape.
    """
    found = function(outputs, targets)
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    timed = outputs.dim() > 2 and got == tuple(outputs.shape[:2])
    if got != tuple(outputs.shape[:1]) and not timed:
        raise CapabilityError(
            f"the {what} must return one value per example, {tuple(outputs.shape[:1])}, not {got}: "
            "use reduction='none'"
        )
    return found


def counted(mask: Tensor, first: int, steps: int) -> Tensor:
    """Return the share of a part in the steps ``[B, T]`` that have a target, ``[B]``."""
    return mask[:, first : first + steps].sum(1).double() / mask.sum(1).clamp_min(1)


def shares(found: Tensor, mask: Tensor) -> Tensor:
    """Return losses ``[B, T]`` divided by the number of steps that have a target, ``[B, T]``."""
    return found / mask.sum(1, keepdim=True).clamp_min(1)


def refuse(wrong: Tensor, where: str, message: str) -> None:
    """Refuse the first row where ``wrong`` ``[N, ...]`` holds.

    Raises:
        DataError: ``where, row n: message``.
    """
    if wrong.any():
        row = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
        raise DataError(f"{where}, row {row}: {message}")


def check_numbers(task: Task, targets: Tensor, where: str) -> None:
    """Refuse targets that are not numbers ``[N, (T,) K]``, or ``[N, (T)]`` of one output.

    Raises:
        DataError: type, shape, infinite values, or no target at all.
    """
    if not targets.is_floating_point():
        raise DataError(f"{where}: targets are {targets.dtype}, the task needs real numbers")
    axes = 2 + task.timed
    if targets.dim() == axes - 1 and task.outputs in (0, 1):
        targets = targets.unsqueeze(-1)
    if targets.dim() != axes or task.outputs not in (0, targets.shape[-1]):
        owed = f"[{len(targets)}, {'steps, ' * task.timed}{task.outputs or 'outputs'}]"
        raise DataError(f"{where}: targets are {list(targets.shape)}, the task needs {owed}")
    refuse(targets.isinf(), where, "a target is infinite")
    check_some(~targets.isnan(), where)


def check_some(mask: Tensor, where: str) -> None:
    """Refuse a row without any target.

    Raises:
        DataError: with its number.
    """
    refuse(~mask.reshape(len(mask), -1).any(1), where, "every target is missing")
