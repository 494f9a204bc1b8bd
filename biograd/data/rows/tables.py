"""Tables of arrays by name, in memory, in ``.npz`` and in HDF5: which array is what.

===================  ===============================================================================
``x``, ``y``         inputs ``[N, *shape]`` or ``[N, T, *shape]``, and targets ``[N, ...]``
``times, units``     events in place of ``x``: rows of different lengths, or flat with ``offsets``
                     ``[N + 1]``
``mask``             ``[N]`` or ``[N, T]``: whether there is a target
``lengths``          steps of each trial, ``[N]``
``weight``           of each example, ``[N]``
``group``            rows of one group stay together when rows are divided, ``[N]``
``split``            ``train``, ``validation`` or ``test`` of each row, ``[N]``
===================  ===============================================================================

Each with ``_train``, ``_validation``, ``_test`` behind it, or once for all rows.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from biograd.data.choosing import SPLITS
from biograd.data.request import Parts, Request
from biograd.data.rows.arrays import (
    Arrays,
    as_inputs,
    as_targets,
    ended,
    missing,
    tensor,
    whole_lengths,
    without,
)
from biograd.data.rows.events import TO_MS, Events, Flat, of_request
from biograd.data.rows.lazy_rows import LazyRows
from biograd.data.source import Source, original, rows_of
from biograd.errors import DataError, RecipeError, nearest

ROLES = ("x", "y", "times", "units", "offsets", "mask", "lengths", "weight", "group", "split")
ALIASES = {
    "X": "x", "inputs": "x", "data": "x",
    "Y": "y", "targets": "y", "labels": "y",
    "spikes/times": "times", "spikes/units": "units", "spikes/offsets": "offsets",
}  # fmt: skip
"""Other names; ``spikes/...`` and ``labels`` are those of the Spiking Heidelberg Digits."""
ASIDE = "extra/"
"""Names that begin so are left aside unless ``keys`` names them."""
Column = Any
"""Anything with ``shape`` that gives rows when indexed."""
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class About:
    """What a file says of its arrays: attributes of HDF5, a JSON text ``meta`` in ``.npz``."""

    dt_ms: float = 0.0
    time_unit: str = ""
    n_units: int = 0
    axes: str = ""
    classes: int = 0
    task: str = ""
    licence: str = ""
    source: str = ""

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str, strict: bool = True) -> About:
        """Return what a table says; what is not a field of it is refused, or ignored."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in table:
            if strict and name not in fields:
                raise DataError(f"{where}: meta: unknown key {name}: {nearest(name, fields)}")
        try:
            kinds = {name: type(getattr(cls, name)) for name in fields}
            return cls(**{k: _as(kinds[k], _plain(v)) for k, v in table.items() if k in fields})
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}: meta: {error}") from error


def _meta(text: Any, where: str) -> dict[str, Any]:
    """Return the table that a JSON text holds."""
    try:
        found = json.loads(str(np.asarray(text)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: meta: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: meta: must be a table")
    return found


def _as(kind: type[Any], value: Any) -> Any:
    """Return a value as a text, or as the number that it is; programs write 5 as 5.0."""
    found = kind(value)
    number = kind is not str
    if found != value or (number and (isinstance(value, bool) or not 0 <= found < float("inf"))):
        raise ValueError(f"{value!r} is not {'a text' if kind is str else 'such a number'}")
    return found


def _plain(value: Any) -> Any:
    value = (
        value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    )
    return value.decode() if isinstance(value, bytes) else value


def read(
    table: Mapping[str, Column],
    request: Request,
    where: str,
    about: About = About(),
    digest: str = "",
) -> Parts:
    """Return the sources of a table of arrays.

    Args:
        where: names the file; it opens every message.
        about: what the file says of them.
        digest: of the file; "": the sources compute their own.

    Raises:
        DataError, RecipeError: one line with the file and the key.
    """
    table = dict(table)
    if "meta" in table:
        about = About.of(_meta(table.pop("meta"), where), where)
    if about.dt_ms and not np.isclose(about.dt_ms, request.dt_ms):
        raise DataError(
            f"{where}: steps of dt_ms = {about.dt_ms:g}, the encoding has encoding.dt_ms = "
            f"{request.dt_ms:g}: set it to that of the data"
        )
    parts = _by_split(table, request.recipe.keys, where)
    common = parts.pop("", {})
    if common and parts:
        first, other = next(iter(common)), next(iter(parts))
        raise DataError(f"{where}: {first} for all rows beside others of {other}: give one kind")
    reader = _Reader(request, about, where, digest)
    if not common:
        if "train" not in parts:
            raise DataError(f"{where}: no x_train and y_train, nor x and y")
        sources = {name: reader.source(parts[name], name) for name in SPLITS if name in parts}
        groups = _numbered(parts["train"].get("group"), len(sources["train"]), where)
        return Parts(sources, groups, tuple(reader.notes), about.classes, about.task)
    whole = reader.source(common, "")
    sources = {"train": whole}
    groups = _numbered(common.get("group"), len(whole), where)
    if "split" in common:
        sources = _as_given(whole, np.asarray(common["split"][:]), where)
        trained = sources["train"]
        every = torch.arange(len(trained))
        groups = None if groups is None else groups[original(trained, every)]
    return Parts(sources, groups, tuple(reader.notes), about.classes, about.task)


def _by_split(
    table: Mapping[str, Column], keys: Mapping[str, str], where: str
) -> dict[str, dict[str, Column]]:
    """Return the columns by split and role; the split "" is all rows."""
    found: dict[str, dict[str, Column]] = {}
    for role, name in keys.items():
        part = _parsed(role)
        if part is None:
            raise RecipeError(f"{where}: keys.{role}: {nearest(role, ROLES)}")
        if name.strip("/") not in table:
            raise DataError(f"{where}: keys.{role} = {name!r}: {nearest(name, table)}")
        found.setdefault(part[1], {})[part[0]] = table[name.strip("/")]
    for name, column in table.items():
        if getattr(column, "shape", None) == ():
            raise DataError(f"{where}: {name}: one value: an array has a row for each example")
    named = {name.strip("/") for name in keys.values()}
    by_keys = {role for part in found.values() for role in part}
    chosen = {"x", "y"} <= by_keys  # no others are asked for
    for name, column in table.items():
        part = _parsed(name)
        if name in named or name.startswith(ASIDE) or chosen:
            continue
        if part is None:
            raise DataError(f"{where}: unknown key {name!r}: {nearest(name, (*ROLES, *ALIASES))}")
        role, split = part
        if role in found.setdefault(split, {}):
            raise DataError(f"{where}: two arrays are {role}, the second is {name!r}")
        found[split][role] = column
    return found


def _parsed(name: str) -> tuple[str, str] | None:
    """Return role and split of a name, None if it is none."""
    base, _, split = name.rpartition("_")
    base, split = (base, split) if split in SPLITS else (name, "")
    role = ALIASES.get(base, base)
    return (role, split) if role in ROLES else None


def _as_given(whole: Source, split: np.ndarray, where: str) -> dict[str, Source]:
    """Divide rows as the column ``split`` says."""
    words = np.char.decode(split) if split.dtype.kind == "S" else np.asarray(split, dtype=object)
    words = np.array([_plain(word) for word in words], dtype=str)
    for word in np.unique(words):
        if word not in SPLITS:
            raise DataError(f"{where}: split {word!r}: {nearest(word, SPLITS)}")
    if "train" not in words:
        raise DataError(f"{where}: split: no row is of train")
    return {
        name: rows_of(whole, torch.from_numpy(np.flatnonzero(words == name)))
        for name in SPLITS
        if (words == name).any()
    }


def _numbered(column: Column | None, rows: int, where: str) -> Tensor | None:
    """Return a number for each row's group."""
    if column is None:
        return None
    groups = np.asarray(column[:])
    if len(groups) != rows:
        raise DataError(f"{where}: group has {len(groups)} rows, the data {rows}")
    return torch.from_numpy(np.unique(groups.astype(str), return_inverse=True)[1].reshape(-1))


class _Reader:
    """Makes sources of columns."""

    def __init__(self, request: Request, about: About, where: str, digest: str) -> None:
        self.request, self.about, self.where, self.digest = request, about, where, digest
        self.notes: list[str] = []

    def source(self, columns: dict[str, Column], split: str) -> Source:
        where = f"{self.where}: {split} split" if split else self.where
        events = "times" in columns
        for need in ("times", "units", "y") if events else ("x", "y"):
            if need not in columns:
                raise DataError(f"{where}: no {need}{'_' * bool(split)}{split}")
        if events and "x" in columns:
            raise DataError(f"{where}: both x and times: give one of them")
        if not events and "offsets" in columns:
            raise DataError(f"{where}: offsets without times and units")
        targets = as_targets(columns["y"][:], f"{where}: y")
        rows = len(targets)
        weight = self._row("weight", columns, rows, where)
        if events:
            return self._events(columns, targets, weight, where)
        x = columns["x"]
        if "time" in self.about.axes and not self.request.timed:
            raise DataError(f"{where}: axes = {self.about.axes!r}, but timed is not set")
        lazy = getattr(x, "lazy", False)
        if lazy and not {"mask", "lengths"} & columns.keys():
            return LazyRows(x, targets, self.request.timed, weight, self.digest, where)
        inputs = as_inputs(x[:], f"{where}: x")
        if self.about.axes.split(",")[:2] == ["time", "trial"]:
            inputs = inputs.transpose(0, 1).contiguous()
            self.notes.append(f"{where}: x was time first and is transposed")
        if len(inputs) != rows:
            raise DataError(f"{where}: {len(inputs)} rows of x, {rows} of y")
        return self._arrays(inputs, targets, weight, columns, where)

    def _arrays(
        self,
        inputs: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        columns: dict[str, Column],
        where: str,
    ) -> Arrays:
        timed, rows = self.request.timed, len(inputs)
        if timed and inputs.dim() < 3:
            raise DataError(f"{where}: x is {list(inputs.shape)}: with time it is [N, T, channels]")
        lengths = self._row("lengths", columns, rows, where)
        if lengths is not None:
            lengths = whole_lengths(lengths, inputs, timed, where)
            inputs, targets = ended(inputs, lengths), missing(targets, inputs, lengths)
        if "mask" in columns:
            mask = tensor(columns["mask"][:], f"{where}: mask")
            if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
                raise DataError(f"{where}: mask must be true or false; weights go into weight")
            if tuple(mask.shape) != tuple(targets.shape[: mask.dim()]):
                shapes = f"{list(mask.shape)}, y {list(targets.shape)}"
                raise DataError(f"{where}: mask is {shapes}")
            targets = without(targets, ~mask.bool())
        return Arrays(inputs, targets, timed, lengths, weight)

    def _row(self, role: str, columns: dict[str, Column], rows: int, where: str) -> Tensor | None:
        if role not in columns:
            return None
        found = tensor(columns[role][:], f"{where}: {role}")
        if tuple(found.shape) != (rows,):
            raise DataError(f"{where}: {role} is {list(found.shape)}, must be [{rows}]")
        return found

    def _events(
        self, columns: dict[str, Column], targets: Tensor, weight: Tensor | None, where: str
    ) -> Events:
        recipe = self.request.recipe
        for role in ("mask", "lengths"):
            if role in columns:
                raise DataError(f"{where}: {role}: events say themselves when they end")
        unit = recipe.time_unit or self.about.time_unit
        if unit not in TO_MS:
            raise DataError(
                f"{where}: nothing says whether times are in s, ms or us: set dataset.time_unit"
            )
        times, channels = _held(columns["times"]), _held(columns["units"])
        if "offsets" in columns:
            offsets = np.asarray(columns["offsets"][:]).astype(np.int64)
            times, channels = Flat(times, offsets), Flat(channels, offsets)
        units = recipe.units or self.about.n_units or self._highest(channels) + 1
        shape = recipe.shape if math.prod(recipe.shape) == units and len(recipe.shape) > 1 else ()
        return of_request(
            self.request,
            times,
            channels,
            targets,
            units,
            unit,
            sensor=shape,
            digest=self.digest,
            weight=weight,
            where=where,
        )

    @staticmethod
    def _highest(channels: Any) -> int:
        return max(int(max(channels[row], default=0)) for row in range(len(channels)))


def _held(column: Column) -> Any:
    """Return the values of a column in memory, where it can have them there."""
    return column.held() if hasattr(column, "held") else column


def joined(found: Mapping[str, Parts], where: str) -> Parts:
    """Return the parts of one file for all rows (""), or of a file for each split, as one.

    Raises:
        DataError: a file for one split is itself divided.
    """
    if "" in found:
        return found[""]
    for split, part in found.items():
        if list(part.sources) != ["train"]:
            raise DataError(f"{where}: the file for {split} holds splits of its own")
    first = found.get("train", next(iter(found.values())))
    notes = tuple(note for part in found.values() for note in part.notes)
    classes = max(part.classes for part in found.values())
    sources = {split: part.sources["train"] for split, part in found.items()}
    return Parts(sources, first.groups, notes, classes, first.task)
