"""Examples one by one: map-style torch Datasets, and files of one example each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from biograd.data.digests import combined, sha256_of
from biograd.data.rows.arrays import as_inputs, as_targets, ended, tensor, whole_lengths
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import BiogradError, DataError, brief, nearest
from biograd.randomness import seeded_globals

MOST_READ = 20_000
"""Of more examples not all are read before the training: the digest is of the first ``FIRST`` and
of their number, and rows are held out and probed whatever their targets."""
FIRST = 64
NAMES = {
    "x": "x", "X": "x", "inputs": "x", "input": "x", "data": "x",
    "y": "y", "Y": "y", "targets": "y", "target": "y", "labels": "y", "label": "y",
    "lengths": "lengths", "length": "lengths", "weight": "weight",
}  # fmt: skip
"""What the parts of an example may be called."""


def named(example: Any, where: str) -> dict[str, Any]:
    """Return the parts of an example, ``x`` and ``y`` and what else it has, by their names.

    Raises:
        DataError: neither a pair nor a mapping of known names.
    """
    if isinstance(example, Mapping):
        for name in example:
            if name not in NAMES:
                raise DataError(f"{where}: unknown key {name!r}: {nearest(name, NAMES)}")
        found = {NAMES[name]: value for name, value in example.items()}
    elif isinstance(example, Sequence) and len(example) in (2, 3):
        found = dict(zip(("x", "y", "lengths"), example, strict=False))
    else:
        found = {}
    if not {"x", "y"} <= found.keys():
        kind = type(example).__name__
        raise DataError(f"{where}: an example is {kind}: must be (inputs, targets), or a mapping")
    return found


def stacked(values: Sequence[Tensor], pads: bool, where: str) -> tuple[Tensor, Tensor | None]:
    """Return rows on top of each other, padded with zeros in time, and their lengths if so."""
    if len({tuple(value.shape) for value in values}) == 1:
        return torch.stack(list(values)), None
    if not pads or len({tuple(value.shape[1:]) for value in values}) > 1:
        shapes = sorted({str(list(value.shape)) for value in values})
        raise DataError(f"{where}: examples differ in shape, {shapes[0]} and {shapes[1]}")
    rows = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    return rows, torch.tensor([len(value) for value in values])


def collated(examples: Sequence[Any], timed: bool, where: str) -> dict[str, Tensor]:
    """Return examples as a batch by name, padded in time where trials differ."""
    parts = [named(example, where) for example in examples]
    inputs = [as_inputs(part["x"], f"{where}: inputs") for part in parts]
    targets = [as_targets(part["y"], f"{where}: targets") for part in parts]
    x, lengths = stacked(inputs, timed, f"{where}: inputs")
    follows = (
        timed
        and lengths is not None
        and all(y.dim() and len(y) == len(x) for x, y in zip(inputs, targets, strict=True))
    )
    y, _ = stacked(targets, follows, f"{where}: targets")
    found = {"x": x, "y": y} | ({} if lengths is None else {"lengths": lengths})
    for name in ("lengths", "weight"):
        if all(name in part for part in parts):
            found[name] = torch.stack([tensor(part[name], where) for part in parts])
    return within(found, timed, where)


def within(found: dict[str, Any], timed: bool, where: str) -> dict[str, Any]:
    """Return a batch by name whose inputs are 0 behind the ends of its trials, if it has lengths.

    Raises:
        DataError: lengths without a time axis, or that are none.
    """
    if found.get("lengths") is None:
        return found
    inputs = as_inputs(found["x"], where)
    lengths = whole_lengths(tensor(found["lengths"], f"{where}: lengths"), inputs, timed, where)
    return {**found, "x": ended(inputs, lengths), "lengths": lengths}


class Drawn(torch.utils.data.Dataset[Any]):
    """A Dataset whose example depends on seed, epoch and number alone, in whatever process."""

    def __init__(self, dataset: Any, key: Key) -> None:
        self.dataset, self.key = dataset, key

    def __getitem__(self, row: int) -> Any:
        with seeded_globals(0, "examples", *self.key, row):
            try:
                return self.dataset[row]
            except BiogradError:
                raise
            except Exception as error:  # whatever the user's code raises
                kind = type(self.dataset).__name__
                raise DataError(
                    f"{kind}, row {row} of {len(self)}: {type(error).__name__}: {brief(str(error))}"
                ) from error

    def __len__(self) -> int:
        return len(self.dataset)


class Items:
    """A map-style Dataset as rows.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; an example is ``(inputs, targets)``,
            ``(inputs, targets, length)`` or a mapping of such names.
        timed: whether an example's inputs have a time axis, ``[T, *shape]``; they are padded.
        collate: of the user's own: makes a batch of a list of examples.
        workers: processes that read ahead.
        targets, digest: if they are known; None: they are read.
        where: opens every message.
    """

    def __init__(
        self,
        dataset: Any,
        timed: bool = False,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        targets: Tensor | None = None,
        digest: str | None = None,
        where: str = "dataset",
    ) -> None:
        self.dataset, self.timed, self.collate = dataset, timed, collate
        self.workers, self.where = workers, where
        self._targets, self._digest = targets, digest

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one input, or of one step of it."""
        return tuple(self.take(torch.tensor([0])).inputs.shape[1 + self.timed :])

    @cached_property
    def steps(self) -> int:
        """Steps of the longest trial that was read beforehand."""
        if not self.timed:
            return 1
        rows = range(len(self) if len(self) <= MOST_READ else FIRST)
        return max(self.take(torch.tensor([row])).inputs.shape[1] for row in rows)

    @cached_property
    def _read(self) -> tuple[Tensor | None, str]:
        """Targets of all examples, if they are not too many, and the digest."""
        whole = len(self) <= MOST_READ
        rows = torch.arange(len(self) if whole else FIRST)
        found, digests = [], []
        for index in rows.split(256):
            batch = self.take(index)
            found.append(batch.targets)
            digests.append(sha256_of(batch.inputs, batch.targets))
        first, again = (self.take(torch.tensor([0])) for _ in range(2))
        repeats = torch.equal(first.inputs, again.inputs)  # NaN is refused elsewhere
        number = sha256_of(torch.tensor(len(self)))
        known = combined(*digests, number) if repeats else ""
        return torch.cat(found) if whole else None, known

    @property
    def targets(self) -> Tensor | None:
        """Targets of all rows; None if they are too many to be read beforehand."""
        return self._read[0] if self._targets is None else self._targets

    @property
    def covers(self) -> str:
        """Of what the digest is, if not of everything."""
        whole = self._digest is not None or len(self) <= MOST_READ
        return "" if whole else f"the first {FIRST} of {len(self)} examples, and their number"

    @property
    def digest(self) -> str:
        """Of the files, or of the examples that were read."""
        return self._read[1] if self._digest is None else self._digest

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``."""
        drawn = Drawn(self.dataset, key)
        return self._batch(self._collate([drawn[row] for row in index.tolist()]), index)

    def many(self, orders: Sequence[Tensor], key: Key) -> Iterator[Batch]:
        """Yield a batch for each index, read ahead by the workers."""
        if not self.workers:
            for index in orders:
                yield self.take(index, key)
            return
        loader = torch.utils.data.DataLoader(
            Drawn(self.dataset, key),
            batch_sampler=[index.tolist() for index in orders],
            num_workers=self.workers,
            collate_fn=self._collate,
            generator=torch.Generator(),  # the global one is not drawn from
        )
        for index, found in zip(orders, loader, strict=True):
            yield self._batch(found, index)

    def _collate(self, examples: list[Any]) -> dict[str, Any]:
        if self.collate is None:
            return collated(examples, self.timed, self.where)
        found = named(self.collate(examples), f"{self.where}: collate_fn")
        return within(found, self.timed, self.where)

    def _batch(self, found: Mapping[str, Any], index: Tensor) -> Batch:
        x, y = as_inputs(found["x"], self.where), as_targets(found["y"], self.where)
        if not len(x) == len(y) == len(index):
            raise DataError(f"{self.where}: {len(index)} examples give a batch of {len(x)}")
        return Batch(x, y, index, found.get("lengths"), found.get("weight"))
