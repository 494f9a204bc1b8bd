"""What a dataset is: two checked splits, and how rows are drawn from them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from biograd import randomness
from biograd.errors import DataError, RecipeError
from biograd.tasks import Classes, Task

Evaluated = Literal["test", "validation"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows to learn from or to test on.

    Attributes:
        inputs: float32 ``[N, *shape]``; images are ``[N, channels, height, width]``.
        targets: int64 ``[N]``, class numbers from 0.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.targets)

    def rows(self, index: Tensor) -> Split:
        """Return the rows ``index`` as a split of their own."""
        return Split(self.inputs[index], self.targets[index])

    def validate(self, shape: tuple[int, ...], classes: int, where: str) -> None:
        """Refuse rows that cannot be learned from; ``where`` names the dataset and the split.

        Raises:
            DataError: empty, lengths or shapes that do not fit, NaN or infinity, a label out of
                range; one line with the first row at fault.
        """
        if not len(self.targets) or not len(self.inputs):
            raise DataError(f"{where} holds no rows")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{where} holds {len(self.inputs)} inputs, {len(self.targets)} labels")
        if self.inputs.dtype != torch.float32 or self.targets.dtype != torch.int64:
            types = f"{self.inputs.dtype} and {self.targets.dtype}"
            raise DataError(f"{where}: inputs and labels must be float32 and int64, not {types}")
        if self.targets.dim() != 1 or tuple(self.inputs.shape[1:]) != shape:
            found, due = list(self.inputs.shape[1:]), list(shape)
            raise DataError(f"{where}: inputs have shape {found}, the recipe says {due}")
        self._validate_values(classes, where)

    def _validate_values(self, classes: int, where: str) -> None:
        finite = torch.isfinite(self.inputs).flatten(1).all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise DataError(f"{where}, row {row}: an input is NaN or infinite")
        outside = (self.targets < 0) | (self.targets >= classes)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise DataError(
                f"{where}, row {row}: label {int(self.targets[row])} is outside 0..{classes - 1}"
            )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset ready for training.

    Attributes:
        shape: of one input.
        test: what the training is evaluated on; with ``evaluated_on == "validation"`` these are
            held-out rows of the training split, and the true test split is not in here at all.
        sha256: digest of the arrays of both splits (:func:`digest`).
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    train: Split
    test: Split
    sha256: str
    evaluated_on: Evaluated = "test"

    @property
    def task(self) -> Task:
        """What the outputs are to be."""
        return Classes(self.classes)

    def validate(self) -> None:
        """Refuse splits that cannot be learned from or tested on.

        Raises:
            DataError: one line that names the dataset, the split and the row.
        """
        self.train.validate(self.shape, self.classes, f"{self.name}: train split")
        self.test.validate(self.shape, self.classes, f"{self.name}: {self.evaluated_on} split")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of a split: inputs ``[B, *shape]``, targets ``[B]``, their row numbers ``[B]``."""

    inputs: Tensor
    targets: Tensor
    index: Tensor


def digest(*splits: Split) -> str:
    """Return the SHA-256 of the splits' dtypes, shapes and values (little-endian)."""
    total = hashlib.sha256()
    for split in splits:
        for values in (split.inputs, split.targets):
            array = values.detach().cpu().contiguous().numpy()
            total.update(f"{array.dtype.name}{array.shape};".encode())
            total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).data)
    return total.hexdigest()


def batches(
    split: Split, batch_size: int, generator: torch.Generator | None, drop_last: bool = False
) -> Iterator[Batch]:
    """Return an iterator over ``split``, every row at most once.

    The order is drawn from ``generator`` in this very call, not at the first batch, so that a saved
    state of the generator is one from which the whole epoch repeats; without a generator the rows
    come in their own order.

    Raises:
        RecipeError: the batch size is not positive, or leaves no batch at all.
    """
    count = len(split)
    if batch_size < 1:
        raise RecipeError(f"batch_size = {batch_size}: must be >= 1")
    if drop_last and batch_size > count:
        raise RecipeError(f"batch_size = {batch_size} is more than the {count} rows of the split")
    if generator is None:
        order = torch.arange(count)
    else:
        order = torch.randperm(count, generator=generator, device=generator.device)
    stop = count - count % batch_size if drop_last else count
    return _take(split, order.to(split.targets.device)[:stop], batch_size)


def _take(split: Split, order: Tensor, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        rows = split.rows(index)
        yield Batch(rows.inputs, rows.targets, index)


def class_balanced(split: Split, count: int, seed: int) -> Tensor:
    """Return the rows of a probe set, int64 ``[min(count, N)]``: all classes alike often.

    The classes take turns, so that the first rows of the index are balanced too; a class that
    has run out of rows is passed over.
    """
    stream = randomness.generator(seed, "class_balanced")
    order = torch.randperm(len(split), generator=stream)
    labels = split.targets.cpu()[order]
    turn = torch.empty_like(labels)
    for label, size in enumerate(labels.bincount().tolist()):
        turn[labels == label] = torch.arange(size)
    by_label = torch.argsort(labels, stable=True)
    ranked = by_label[torch.argsort(turn[by_label], stable=True)]
    return order[ranked][: max(count, 0)].to(split.targets.device)


def stratified(targets: Tensor, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide rows into ``(kept, taken)``, with ``count`` taken and every class in proportion.

    Each class gives the whole part of its share; the rows that are still missing come from the
    classes with the largest remainders.  Both indices are sorted.
    """
    sizes = targets.bincount()
    quota = sizes * count // len(targets)
    remainder = sizes * count % len(targets)
    missing = count - int(quota.sum())
    quota[torch.argsort(remainder, descending=True, stable=True)[:missing]] += 1
    taken = torch.zeros(len(targets), dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        rows = (targets == label).nonzero()[:, 0]
        taken[rows[torch.randperm(len(rows), generator=stream)[:wanted]]] = True
    return (~taken).nonzero()[:, 0], taken.nonzero()[:, 0]
