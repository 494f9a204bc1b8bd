"""What a task promises, as a check that also the tasks of other packages pass."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from biograd.errors import CheckFailed, DataError
from biograd.tasks import Task, Weighted, summed

STRIDE, STRIDES = 0.03, 50
"""Learning rate and steps by which outputs follow the losses."""


def check_task(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """See whether a task does what biograd needs of it.

    Good targets pass ``check`` and bad ones do not; a loss for each row, by itself; losses of steps
    that sum to it; the graph that it claims to have, and gradients that are those of finite
    differences; a missing target that leaves no trace; targets that can be packed beside weights;
    metrics that add up over batches, and a headline that gets better as the losses fall; nothing
    is drawn from the global generators, and outputs and targets stay as they are.

    Args:
        outputs: of some network, ``[B, K]`` or ``[B, T, K]`` with B > 2, drawn at random.
        targets: that fit them.

    Raises:
        CheckFailed: the first promise that is broken, in a line.
    """
    outputs = outputs.detach().double()
    given = [value.clone() for value in (outputs, targets)]
    chance = torch.get_rng_state(), random.getstate()
    for found in itertools.chain(
        _targets(task, targets),
        _losses(task, outputs, targets),
        _graph(task, outputs, targets),
        _missing(task, outputs, targets),
        _weighted(task, outputs, targets),
        _metrics(task, outputs, targets),
        _descent(task, outputs, targets),
        _traces(given, (outputs, targets), chance),
    ):
        raise CheckFailed(f"{type(task).__name__}: {found}")


def _traces(
    given: Sequence[Tensor], now: Sequence[Tensor], chance: tuple[Tensor, object]
) -> Iterator[str]:
    if not torch.equal(torch.get_rng_state(), chance[0]) or random.getstate() != chance[1]:
        yield "a global generator is drawn from"
    for name, one, other in zip(("outputs", "targets"), given, now, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            yield f"its {name} are changed in place"


def _descent(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    """Follow the losses downhill, and see what becomes of the headline."""
    if not task.differentiable or task.closed_loop or task.headline == "loss":
        return

    def headline() -> float:
        return task.figures(summed(task.metrics(leaf.detach(), targets)))[task.headline]

    leaf = outputs.clone().requires_grad_()
    optimiser, before = torch.optim.Adam([leaf], STRIDE), headline()
    for _ in range(STRIDES):
        optimiser.zero_grad()
        task.losses(leaf, targets).sum().backward()
        optimiser.step()
    worse = headline() - before
    if (worse > 0) == (task.better == "lower") and worse:
        yield (
            f"its headline, {task.headline}, of which {task.better} is better, goes from "
            f"{before:.3g} to {before + worse:.3g} as the losses fall"
        )


def _targets(task: Task, targets: Tensor) -> Iterator[str]:
    task.check(targets, "targets")
    bad = targets.clone()
    bad[1] = float("inf") if targets.is_floating_point() else -1
    try:
        task.check(bad, "targets")
        yield f"check takes a target of {bad[1].flatten()[0]}"
    except DataError as error:
        if "\n" in str(error) or not str(error).startswith("targets"):
            yield f"check says not in one line where the fault is: {error}"
        if "row 1" not in str(error):
            yield f"check does not say that row 1 is at fault: {error}"
    groups = task.strata(targets)
    if groups is not None and (groups.shape != targets.shape[:1] or groups.dtype != torch.int64):
        yield "strata must be one int64 a row"


def _losses(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    losses = task.losses(outputs, targets)
    if losses.shape != outputs.shape[:1] or not losses.isfinite().all():
        yield f"losses are {list(losses.shape)}, or not finite, for {len(outputs)} rows"
        return
    alone = torch.cat(
        [task.losses(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(losses))]
    )
    if not torch.allclose(alone, losses):
        yield "the loss of a row depends on the rows beside it"
    if not task.timed:
        return
    try:
        steps = task.stepwise(outputs, targets)
    except NotImplementedError:
        return
    weight = task.discount ** torch.arange(outputs.shape[1])
    if steps.shape != outputs.shape[:2] or not torch.allclose((steps * weight).sum(1), losses):
        yield "the losses of the steps do not sum to the losses"


def _graph(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    leaf = outputs.clone().requires_grad_()
    losses = task.losses(leaf, targets)
    if losses.requires_grad != task.differentiable:
        yield f"differentiable = {task.differentiable}, but the losses say otherwise"
    elif task.differentiable and not task.closed_loop:  # a score function is of the mean
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        step = 1e-6 * torch.randn(outputs.shape, dtype=torch.float64, generator=torch.Generator())
        up, down = (task.losses(outputs + s * step, targets).sum() for s in (1, -1))
        if not torch.allclose((up - down) / 2, (gradient * step).sum(), rtol=1e-3, atol=1e-12):
            yield "the gradient is not that of finite differences"


def _missing(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    if not (targets.is_floating_point() and task.differentiable) or targets[0].numel() < 2:
        return
    gap = targets.clone()
    gap[0].view(-1)[0] = float("nan")
    try:
        task.check(gap, "targets")
    except DataError:
        return  # it says that it needs all of them
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.losses(leaf, gap).sum(), leaf)
    if not gradient.isfinite().all():
        yield "a missing target makes the gradient NaN"


def _weighted(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    whole = Weighted(task=task)
    if targets.dim() < 1 + task.timed:
        return  # one for all steps
    try:
        packed = whole.pack((targets, torch.ones(len(targets))), "targets")
        found = whole.losses(outputs, packed)
    except NotImplementedError:
        return  # of steps, which the task does not know
    except (DataError, RuntimeError, ValueError) as error:
        yield f"its targets cannot be packed beside weights: width = {task.width}: {error}"
        return
    if not torch.allclose(found, task.losses(outputs, targets)):
        yield f"targets packed beside weights of 1 are others: width = {task.width}"


def _metrics(task: Task, outputs: Tensor, targets: Tensor) -> Iterator[str]:
    whole = summed(task.metrics(outputs, targets))
    first, rest = (summed(task.metrics(outputs[p], targets[p])) for p in (slice(1), slice(1, None)))
    for name, parts in whole.items():
        added = [
            [a + b for a, b in zip(*pair, strict=True)]
            for pair in zip(first[name], rest[name], strict=True)
        ]
        for one, other in zip(added, parts, strict=True):
            if not torch.allclose(torch.tensor(one), torch.tensor(other)):
                yield f"the metric {name} does not add up over batches"
    if task.headline not in {*task.figures(whole), "loss"}:
        yield f"headline = {task.headline!r} is none of its metrics"
    if task.better not in ("higher", "lower"):
        yield f"better = {task.better!r} is neither 'higher' nor 'lower'"
