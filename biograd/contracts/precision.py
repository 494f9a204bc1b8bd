"""Numbers of 16 bits: rules and losses compute in 32, since differences of copies are small."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def computing(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a rule computes for a network of some type."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype


def widened(values: Tensor) -> Tensor:
    """Return real numbers of 16 bits as float32, others as they are; differentiable."""
    return values.to(computing(values.dtype))


def unmixed(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types of the operands, also inside of the user's ``torch.autocast``."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def forget_casts(device: torch.device) -> None:
    """Drop the copies of parameters that ``torch.autocast`` keeps.

    They know nothing of changes in place, and those made without a graph lead to none.
    """
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()
