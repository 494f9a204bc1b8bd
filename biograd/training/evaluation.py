"""What a network is worth on rows that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from biograd import ranks, tasks
from biograd.data import Source, batches
from biograd.engine import Engine
from biograd.errors import CapabilityError
from biograd.ranks import parallel
from biograd.tasks import added, flat, folded, summed
from biograd.tasks.further_metrics import Metric, Pooled, plain


def placed(network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets on the network's device, the inputs in its floating-point type."""
    first = next(network.parameters())
    dtype = first.dtype if inputs.is_floating_point() else None
    return inputs.to(first.device, dtype), targets.to(first.device)


@torch.no_grad()
def evaluate(
    engine: Engine,
    split: Source,
    batch_size: int = 256,
    metrics: Mapping[str, Metric | Pooled] | None = None,
) -> dict[str, float]:
    """Return the task's metrics and the mean ``loss`` of a split, in evaluation mode.

    Ranks divide the batches; all of them must ask.

    Args:
        metrics: further ones, by name.
    """
    network, task = engine.network, engine.task
    further = {name: one for name, one in (metrics or {}).items() if isinstance(one, Metric)}
    pooled = [one for one in (metrics or {}).values() if isinstance(one, Pooled)]
    if pooled and ranks.size() > 1:
        raise CapabilityError(f"metrics: {pooled[0].name}: an object counts in one process alone")
    for one in pooled:
        one.held.reset()
    training = network.training
    network.eval()
    form = getattr(engine.substrate, "outputs", None)
    totals: tasks.Totals = {}
    for batch in batches(split, batch_size, None, drop_last=False):
        with parallel.sharing(parallel.share(len(batch.targets))) as own:
            rows = own.rows if own.weight else slice(0, 1)  # every rank must know the metrics
            inputs, targets = placed(network, batch.inputs[rows], batch.targets[rows])
            outputs = network(inputs) if form is None else form(network(inputs))
            losses = task.losses(outputs, targets)
            found = summed(
                {
                    "loss": (losses, torch.ones_like(losses)),
                    **task.metrics(outputs, targets),
                    **{f".{name}": one.parts(outputs, targets) for name, one in further.items()},
                }
            )
            if not own.weight:
                found = folded([0.0] * len(flat(found)), found)
            totals = added(totals, found)
            for each in pooled:
                each.update(outputs, plain(targets, task))
    network.train(training)
    sums = [sum(column) for column in zip(*ranks.table(flat(totals)), strict=True)]
    totals = folded(sums, totals)
    (loss,), (count,) = totals.pop("loss")
    more = {name: one.figure(totals.pop(f".{name}")) for name, one in further.items()}
    for each in pooled:
        more |= each.computed()
    return {**task.figures(totals), "loss": loss / count, **more}
