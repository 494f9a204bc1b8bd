"""An array with a row for each snapshot, read row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.errors import RunFileError
from biograd.runs.layout import Array

if TYPE_CHECKING:
    import xarray


class SnapshotArray:
    """What a run has recorded of one quantity at all snapshots; ``array[k]`` reads one of them.

    ``numpy.asarray`` reads all.  A snapshot that lacks the quantity is NaN.

    Attributes:
        name: of the data set.
        shape: ``(snapshot, ...)``.
        dims: names of the axes.
        coords: coordinates by the name of their axis; ``label`` belongs to ``probe``.
        units: text, "" if it has none.
        description: one sentence.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int, int], Array],
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        coords: Mapping[str, Array],
        units: str = "",
        description: str = "",
    ) -> None:
        """Show a data set, of which ``read`` gives the rows from one to another."""
        self.name, self.shape, self.dims, self._read = name, shape, dims, read
        self.coords, self.units, self.description = dict(coords), units, description

    def __len__(self) -> int:
        """Return the number of snapshots."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Return the name and the named axes."""
        axes = ", ".join(f"{n} {size}" for n, size in zip(self.dims, self.shape, strict=True))
        return f"<{self.name}: {axes}{f', {self.units}' if self.units else ''}>"

    @property
    def steps(self) -> Array:
        """The training step of each snapshot, int64 ``[snapshot]``."""
        return self.coords["snapshot"]

    def __getitem__(self, key: Any) -> Array:
        """Return one snapshot, or those of a slice or a list; further axes as NumPy has them.

        Raises:
            RunFileError: there is no such snapshot.
        """
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(first, int | np.integer):
            return self._row(int(first))[rest]
        chosen = np.arange(len(self))[first]
        if len(chosen) and (np.diff(chosen) == 1).all():
            values = self._read(int(chosen[0]), int(chosen[-1]) + 1)
        else:
            rows = [self._row(int(index)) for index in chosen]
            values = np.stack(rows) if rows else self._read(0, 0)
        return values[(slice(None), *rest)]

    def _row(self, index: int) -> Array:
        found = index + len(self) if index < 0 else index
        if not 0 <= found < len(self):
            raise RunFileError(f"{self.name}: no snapshot {index}, the run has {len(self)}")
        return self._read(found, found + 1)[0]

    def __iter__(self) -> Iterator[Array]:
        """Yield one snapshot after the other."""
        return (self._row(index) for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return all snapshots as one array."""
        values = self._read(0, len(self))
        return values if dtype is None else values.astype(dtype)

    def to_xarray(self) -> xarray.DataArray:
        """Return a DataArray with named axes and coordinates, whose values are read when used.

        Raises:
            MissingExtraError: xarray is not installed.
        """
        from biograd.runs.views.tabulated import data_array

        return data_array(self)
