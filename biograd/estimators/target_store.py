"""One row of trainable tensors for every training example, in memory-mapped temporary files.

Rows are found by the example's number in the data set.  Tensors are buffers, so that checkpoints
keep them; the files have no name and vanish with the last tensor that looks into them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biograd.errors import BiogradError, CapabilityError, DataError
from biograd.ranks import parallel

SPARE = 1.25
"""A file that is too short is replaced by one with so many times the rows."""
TOLERANCE = 1e-6
"""Relative difference of two fingerprints of the same datum (sums in another order)."""


class TargetStore(nn.Module):
    """Tensors ``[rows, *U]`` by name, with a fingerprint of the datum that each row belongs to.

    The rows stay on the CPU whatever device the network is on, and come into being when they are
    first asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.names: tuple[str, ...] = ()
        self._files: dict[str, Tensor] = {}
        self.seen: Tensor
        self.fingerprints: Tensor
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("fingerprints", torch.zeros(0, dtype=torch.float64))

    def shape(self, units: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        """Give the rows of every name their shape ``U``; what was stored is dropped."""
        self.names = tuple(units)
        self._files = {_key(name): torch.empty(0, *u, dtype=dtype) for name, u in units.items()}
        self.rows = 0
        self._resize(0)

    def find(self, index: Tensor, data: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the rows ``[B, *U]`` of the examples ``index`` and whether each has been kept.

        Args:
            index: numbers of the examples in the data set, ``[B]``.
            data: what these examples look like to the first layer, ``[B, ...]``.

        Raises:
            CapabilityError: the numbers cannot be those of the examples.
            DataError: an example does not look as it did.
        """
        index = _checked(index, len(data))
        if len(index) and int(index.max()) >= self.rows:
            self._resize(int(index.max()) + 1)
        seen, kept = self.seen[index], self.fingerprints[index]
        now = fingerprint(data)
        changed = seen & ((now - kept).abs() > TOLERANCE * (1 + kept.abs()))
        if changed.any():
            raise DataError(
                f"example {int(index[changed][0])} is not the datum that it was: targets are kept "
                "for each example, so that augmented or randomly encoded data cannot be learned "
                "from; use estimator = 'predictive_coding'"
            )
        found = {name: self._files[_key(name)][index].to(data.device) for name in self.names}
        return found, seen.to(data.device)

    @torch.no_grad()
    def keep(self, index: Tensor, data: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store the rows ``[B, *U]`` of the examples ``index``, found before."""
        index = parallel.gather(index.cpu())  # of all ranks: an example may go elsewhere next
        if int(index.max()) >= self.rows:
            self._resize(int(index.max()) + 1)
        for name, value in values.items():
            rows = self._files[_key(name)]
            rows[index] = parallel.gather(value.detach().to("cpu", rows.dtype))
        self.seen[index] = True
        self.fingerprints[index] = parallel.gather(fingerprint(data))

    def _resize(self, rows: int) -> None:
        """Let the buffers show ``rows`` rows; new ones are zero and not seen."""
        for key, whole in self._files.items():
            if rows > len(whole):
                longer = mapped((int(SPARE * rows), *whole.shape[1:]), whole.dtype)
                longer[: self.rows] = whole[: self.rows]
                self._files[key] = longer
            self.register_buffer(key, self._files[key][:rows])
        for name in ("seen", "fingerprints"):
            old = self.get_buffer(name)
            new = old.new_zeros(rows)
            new[: min(rows, len(old))] = old[:rows]
            self.register_buffer(name, new)
        self.rows = rows

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """Take as many rows as were saved."""
        self._resize(len(state_dict[f"{prefix}seen"]))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def _apply(self, _change: Any, recurse: bool = True) -> TargetStore:
        """Stay where and what it is when the estimator is moved to another device."""
        return self


def fingerprint(data: Tensor) -> Tensor:
    """Return one number for each datum, ``[B]``: a sum with weights that no two units share."""
    flat = data.detach().flatten(1).to("cpu", torch.float64)
    return flat @ torch.cos(torch.arange(1.0, flat.shape[1] + 1, dtype=torch.float64))


def mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in a nameless temporary file, which the system may take out of memory.

    Raises:
        BiogradError: the temporary folder has no room.
    """
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not size:
        return torch.zeros(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file.fileno(), size)
            memory = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise BiogradError(
            f"no room for {size / 1e6:.0f} MB of targets in {tempfile.gettempdir()}: set TMPDIR to "
            "a folder with more"
        ) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room at once: a full disk would otherwise end the process at some later write."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _checked(index: Tensor, batch: int) -> Tensor:
    whole = not (index.is_floating_point() or index.dtype == torch.bool)
    if index.dim() != 1 or len(index) != batch or not whole or bool((index < 0).any()):
        raise CapabilityError(
            f"the index must hold the row of each of the {batch} examples in the data set, "
            f"whole numbers from 0, not {index.dtype} {tuple(index.shape)}"
        )
    return index.cpu().long()


def _key(name: str) -> str:
    return f"row {name}".replace(".", "/")
