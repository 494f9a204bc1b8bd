"""Who the ranks are: joining the others, and leaving them."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any

from biograd.devices import kind, number
from biograd.errors import BiogradError, CapabilityError, RecipeError

TIMEOUT = timedelta(minutes=15)
"""So long a rank that has not died may leave the others without an answer."""
KNOWN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass
class World:
    """The ranks of this job, as this one sees them.

    Attributes:
        store: what all ranks can read and write, key by key.
        traffic: bytes that this rank has handed to the others so far, each message counted once.
        turns: how many times the ranks have waited for each other at the store.
    """

    rank: int
    size: int
    store: Any
    traffic: int = 0
    turns: int = 0


@dataclasses.dataclass
class Here:
    """What this process knows of its ranks.

    Attributes:
        world: the ranks that it has joined; None: it is alone.
        joined: how often it has joined others.
        speaks: whether it prints; None: the first rank does.
        left: the ranks that it had joined when it failed.
    """

    world: World | None = None
    joined: int = 0
    speaks: bool | None = None
    left: World | None = None


HERE = Here()


def started() -> tuple[int, int]:
    """Return rank and number of ranks that the environment names; 0 and 1 for a process alone."""
    if not all(os.environ.get(name) for name in KNOWN):
        return 0, 1
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else (0, 1)


def size() -> int:
    """Return the number of ranks that have joined; 1 for a process alone."""
    return 1 if HERE.world is None else HERE.world.size


def rank() -> int:
    """Return the number of this rank, from 0."""
    return 0 if HERE.world is None else HERE.world.rank


def traffic() -> int:
    """Return how many bytes this rank has handed to the others so far."""
    return 0 if HERE.world is None else HERE.world.traffic


def speaks() -> bool:
    """Return whether this process prints: the first rank that is left."""
    return started()[0] == 0 if HERE.speaks is None else HERE.speaks


def command(words: str) -> str:
    """Return a command line of biograd, as it is written for as many ranks as there are now."""
    _, count = started()
    if count == 1:
        return f"biograd {words}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
    machines = f"--nnodes {count // here} " if here < count else ""
    return f"torchrun {machines}--nproc-per-node {here} -m biograd {words}"


def refuse(words: str) -> None:
    """Refuse work that several ranks would only do several times.

    Raises:
        RecipeError: torchrun started several.
    """
    if started()[1] > 1:
        raise RecipeError(
            f"{words} is work for one process, torchrun started {started()[1]}: it serves `train` "
            "and `resume`"
        )


def join() -> None:
    """Connect to the other ranks that torchrun started, if there are any.

    Raises:
        BiogradError: they cannot be reached.
        RecipeError: somebody else has joined them already.
    """
    number, count = started()
    if count == 1 or HERE.world is not None:
        return
    from torch import cuda, distributed
    from torch.distributed.rendezvous import rendezvous

    if not distributed.is_available():
        raise CapabilityError("this build of torch has no torch.distributed: train in one process")
    if distributed.is_initialized():
        raise RecipeError(
            "torch.distributed is initialised already: leave it to biograd, which joins the ranks "
            "of torchrun by itself"
        )
    HERE.joined += 1
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    try:
        prefix: Any = distributed.PrefixStore  # type: ignore[attr-defined]
        store, _, _ = next(rendezvous("env://", number, count, timeout=TIMEOUT))
        store = prefix(f"biograd {HERE.joined}", store)
        distributed.init_process_group(
            backend,
            store=prefix("group", store),
            rank=number,
            world_size=count,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise BiogradError(f"the other ranks cannot be reached at {address}: {reason}") from error
    if HERE.joined == 1:
        atexit.register(leave)
    if number:
        logging.getLogger("biograd").setLevel(logging.CRITICAL)  # rank 0 says it
    HERE.world, HERE.speaks = World(number, count, store), None


def leave() -> None:
    """Let go of the other ranks."""
    if HERE.world is None:
        return
    HERE.world = None
    from torch import distributed

    time.sleep(0.05)  # a thread of gloo's may wait for Python to let go of what it has sent
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        distributed.destroy_process_group()


def end(code: int) -> None:
    """End a process that had joined others at once, whatever its threads still wait for."""
    if HERE.joined:
        leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def own_device(device: str) -> None:
    """Let every rank of a machine use a CUDA device of its own.

    Raises:
        RecipeError: there are fewer than ranks, or one is named that several would share.
        CapabilityError: ranks exchange nothing on it.
    """
    if HERE.world is None or device == "cpu":
        return
    if kind(device) != "cuda":
        raise CapabilityError(
            f"--device {device}: processes that train together exchange tensors of cpu and cuda "
            "alone: use one of these"
        )
    from torch import cuda

    here = int(os.environ.get("LOCAL_WORLD_SIZE") or HERE.world.size)
    place = int(os.environ.get("LOCAL_RANK") or HERE.world.rank)
    if number(device) is not None and here > 1:
        raise RecipeError(
            f"--device {device}: {here} processes of this machine would share it: give --device "
            "cuda, and each takes one of its own"
        )
    place = place if number(device) is None else int(number(device) or 0)
    if place >= cuda.device_count():
        raise RecipeError(
            f"--device cuda: {cuda.device_count()} CUDA devices for {place + 1} or more processes "
            "on this machine: start fewer, or take --device cpu"
        )
    cuda.set_device(place)
