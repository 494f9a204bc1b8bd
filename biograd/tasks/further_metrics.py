"""Metrics beside the task's own: by name, as functions, or as objects of torchmetrics' kind.

Shapes: outputs ``[B, K]`` or ``[B, T, K]``; classes ``[B]`` or ``[B, T]``, numbers in the outputs'
shape.  What is missing (``MISSING``, NaN) counts nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from biograd.errors import BiogradError, CapabilityError, RecipeError, brief
from biograd.registry import Registry
from biograd.tasks.classes import Classes
from biograd.tasks.regression import Regression, TimeSeries
from biograd.tasks.task import MISSING, Task, aligned, ratio
from biograd.tasks.weighted import Weighted

Sums = Sequence[Sequence[float]]
"""Parts summed over rows, batches and ranks."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure that follows from sums over rows, so that it is the same however they are batched.

    Attributes:
        parts: of outputs and targets, each ``[B]`` or ``[B, ...]``.
        figure: from the sums of these parts.
        whole: whether targets are classes; None: whatever they are.
    """

    parts: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    figure: Callable[[Sums], float]
    whole: bool | None = None


def _classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs ``[B, T, K]``, and classes and a mask ``[B, T]``; T is 1 without time."""
    if outputs.dim() == 2:
        outputs = outputs.unsqueeze(1)
    targets = targets.unsqueeze(1) if targets.dim() == 1 else targets
    targets = targets.expand(outputs.shape[:2])
    mask = targets != MISSING
    return outputs, targets.where(mask, 0), mask


def _counted(classes: Tensor, like: Tensor, mask: Tensor) -> Tensor:
    """Return how often each class stands in a row, ``[B, K]``."""
    return (functional.one_hot(classes, like.shape[-1]) * mask.unsqueeze(-1)).sum(1)


def _confused(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return how often each class was found rightly, found, and there, each ``[B, K]``."""
    outputs, targets, mask = _classes(outputs, targets)
    chosen = outputs.argmax(-1)
    right = _counted(targets, outputs, mask & (chosen == targets))
    return right, _counted(chosen, outputs, mask), _counted(targets, outputs, mask)


def _mean(values: list[float]) -> float:
    return ratio(math.fsum(values), len(values))


def _balanced(sums: Sums) -> float:
    """Return the mean over classes of the share that was found, of classes that there are."""
    return _mean([right / there for right, _, there in zip(*sums, strict=True) if there])


def _f1(sums: Sums) -> float:
    """Return the mean over classes of ``2 right / (found + there)``, 0 / 0 left out."""
    rows = zip(*sums, strict=True)
    return _mean([2 * right / (found + there) for right, found, there in rows if found + there])


def _among(count: int, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return whether the class is among the ``count`` largest outputs, and how many there are."""
    outputs, targets, mask = _classes(outputs, targets)
    best = outputs.topk(min(count, outputs.shape[-1]), dim=-1).indices
    right = (best == targets.unsqueeze(-1)).any(-1) & mask
    return right.sum(1), mask.sum(1)


def _share(sums: Sums) -> float:
    return ratio(sums[0][0], sums[1][0])


def _numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, targets and a mask, ``[B, n]`` in double precision."""
    targets = aligned(outputs, targets).to(torch.float64).flatten(1)
    mask = ~targets.isnan()
    return outputs.to(torch.float64).flatten(1).where(mask, 0), targets.where(mask, 0), mask


def _absolute(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    found, due, mask = _numbers(outputs, targets)
    return (found - due).abs().sum(1), mask.sum(1)


def _squares(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    found, due, mask = _numbers(outputs, targets)
    return (found - due).square().sum(1), mask.sum(1)


def _moments(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    found, due, mask = _numbers(outputs, targets)
    products = (found, due, found * found, due * due, found * due, mask)
    return tuple(one.sum(1) for one in products)


def _correlation(sums: Sums) -> float:
    """Return Pearson's correlation of outputs and targets, all numbers together."""
    x, y, xx, yy, xy, n = (one[0] for one in sums)
    if not n:
        return math.nan
    spread = (xx - x * x / n) * (yy - y * y / n)
    return ratio(xy - x * y / n, math.sqrt(max(spread, 0.0)))


METRICS: Registry[Metric] = Registry(
    "biograd.metrics",
    {
        "balanced_accuracy": Metric(_confused, _balanced, whole=True),
        "macro_f1": Metric(_confused, _f1, whole=True),
        "top_2_accuracy": Metric(functools.partial(_among, 2), _share, whole=True),
        "top_3_accuracy": Metric(functools.partial(_among, 3), _share, whole=True),
        "top_5_accuracy": Metric(functools.partial(_among, 5), _share, whole=True),
        "absolute_error": Metric(_absolute, _share, whole=False),
        "root_mean_square_error": Metric(_squares, lambda s: math.sqrt(_share(s)), whole=False),
        "correlation": Metric(_moments, _correlation, whole=False),
    },
)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A user's object with ``reset``, ``update(outputs, targets)`` and ``compute``."""

    name: str
    held: Any

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Hand a batch to the object.

        Raises:
            CapabilityError: it does not take it.
        """
        with taking(self.name, outputs, targets):
            self.held.update(outputs, targets)

    def computed(self) -> dict[str, float]:
        """Return what the object found, one number or several by name.

        Raises:
            CapabilityError: it is neither.
        """
        found = self.held.compute()
        values = found if isinstance(found, Mapping) else {"": found}
        try:
            return {
                f"{self.name}_{key}" if key else self.name: float(value)
                for key, value in values.items()
            }
        except (TypeError, ValueError) as error:
            raise CapabilityError(
                f"metrics: {self.name}: compute() gives {type(found).__name__}, not one number or "
                "numbers by name"
            ) from error


@contextlib.contextmanager
def taking(name: str, outputs: Tensor, targets: Tensor) -> Iterator[None]:
    """Say in one line with what a metric of the user's failed.

    Raises:
        CapabilityError: it did.
    """
    try:
        yield
    except BiogradError:
        raise
    except Exception as error:
        raise CapabilityError(
            f"metrics: {name}: {type(error).__name__}: {brief(str(error))} (outputs "
            f"{list(outputs.shape)} {outputs.dtype}, targets {list(targets.shape)} "
            f"{targets.dtype})"
        ) from error


def _of_function(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    def parts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        with taking(name, outputs, targets):
            found = torch.as_tensor(function(outputs, targets))
        if found.shape != (len(targets),):
            raise CapabilityError(
                f"metrics: {name}: gives {list(found.shape)}, not one number a row, "
                f"[{len(targets)}]: take an object with update, compute and reset for what is no "
                "mean over rows"
            )
        return found, torch.ones_like(found)

    return Metric(parts, _share)


Given = Mapping[str, Any] | Sequence[str]
"""Metrics by name, or by a name of the user's each a name, a function or an object."""


def chosen(given: Given, task: Task) -> dict[str, Metric | Pooled]:
    """Return metrics ready to be used with a task.

    Raises:
        RecipeError: no such metric, a name that the task has, or one for other targets.
    """
    named = given if isinstance(given, Mapping) else {name: name for name in given}
    return {name: _metric(str(name), one, task) for name, one in named.items()}


def plain(targets: Tensor, task: Task) -> Tensor:
    """Return the task's own targets, without the weights that may travel with them."""
    return task.split(targets)[0] if isinstance(task, Weighted) else targets


def _weighed(found: Metric, task: Weighted) -> Metric:
    """Return a metric whose rows count by their weights, those of steps by the mean of theirs."""

    def parts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        own, weights = task.split(targets)
        factor = weights.double() if weights.dim() == 1 else weights.double().mean(1)
        rows = found.parts(outputs, own)
        return tuple(one.double() * factor.view(-1, *[1] * (one.dim() - 1)) for one in rows)

    return dataclasses.replace(found, parts=parts)


def _metric(name: str, given: Any, task: Task) -> Metric | Pooled:
    found = _found(name, given, task.task if isinstance(task, Weighted) else task)
    weighted = isinstance(task, Weighted) and isinstance(found, Metric)
    return _weighed(found, task) if weighted else found  # type: ignore[arg-type]


def _found(name: str, given: Any, task: Task) -> Metric | Pooled:
    if name in ("loss", task.headline):
        raise RecipeError(f"metrics: {name!r} is what the task itself reports: leave it out")
    if all(callable(getattr(given, word, None)) for word in ("reset", "update", "compute")):
        return Pooled(name, given)
    if isinstance(given, str):
        found = METRICS.find(given, "training.metrics")
        kinds = Classes if found.whole else (Regression, TimeSeries)
        if found.whole is not None and not isinstance(task, kinds):
            kind = "classes" if found.whole else "numbers"
            raise RecipeError(f"metrics: {given} is of {kind}, not of {type(task).__name__}")
        return found
    if callable(given):
        return _of_function(name, given)
    raise RecipeError(f"metrics: {name}: a name, a function, or an object with update and compute")
