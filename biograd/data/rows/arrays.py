"""Arrays in memory: tensors, NumPy arrays and lists."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biograd.data.digests import sha256_of
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError
from biograd.tasks import MISSING


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Rows in memory.

    Attributes:
        inputs: ``[N, *shape]``, with time ``[N, T, *shape]``; images are ``[N, channels, height,
            width]``.
        targets: ``[N, ...]``.
        timed: whether the second axis of the inputs is time.
        lengths: steps of each trial, ``[N]``; None: all ``T``.
        weight: of each example, ``[N]``.
        origin: numbers of the rows in what they are taken from, ``[N]``; None: 0 to N - 1.
    """

    inputs: Tensor
    targets: Tensor
    timed: bool = False
    lengths: Tensor | None = None
    weight: Tensor | None = None
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, or of one step of it."""
        return tuple(self.inputs.shape[1 + self.timed :])

    @property
    def steps(self) -> int:
        """Steps of a trial."""
        return int(self.inputs.shape[1]) if self.timed else 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all values."""
        return sha256_of(*self.all())

    def all(self) -> list[Tensor]:
        """Return the arrays that are there."""
        found = (self.inputs, self.targets, self.lengths, self.weight)
        return [values for values in found if values is not None]

    def rows(self, index: Tensor) -> Arrays:
        """Return the rows ``index`` as arrays of their own."""
        lengths, weight = (v if v is None else v[index] for v in (self.lengths, self.weight))
        origin = index if self.origin is None else self.origin[index]
        return Arrays(self.inputs[index], self.targets[index], self.timed, lengths, weight, origin)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``."""
        rows = self.rows(index)
        return Batch(rows.inputs, rows.targets, index, rows.lengths, rows.weight)


def plain(values: Tensor, where: str) -> Tensor:
    """Return a tensor without a graph, on the processor, of 16 bits as float32.

    Raises:
        DataError: sparse, quantised or complex, or it holds no values.
    """
    wrong = {
        "sparse: give x.to_dense()": values.layout != torch.strided,
        "on the device meta, without values": values.is_meta,
        "quantised: give x.dequantize()": values.is_quantized,
        "complex: give real and imaginary parts as channels": values.is_complex(),
    }
    for words, found in wrong.items():
        if found:
            raise DataError(f"{where}: is a tensor that is {words}")
    values = values.detach().cpu()
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def unmasked(values: Any, where: str) -> None:
    """Refuse an array of which numpy hides values.

    Raises:
        DataError: it does; what is hidden would be taken for data.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(
            f"{where}: {int(np.ma.count_masked(values))} values are masked: fill them "
            "(x.filled(0)), or leave their rows out"
        )


def tensor(values: Any, where: str) -> Tensor:
    """Return an array of numbers as a tensor; truth values and small integers keep their type.

    Raises:
        DataError: rows of different lengths, objects or texts.
    """
    if isinstance(values, Tensor):
        return plain(values, where)
    unmasked(values, where)
    if hasattr(values, "getbands"):  # channels would come last
        raise DataError(
            f"{where}: is a picture of PIL: give the Dataset transform=torchvision.transforms."
            "ToTensor(), or another that returns arrays"
        )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: rows differ in shape: pad them and give lengths") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: is an array of {array.dtype}: must be numbers")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where}: {array.max()} is beyond 63 bits: give real numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.itemsize > 8:  # long doubles, of which torch has none
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def as_inputs(values: Any, where: str) -> Tensor:
    """Return inputs as floating-point numbers; integers and truth values are cast, not scaled."""
    found = tensor(values, where)
    return found if found.is_floating_point() else found.float()


def cast(values: Any, where: str) -> tuple[str, ...]:
    """Return what is to be said of inputs that are whole numbers: they are not scaled."""
    found = tensor(values, where)
    if found.is_floating_point() or found.dtype == torch.bool or not found.numel():
        return ()
    ends = f"{int(found.min())} to {int(found.max())}"
    kind = str(found.dtype).removeprefix("torch.")
    return (f"{where} are {kind}, {ends}: taken as they are, not scaled",)


def as_targets(values: Any, where: str) -> Tensor:
    """Return targets: whole numbers as int64, others as they are."""
    found = tensor(values, where)
    return found if found.is_floating_point() or found.dtype == torch.bool else found.long()


def whole_lengths(lengths: Tensor, inputs: Tensor, timed: bool, where: str) -> Tensor:
    """Return the lengths of trials as whole numbers, int64 ``[B]``.

    Raises:
        DataError: inputs have no time axis, or a length is no number of their steps.
    """
    if not timed:
        raise DataError(
            f"{where}: lengths (the third of an example) of data without a time "
            "axis: leave them out, or set timed = true"
        )
    if tuple(lengths.shape) != (len(inputs),):
        raise DataError(f"{where}: lengths are {list(lengths.shape)}, must be [{len(inputs)}]")
    known = (lengths >= 1) & (lengths <= inputs.shape[1]) & (lengths % 1 == 0)
    if not bool(known.all()):
        raise DataError(f"{where}: lengths must be whole numbers from 1 to {inputs.shape[1]}")
    return lengths.long()


def ended(inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return inputs ``[B, T, ...]`` with zeros behind the end of each trial."""
    going = torch.arange(inputs.shape[1]) < lengths[:, None]
    return inputs.where(going.view(*going.shape, *[1] * (inputs.dim() - 2)), 0)


def missing(targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return targets that are missing behind the end of each trial, if they have a time axis."""
    if targets.dim() < 2 or targets.shape[1] != inputs.shape[1]:
        return targets
    return without(targets, torch.arange(inputs.shape[1]) >= lengths[:, None])


def without(targets: Tensor, absent: Tensor) -> Tensor:
    """Return targets that are missing where ``absent``, NaN or ``MISSING``."""
    absent = absent.view(*absent.shape, *[1] * (targets.dim() - absent.dim()))
    if targets.dtype == torch.bool:
        targets = targets.float()
    return targets.masked_fill(absent, torch.nan if targets.is_floating_point() else MISSING)
