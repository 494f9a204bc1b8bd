"""What a data source promises, as a check that also the sources of other packages pass."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Iterator

import torch
from torch import Tensor

from biograd.data import Batch, Source, batches
from biograd.errors import CheckFailed
from biograd.randomness import generator


def check_source(source: Source) -> None:
    """See whether a source does what biograd needs of it.

    Rows come by number, in the order in which they are asked for, twice the same, in memory of
    their own, and alone as beside others; shapes, lengths and targets are as the source says;
    nothing is drawn from the global generators; batches hold every row once, and those behind a
    skip are those of the whole epoch; a copy in another process has the same digest.

    Raises:
        CheckFailed: the first promise that is broken, in a line.
    """
    state = torch.get_rng_state()
    for found in itertools.chain(_rows(source), _targets(source), _order(source), _copy(source)):
        raise CheckFailed(f"{type(source).__name__}: {found}")
    if not torch.equal(state, torch.get_rng_state()):
        raise CheckFailed(f"{type(source).__name__}: torch's global generator is drawn from")


def _rows(source: Source) -> Iterator[str]:
    count = len(source)
    if count < 3:
        yield f"{count} rows: a check needs three"
    index = torch.tensor([2, 0, 1])
    batch, again = source.take(index), source.take(index)
    if index.tolist() != [2, 0, 1]:
        yield "take changes the numbers of rows that it is given"
        return
    if not torch.equal(batch.index, index):
        yield "take does not return the numbers of its rows"
    lead = 1 + source.timed
    if tuple(batch.inputs.shape[lead:]) != tuple(source.shape) or batch.inputs.dim() < lead:
        yield f"inputs are {list(batch.inputs.shape)}, shape says {list(source.shape)}"
    if source.timed and not 1 <= batch.inputs.shape[1] <= source.steps:
        yield f"trials of {batch.inputs.shape[1]} steps, steps says {source.steps}"
    if not batch.inputs.is_floating_point():
        yield f"inputs are {batch.inputs.dtype}, not floating-point numbers"
    if not _same(batch, again):
        yield "the same rows are not the same the second time: draw by the key"
    for numbers in ([2, 0, 1], [0, 1, 2]):  # rows in order may be a view
        before = source.take(torch.tensor(numbers))
        before = dataclasses.replace(before, inputs=before.inputs.clone())
        source.take(torch.tensor(numbers)).inputs.mul_(0.5)
        if _same(batch, again) and not _same(before, source.take(torch.tensor(numbers))):
            yield "what take returns is the source's own memory: return a copy"
            return
    for place, row in enumerate(index.tolist()):
        alone = source.take(torch.tensor([row]))
        steps = alone.inputs.shape[1] if source.timed else None
        beside = batch.inputs[place : place + 1]
        if not torch.equal(alone.inputs, beside if steps is None else beside[:, :steps]):
            yield f"row {row} is another alone than beside others, or in another order"
        if steps is not None and beside[:, steps:].any():
            yield f"row {row} is not zero behind its end"
    yield from _lengths(source, batch)


def _lengths(source: Source, batch: Batch) -> Iterator[str]:
    lengths = batch.lengths
    if lengths is None:
        return
    if not source.timed or lengths.shape != batch.index.shape or lengths.dtype != torch.int64:
        yield "lengths must be one int64 a trial, of inputs with a time axis"
    elif int(lengths.min()) < 1 or int(lengths.max()) > batch.inputs.shape[1]:
        yield f"lengths are not from 1 to {batch.inputs.shape[1]}"
    else:
        for row, length in zip(batch.inputs, lengths.tolist(), strict=True):
            if row[length:].any():
                yield "inputs are not zero behind the end of a trial"


def _targets(source: Source) -> Iterator[str]:
    known = source.targets
    if known is None:
        return
    if len(known) != len(source):
        yield f"{len(known)} targets of {len(source)} rows"
        return
    index = torch.tensor([1, 0])
    if not _equal(source.take(index).targets, known[index]):
        yield "targets of rows are not those of the source"


def _order(source: Source) -> Iterator[str]:
    def epoch(skip: int = 0) -> list[Batch]:
        order = generator(0, "order", 0)
        return list(batches(source, 2, order, skip=skip, key=(0, 0)))

    whole = epoch()
    rows = torch.cat([batch.index for batch in whole]).sort()[0]
    if rows.tolist() != list(range(len(source))):
        yield "an epoch does not hold every row once"
    for batch, other in zip(whole[1:], epoch(1), strict=True):
        if not _same(batch, other):
            yield "batches behind a skip are not those of the whole epoch"
            return


def _copy(source: Source) -> Iterator[str]:
    digest = source.digest
    if not isinstance(digest, str) or digest != source.digest:
        yield "the digest is not a text that stays the same"
    try:
        copy: Source = pickle.loads(pickle.dumps(source))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        yield f"cannot be sent to another process: {error}"
        return
    index = torch.tensor([0, 1])
    if copy.digest != digest or not _same(copy.take(index), source.take(index)):
        yield "a copy in another process is not the same"


def _same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and _equal(one.targets, other.targets)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors agree, NaN with NaN."""
    return one.shape == other.shape and bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )
