"""Several tasks side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from biograd.checking import Checked, NotNegative, Range
from biograd.errors import DataError, RecipeError, nearest
from biograd.tasks.task import Metrics, Task, Totals, natural


@dataclasses.dataclass(frozen=True)
class Head(Checked):
    """One task of several: its part of the outputs, and the factor on its loss."""

    name: str
    task: Task
    weight: NotNegative = 1.0


@dataclasses.dataclass(frozen=True)
class Heads(Task):
    """Several tasks: each has its part of the outputs' and of the targets' last axis.

    So outputs and targets stay one tensor each: copies, slots, broadcast matrices and files need
    no second kind.  The loss is the weighted sum.  Metrics are called ``head.metric``.

    Args:
        heads: in the order of the outputs.
    """

    outputs: Annotated[int, Range(0)] = 0
    heads: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({head.name for head in self.heads}) < len(self.heads) or not self.heads:
            raise RecipeError("task: heads: give at least one, each with a name of its own")
        if len({head.task.timed for head in self.heads}) > 1:
            raise RecipeError("task: heads: some have targets in time, others not: set timed alike")
        count = sum(head.task.outputs for head in self.heads)
        if self.outputs not in (0, count):
            raise RecipeError(f"task: outputs = {self.outputs}: the heads have {count} together")
        object.__setattr__(self, "outputs", count)
        object.__setattr__(self, "timed", self.heads[0].task.timed)
        object.__setattr__(self, "differentiable", all(h.task.differentiable for h in self.heads))

    @property
    def width(self) -> int:
        """The number of targets of an example, or of a step."""
        return sum(head.task.width for head in self.heads)

    def parts(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[Head, Tensor, Tensor]]:
        """Yield each head with its outputs and its targets."""
        first = 0
        for head, given in self.split(targets):
            last = first + head.task.outputs
            yield head, outputs[..., first:last], given
            first = last

    def split(self, targets: Tensor) -> Iterator[tuple[Head, Tensor]]:
        """Yield each head with its targets, in its own type and shape."""
        first = 0
        for head in self.heads:
            given = targets[..., first : first + head.task.width]
            first += head.task.width
            yield head, natural(head.task, given)

    def pack(self, targets: Any, where: str) -> Tensor:
        """Return a mapping of targets as one tensor in double precision, ``[N, (T,) width]``.

        Raises:
            DataError: a head without targets, targets without a head, or shapes that do not fit.
        """
        if not isinstance(targets, Mapping):
            return torch.as_tensor(targets)
        names = [head.name for head in self.heads]
        for name in targets:
            if name not in names:
                raise DataError(f"{where}: targets {name!r}: no such head: {nearest(name, names)}")
        for name in names:
            if name not in targets:
                raise DataError(f"{where}: the head {name!r} has no targets")
        return torch.cat([self._column(h, targets[h.name], where) for h in self.heads], -1)

    def _column(self, head: Head, targets: Any, where: str) -> Tensor:
        given = head.task.pack(targets, f"{where}, head {head.name}")
        head.task.check(given, f"{where}, head {head.name}")
        if given.dim() == 1 + head.task.timed:
            given = given.unsqueeze(-1)
        if head.task.timed and given.dim() == 2:
            raise DataError(f"{where}, head {head.name}: give a class for every step, [N, steps]")
        return given.double()

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what a head refuses."""
        if targets.dim() != 2 + self.timed or targets.shape[-1] != self.width:
            raise DataError(
                f"{where}: targets are {list(targets.shape)}, the heads have {self.width} columns: "
                "give a mapping of names to targets"
            )
        for head, given in self.split(targets):
            head.task.check(given, f"{where}, head {head.name}")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum of the heads' losses, ``[B]``."""
        found = [h.weight * h.task.losses(o, t) for h, o, t in self.parts(outputs, targets)]
        return torch.stack(found).sum(0)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum of the heads' losses in every step, ``[B, T]``."""
        found = [h.weight * h.task.stepwise(o, t) for h, o, t in self.parts(outputs, targets)]
        return torch.stack(found).sum(0)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the heads' targets side by side, in the outputs' shape."""
        return torch.cat([h.task.vectors(o, t) for h, o, t in self.parts(outputs, targets)], -1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the heads' metrics, each under ``head.metric``."""
        return {
            f"{head.name}.{name}": parts
            for head, o, t in self.parts(outputs, targets)
            for name, parts in head.task.metrics(o, t).items()
        }

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the heads' figures."""
        found: dict[str, float] = {}
        for head in self.heads:
            own = f"{head.name}."
            part = {n.removeprefix(own): t for n, t in totals.items() if n.startswith(own)}
            found |= {own + name: value for name, value in head.task.figures(part).items()}
        return found

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the groups of the first head."""
        head, given = next(self.split(targets))
        return head.task.strata(given)

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return nothing: each head says what it takes."""
        return {}
