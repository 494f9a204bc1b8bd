"""The processes that train one network together: who they are, what they exchange, how they end.

``torchrun`` starts them and tells each its number, the rank, by the environment.  They exchange
tensors over gloo on the CPU and NCCL on CUDA.  What a rank says of its own end goes to torchrun's
store, which outlives it; the others ask there why a rank does not answer any more.

One rank speaks for all, the first that is left.  Alone, a process is rank 0 of 1, and nothing here
does anything; torch is imported by whoever joins others.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from biograd.errors import BiogradError, CapabilityError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(minutes=15)
"""So long a rank that has not died may leave the others without an answer."""
SLICE = timedelta(seconds=1)
"""A wait is interrupted so often, to let signals through."""
ANSWER_SECONDS = 3.0
"""So long the ranks that are left have to say that they are."""
GIVE_WAY_SECONDS = 10.0
"""So long a rank with nothing to say waits for the one that speaks; torchrun ends all with one."""
KNOWN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Lost(BiogradError):
    """Another rank does not answer any more.

    Attributes:
        place: where in the work that was, and how to go on; whoever knows it sets it.
    """

    place = ""


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


_world: World | None = None
_joined = 0
_speaks: bool | None = None
_left: World | None = None


def started() -> tuple[int, int]:
    """Return rank and number of ranks that the environment names; 0 and 1 for a process alone."""
    if not all(os.environ.get(name) for name in KNOWN):
        return 0, 1
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else (0, 1)


def size() -> int:
    """Return the number of ranks that have joined; 1 for a process alone."""
    return 1 if _world is None else _world.size


def rank() -> int:
    """Return the number of this rank, from 0."""
    return 0 if _world is None else _world.rank


def traffic() -> int:
    """Return how many bytes this rank has handed to the others so far."""
    return 0 if _world is None else _world.traffic


def speaks() -> bool:
    """Return whether this process prints: the first rank that is left."""
    return started()[0] == 0 if _speaks is None else _speaks


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


# Joining and leaving ----------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other ranks for a training; tell them of an error, and hear of theirs.

    Raises:
        BiogradError: that of another rank, with its number.
        Lost: a rank ended without a word.
    """
    join()
    try:
        yield
    except BaseException as error:
        if _world is None:
            raise
        with deaf():
            found = _fail(_world, error)
        if found is error:
            raise
        raise found from error


def join() -> None:
    """Connect to the other ranks that torchrun started, if there are any.

    Raises:
        BiogradError: they cannot be reached.
        RecipeError: somebody else has joined them already.
    """
    global _world, _joined, _speaks
    number, count = started()
    if count == 1 or _world is not None:
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
    _joined += 1
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    try:
        prefix: Any = distributed.PrefixStore  # type: ignore[attr-defined]
        store, _, _ = next(rendezvous("env://", number, count, timeout=TIMEOUT))
        store = prefix(f"biograd {_joined}", store)
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
    if _joined == 1:
        atexit.register(leave)
    if number:
        logging.getLogger("biograd").setLevel(logging.CRITICAL)  # rank 0 says it
    _world, _speaks = World(number, count, store), None


def leave() -> None:
    """Let go of the other ranks."""
    global _world
    if _world is None:
        return
    _world = None
    from torch import distributed

    time.sleep(0.05)  # a thread of gloo's may wait for Python to let go of what it has sent
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        distributed.destroy_process_group()


def end(code: int) -> None:
    """End a process that had joined others at once, whatever its threads still wait for."""
    if _joined:
        leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def own_device(device: str) -> None:
    """Let every rank of a machine use a CUDA device of its own.

    Raises:
        RecipeError: there are fewer than ranks.
    """
    if _world is None or device != "cuda":
        return
    from torch import cuda

    place = int(os.environ.get("LOCAL_RANK") or _world.rank)
    if place >= cuda.device_count():
        raise RecipeError(
            f"--device cuda: {cuda.device_count()} CUDA devices for {place + 1} or more processes "
            "on this machine: start fewer, or take --device cpu"
        )
    cuda.set_device(place)


# How it ends ------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Do not hear SIGTERM: torchrun sends it as soon as a rank is lost, before that is reported."""
    if threading.current_thread() is not threading.main_thread() or _world is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def give_way() -> None:
    """Wait for the rank that speaks: torchrun would stop it when this one ends first."""
    deadline = time.monotonic() + (0 if speaks() else GIVE_WAY_SECONDS)
    while time.monotonic() < deadline:
        if _left is not None and 0 in _notes(_left):
            deadline = min(deadline, time.monotonic() + 1)  # it has only to print a line
        time.sleep(0.05)


def _fail(world: World, error: BaseException) -> BaseException:
    """Tell the others that this rank ends; return the error that it ends with."""
    global _left
    victim = isinstance(error, (Lost, SystemExit, KeyboardInterrupt))
    note: dict[str, Any] = {"victim": victim}
    if not victim:
        known = isinstance(error, BiogradError)
        text = f"{error}" if known else f"unexpected {type(error).__name__}: {error}"
        note |= {"text": text, "code": getattr(error, "exit_code", 1)}
    with contextlib.suppress(RuntimeError):  # the store may be gone
        world.store.set(_end(world.rank), json.dumps(note))
    _left = world
    leave()
    return _explained(world, error) if victim else error


def _explained(world: World, error: BaseException) -> BaseException:
    """Return why this rank cannot go on: the error of another, or which were lost."""
    deadline = time.monotonic() + (ANSWER_SECONDS if isinstance(error, Lost) else 0)
    others = [number for number in range(world.size) if number != world.rank]
    while True:
        notes = _notes(world)
        for number, note in notes.items():
            if number != world.rank and not note["victim"]:
                return _Elsewhere(number, note)
        missing = [number for number in others if number not in notes]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not isinstance(error, Lost):
        return error
    return _lost(world, missing, error)


def _lost(world: World, missing: list[int], error: Lost) -> Lost:
    global _speaks
    if len(missing) == 1:
        who = f"rank {missing[0]} was lost"
    else:
        who = f"ranks {', '.join(map(str, missing))} do not answer" if missing else str(error)
    _speaks = all(number in missing for number in range(world.rank))
    found = Lost(f"{who} {error.place}".strip())
    found.place = error.place
    return found


class _Elsewhere(BiogradError):
    """The error of another rank."""

    def __init__(self, number: int, note: dict[str, Any]) -> None:
        super().__init__(f"{note['text']} (rank {number})")
        self.exit_code = int(note["code"])


def _notes(world: World) -> dict[int, dict[str, Any]]:
    """Return what the ranks have left behind that have ended."""
    found = {}
    with contextlib.suppress(RuntimeError):
        for number in range(world.size):
            if world.store.check([_end(number)]):
                found[number] = json.loads(world.store.get(_end(number)))
    return found


def _end(number: int) -> str:
    return f"end of {number}"


# What they exchange -----------------------------------------------------------------------------


def add(values: Tensor) -> Tensor:
    """Replace a tensor by its sum over the ranks, the same bits on all, and return it."""
    if _world is not None:
        from torch import distributed

        _world.traffic += values.nbytes
        _finish(lambda: distributed.all_reduce(values, async_op=True), values.is_cuda)
    return values


def collect(values: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, in their order; all of one shape."""
    if _world is None:
        return [values]
    from torch import distributed, empty_like

    values = values.contiguous()
    found = [empty_like(values) for _ in range(_world.size)]
    _world.traffic += values.nbytes
    _finish(lambda: distributed.all_gather(found, values, async_op=True), values.is_cuda)
    return found


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    if _world is None:
        return
    from torch import distributed

    for tensor in tensors:
        values = tensor.detach().contiguous()
        _finish(partial(distributed.broadcast, values, 0, async_op=True), values.is_cuda)
        tensor.detach().copy_(values)


def table(values: list[float]) -> list[list[float]]:
    """Return the numbers of all ranks, a row each; every rank gives as many."""
    if _world is None:
        return [values]
    import torch

    return [row.tolist() for row in collect(torch.tensor(values, dtype=torch.float64))]


def from_first(make: Callable[[], bytes]) -> bytes:
    """Return what rank 0 makes, on all ranks; only there it is made."""
    if _world is None:
        return make()
    import torch
    from torch import distributed

    given = make() if _world.rank == 0 else b""
    length = torch.tensor([len(given)])
    _finish(lambda: distributed.broadcast(length, 0, async_op=True))
    size = int(length)
    payload = torch.empty(size, dtype=torch.uint8)
    if _world.rank == 0 and size:
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
            if _world is None or _notes(_world):  # its connections may outlive what it does
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
    if _world is None:
        yield
        return
    world, here = _world, int(os.environ.get("LOCAL_WORLD_SIZE") or _world.size)
    world.turns += 1
    ahead = f"turn {world.turns} of {world.rank // here}"
    if world.rank % here:
        _await(world, ahead)
    yield
    if not world.rank % here:
        world.store.set(ahead, "done")


def after_first() -> None:
    """Wait, on all other ranks, until rank 0 has come to this point."""
    if _world is None:
        return
    _world.turns += 1
    key = f"turn {_world.turns}"
    if _world.rank:
        _await(_world, key)
    else:
        _world.store.set(key, "done")


def _await(world: World, key: str) -> None:
    """Wait for a key of the store, as long as no rank has ended."""
    try:
        while not world.store.check([key]):
            if _notes(world):
                raise Lost("another rank has ended")
            time.sleep(0.02)
    except RuntimeError as error:
        raise Lost("the store of the ranks does not answer") from error
