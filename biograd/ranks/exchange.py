"""What the ranks exchange, and where they wait for each other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from biograd.ranks.ending import Lost, notes
from biograd.ranks.world import HERE, World

if TYPE_CHECKING:
    from torch import Tensor

SLICE = timedelta(seconds=1)
"""A wait is interrupted so often, to let signals through."""


def add(values: Tensor) -> Tensor:
    """Replace a tensor by its sum over the ranks, the same bits on all, and return it."""
    if HERE.world is not None:
        from torch import distributed

        HERE.world.traffic += values.nbytes
        _finish(lambda: distributed.all_reduce(values, async_op=True), values.is_cuda)
    return values


def collect(values: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, in their order; all of one shape."""
    if HERE.world is None:
        return [values]
    from torch import distributed, empty_like

    values = values.contiguous()
    found = [empty_like(values) for _ in range(HERE.world.size)]
    HERE.world.traffic += values.nbytes
    _finish(lambda: distributed.all_gather(found, values, async_op=True), values.is_cuda)
    return found


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    if HERE.world is None:
        return
    from torch import distributed

    for tensor in tensors:
        values = tensor.detach().contiguous()
        _finish(partial(distributed.broadcast, values, 0, async_op=True), values.is_cuda)
        tensor.detach().copy_(values)


def table(values: list[float]) -> list[list[float]]:
    """Return the numbers of all ranks, a row each; every rank gives as many."""
    if HERE.world is None:
        return [values]
    import torch

    return [row.tolist() for row in collect(torch.tensor(values, dtype=torch.float64))]


def from_first(make: Callable[[], bytes]) -> bytes:
    """Return what rank 0 makes, on all ranks; only there it is made."""
    if HERE.world is None:
        return make()
    import torch
    from torch import distributed

    given = make() if HERE.world.rank == 0 else b""
    length = torch.tensor([len(given)])
    _finish(lambda: distributed.broadcast(length, 0, async_op=True))
    size = int(length)
    payload = torch.empty(size, dtype=torch.uint8)
    if HERE.world.rank == 0 and size:
        payload = torch.frombuffer(bytearray(given), dtype=torch.uint8)
    _finish(lambda: distributed.broadcast(payload, 0, async_op=True))
    return payload.numpy().tobytes()


def _finish(begin: Callable[[], Any], on_device: bool = False) -> None:
    """Wait for an exchange to end; a signal is heard meanwhile.

    Args:
        on_device: what follows on the device waits by itself, and nobody else.

    Raises:
        Lost: a rank takes no part in it.
    """
    try:
        work = begin()
        if on_device:
            work.wait()
        while not (on_device or _ended(work)):
            if HERE.world is None or notes(HERE.world):  # its connections may outlive what it does
                raise Lost("another rank has ended")
    except RuntimeError as error:
        raise Lost("the other ranks do not answer") from error


def _ended(work: Any) -> bool:
    try:
        work.wait(SLICE)
        return True
    except RuntimeError:
        if work.is_completed():
            work.wait()  # raises what went wrong, if it did not end just now
            return True
        return False


@contextlib.contextmanager
def first_of_machine() -> Iterator[None]:
    """Let the first rank of each machine go ahead, to download for instance; the others follow."""
    if HERE.world is None:
        yield
        return
    world, here = HERE.world, int(os.environ.get("LOCAL_WORLD_SIZE") or HERE.world.size)
    world.turns += 1
    ahead = f"turn {world.turns} of {world.rank // here}"
    if world.rank % here:
        _await(world, ahead)
    yield
    if not world.rank % here:
        world.store.set(ahead, "done")


def after_first() -> None:
    """Wait, on all other ranks, until rank 0 has come to this point."""
    if HERE.world is None:
        return
    HERE.world.turns += 1
    key = f"turn {HERE.world.turns}"
    if HERE.world.rank:
        _await(HERE.world, key)
    else:
        HERE.world.store.set(key, "done")


def _await(world: World, key: str) -> None:
    """Wait for a key of the store, as long as no rank has ended."""
    try:
        while not world.store.check([key]):
            if notes(world):
                raise Lost("another rank has ended")
            time.sleep(0.02)
    except RuntimeError as error:
        raise Lost("the store of the ranks does not answer") from error
