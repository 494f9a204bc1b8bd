"""Loops that numba compiles: whether there are any, how they are made, and who runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch

from biograd.process.switches import COMPILED, allowed

LEAST_A_THREAD = 500_000
"""Elements that are worth another thread."""
KERNEL_DTYPES = (torch.float32, torch.float64)


@cache
def installed() -> bool:
    """Return whether numba is there."""
    return find_spec("numba") is not None


def available() -> bool:
    """Return whether numba is there and the user has not said no."""
    return allowed(COMPILED) and installed()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of numpy arrays, compiled at its first call and kept on disk."""
    import numba

    made: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # no folder to write to: compiled in every process
        made.enable_caching()
    return cast(Callable[..., Any], made)


def divided(work: Callable[..., Any], parts: int, size: int, *arrays: Any) -> list[Any]:
    """Run ``work(first, end, *arrays)`` over parts, by as many threads as torch has.

    Args:
        size: elements that are worked on in all.
    """
    threads = min(torch.get_num_threads(), max(parts, 1), 1 + size // LEAST_A_THREAD)
    if threads == 1:
        return [work(0, parts, *arrays)]
    edges = [parts * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda n: work(edges[n], edges[n + 1], *arrays), range(threads)))
