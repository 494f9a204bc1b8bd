"""Streams: examples that come one after the other, without numbers and a known end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from biograd.data.rows.arrays import Arrays
from biograd.data.rows.items import collated
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError, RecipeError
from biograd.randomness import seeded_globals

END = object()
"""What stands for the end of an iterator, whose examples may be anything."""
FIRST = 256
"""Examples at the beginning of every pass that are kept for evaluation and never learned from."""


class Stream:
    """Examples from an iterable that is begun again whenever it ends.

    An epoch is ``count`` examples; the next one goes on where it ended.  A resumed run reads the
    stream from its beginning up to its place.  What an example draws from the global generators
    depends on the seed, the pass and its place in it alone, so that it then is the same again.

    Args:
        start: returns the iterator of a pass, given seed and number of the pass.
        count: examples that count as an epoch.
        timed: whether an example's inputs have a time axis.
        skip: examples at the beginning of each pass that are passed over.
        where: opens every message.
    """

    digest = ""
    targets: Tensor | None = None

    def __init__(
        self,
        start: Callable[[int, int], Iterator[Any]],
        count: int,
        timed: bool = False,
        skip: int = 0,
        where: str = "stream",
    ) -> None:
        self.start, self.count, self.timed, self.skip, self.where = start, count, timed, skip, where
        first = self.first(1)
        self.shape, self.steps = first.shape, first.steps
        self._seed: int | None = None
        self._place, self._pass, self._read = 0, -1, 0
        self._iterator: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> Arrays:
        """Return the first ``count`` examples of the pass that evaluation sees."""
        with seeded_globals(0, "examples", "stream", 0, 0):
            iterator = iter(self.start(0, 0))
        examples = list[Any]()
        for place in range(count):
            with seeded_globals(0, "examples", "stream", 0, 0, place):
                example = next(iterator, END)
            if example is END:
                break
            examples.append(example)
        if len(examples) < count:
            raise DataError(f"{self.where}: ends after {len(examples)} examples, needs {count}")
        found = collated(examples, self.timed, self.where)
        return Arrays(found["x"], found["y"], self.timed, found.get("lengths"))

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return examples of the pass that evaluation sees, which is read from its beginning."""
        rows = self.first(int(index.max()) + 1)
        return rows.take(index)

    def batches(self, size: int, key: Key, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, after ``skip`` of them.

        Args:
            key: seed and epoch.
        """
        seed, epoch = key[0], max(key[1], 0)
        number = max(1, self.count // size)
        if self._seed != seed or self._place > (epoch * number + skip) * size:
            self._seed, self._place, self._pass, self._read = seed, 0, -1, 0
            self._iterator = iter(())
        while self._place < (epoch * number + skip) * size:
            self._next()
        for _ in range(number - skip):
            place = self._place
            found = collated([self._next() for _ in range(size)], self.timed, self.where)
            index = torch.arange(place, place + size)
            yield Batch(found["x"], found["y"], index, found.get("lengths"), found.get("weight"))

    def _next(self) -> Any:
        """Return the next example; at the end of a pass, the first of the next."""
        for _ in range(2):
            with seeded_globals(0, "examples", "stream", self._seed, self._pass, self._read):
                example = next(self._iterator, END)
            if example is not END:
                self._place, self._read = self._place + 1, self._read + 1
                return example
            self._begin()
        raise DataError(f"{self.where}: ends after {self.skip} examples or less: nothing to learn")

    def _begin(self) -> None:
        assert self._seed is not None
        self._pass, self._read = self._pass + 1, 0
        with seeded_globals(0, "examples", "stream", self._seed, self._pass):
            self._iterator = iter(self.start(self._seed, self._pass))
        for _ in range(self.skip):
            with seeded_globals(0, "examples", "stream", self._seed, self._pass, self._read):
                next(self._iterator, END)
            self._read += 1


def of_iterable(dataset: Any, rows: int, timed: bool, where: str) -> Stream:
    """Return the stream of an IterableDataset, or of a function of seed and epoch.

    Raises:
        RecipeError: nothing says how many examples are an epoch.
    """
    known = rows or (len(dataset) if hasattr(dataset, "__len__") else 0)
    if not known:
        raise RecipeError(
            f"{where}: a stream has no length: say how many examples are an epoch, "
            "dataset.epoch_rows=1000"
        )
    if callable(dataset) and not hasattr(dataset, "__iter__"):
        return Stream(lambda seed, number: iter(dataset(seed, number)), known, timed, FIRST, where)

    def start(_seed: int, number: int) -> Iterator[Any]:
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(number)
        return iter(dataset)

    return Stream(start, known, timed, FIRST, where)


def is_stream(given: Any) -> bool:
    """Return whether ``given`` is a function of ``seed`` and ``epoch`` that returns an iterator."""
    if not callable(given) or isinstance(given, type):
        return False
    try:
        return list(inspect.signature(given).parameters)[:2] == ["seed", "epoch"]
    except (TypeError, ValueError):
        return False
