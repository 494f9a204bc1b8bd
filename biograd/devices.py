"""Devices by name: how they are called, and which of them are here.

A name is checked where it is typed; whether the device is there is asked where the work is done,
which may be another machine.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from biograd.errors import CapabilityError, RecipeError, nearest

KINDS = ("auto", "cpu", "cuda", "mps")
CHOICES = "auto|cpu|cuda|cuda:N|mps"
_NUMBERED = re.compile(r"cuda:(0|[1-9][0-9]{0,3})", re.ASCII)
VISIBLE = "CUDA_VISIBLE_DEVICES"


def named(name: str, where: str = "--device") -> str:
    """Return the name of a device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Args:
        where: opens the message.

    Raises:
        RecipeError: it is none.
    """
    if name in KINDS or (isinstance(name, str) and _NUMBERED.fullmatch(name)):
        return name
    if str(name).startswith("cuda:"):
        raise RecipeError(f"{where} {name}: write cuda or cuda:N, with N from 0")
    word = str(name).replace("gpu", "cuda")
    raise RecipeError(f"{where} {name}: {nearest(word, KINDS)}")


def kind(name: str) -> str:
    """Return what a device is, ``cuda`` of ``cuda:1``."""
    return name.partition(":")[0]


def number(name: str) -> int | None:
    """Return the number of a CUDA device; None: the name has none."""
    return int(name.partition(":")[2]) if ":" in name else None


def present(name: str, where: str = "--device") -> str:
    """Return the name of a device of this machine; ``auto`` becomes ``cuda`` or ``cpu``.

    Raises:
        RecipeError: there is no such device here, or at all.
    """
    import torch

    named(name, where)
    cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if cuda else "cpu"
    said = f"{where} {name}" if where.startswith("--") else where
    if kind(name) == "cuda":
        seen = os.environ.get(VISIBLE)
        limited = "" if seen is None else f" ({VISIBLE} is {seen!r})"
        if not cuda:
            raise RecipeError(
                f"{said}: no CUDA device is available here{limited}; use --device cpu"
            )
        count = torch.cuda.device_count()
        if (number(name) or 0) >= count:
            there = "cuda:0 alone is" if count == 1 else f"cuda:0 to cuda:{count - 1} are"
            raise RecipeError(f"{said}: {there} visible here{limited}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"{said}: torch has no MPS device here; use --device cpu")
    return name


def visible() -> list[str]:
    """Return the CUDA devices that may be used here, by the names of ``CUDA_VISIBLE_DEVICES``."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@contextlib.contextmanager
def in_their_types(name: str) -> Iterator[None]:
    """Say in one line that a device lacks a type of numbers, where torch finds that out.

    Raises:
        CapabilityError: it does.
    """
    try:
        yield
    except (TypeError, RuntimeError) as error:
        if kind(name) == "mps" and "MPS" in str(error) and "float64" in str(error):
            raise CapabilityError(
                f"--device {name}: something here computes in 64 bits, which MPS does not: use "
                "--device cpu"
            ) from error
        raise
