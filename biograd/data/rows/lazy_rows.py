"""Rows of inputs that stay in their file until a batch asks for them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from biograd.data.rows.arrays import as_inputs
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError


class Stored(Protocol):
    """Rows in a file."""

    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, rows: Any) -> Any:
        """Read some."""


class LazyRows:
    """Rows of inputs that stay in their file, with targets in memory."""

    def __init__(
        self,
        inputs: Stored,
        targets: Tensor,
        timed: bool,
        weight: Tensor | None,
        digest: str,
        where: str,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{where}: {len(inputs)} rows of x, {len(targets)} of y")
        self.inputs, self.targets, self.timed = inputs, targets, timed
        self.weight, self.digest, self.where = weight, digest, where
        self.shape = tuple(inputs.shape[1 + timed :])
        self.steps = int(inputs.shape[1]) if timed else 1

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``: each is read once, in the order of the file."""
        rows, back = index.unique(return_inverse=True)
        first, last = int(rows[0]), int(rows[-1])
        whole = last - first + 1 == len(rows)
        found = self.inputs[slice(first, last + 1) if whole else rows.numpy()]
        inputs = as_inputs(found, self.where)[back]
        weight = None if self.weight is None else self.weight[index]
        return Batch(inputs, self.targets[index], index, None, weight)
