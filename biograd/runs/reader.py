"""Read a run: a finished file, or the folder of one that still goes or was killed.

Both give the same answers; in a folder, every segment is compared with its digest when it is
first read. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from biograd.errors import RecipeError, RunFileError, natural, nearest
from biograd.runs.checked import PLAIN, CheckedFile
from biograd.runs.contents import Commit, Contents, described, find
from biograd.runs.layout import STATISTICS, Array, LayerInfo, Probe, counted_by, grows, required
from biograd.runs.parts.segments import Sources, table_rows
from biograd.runs.storage import RunPaths

if TYPE_CHECKING:
    from biograd.runs.checkpoint import Checkpoint

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Spikes:
    """All spikes of one layer, sorted by time in one continuous raster.

    Trial ``k`` owns ``timestamps[trial_ptr[k]:trial_ptr[k + 1]]``.

    Attributes:
        timestamps: ms, float64 ``[spike]``.
        node_ids: index of the unit, uint64 ``[spike]``.
        trial_ids: row of the trials, uint32 ``[spike]``.
        trial_ptr: uint64 ``[trial + 1]``.
    """

    timestamps: Array
    node_ids: Array
    trial_ids: Array
    trial_ptr: Array

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.timestamps)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of a run: logical bytes, and bytes on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored: int


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading, given ``run.h5`` or ``run.h5.parts``.

    Of a run that still goes, it shows what was committed when it was opened.

    Raises:
        RunFileError: there is no run, it is damaged, or it is from a newer version.
    """
    return Run(find(RunPaths.of(path)))


class Run:
    """One run; see :func:`open_run`."""

    def __init__(self, contents: Contents) -> None:
        """Show what was found."""
        self._contents = contents

    def __enter__(self) -> Run:
        """Return the run; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Return path, status and layers."""
        return f"<run {self.path} ({self.status}), layers: {', '.join(self.layers) or 'none'}>"

    def close(self) -> None:
        """Close the file."""
        self._contents.close()

    def _ask(self, question: Callable[[Sources], Answer]) -> Answer:
        """Answer from the sources; if they were packed meanwhile, from the finished file."""
        where = self._contents.place
        try:
            return question(self._contents.sources)
        except FileNotFoundError:
            self._contents = find(where)
        try:
            return question(self._contents.sources)
        except FileNotFoundError as error:
            message = f"{error.filename or where.parts}: is missing, though it was committed"
            raise RunFileError(message) from error

    @property
    def path(self) -> Path:
        """The finished file, or the parts folder if there is none yet."""
        place = self._contents.place
        return place.file if self._contents.packed else place.parts

    @property
    def sealed(self) -> bool:
        """Whether a digest says that all is as it was written; the first run files had none."""
        return self._contents.sealed

    @property
    def status(self) -> str:
        """``running``, ``completed``, ``interrupted`` or ``crashed``."""
        return self._contents.status

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run says of itself: seed, device, versions, times."""
        return described(self._contents)

    def attribute(self, name: str) -> str:
        """Return a text that every run has among its attributes.

        Raises:
            RunFileError: the run lacks it.
        """
        value = self._contents.attributes.get(name)
        if not isinstance(value, str):
            raise RunFileError(f"{self.path}: is damaged (it lacks the attribute {name})")
        return value

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that repeats the run."""
        return self._contents.config

    @property
    def environment(self) -> dict[str, Any]:
        """Where the run was made."""
        return self._contents.environment

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What another program logged about its settings."""
        return self._contents.hyperparameters

    @property
    def credit(self) -> dict[str, Any]:
        """The ``shape`` of each parameter and whose ``credit`` it has; empty in early files."""
        return self._contents.credit

    @property
    def code(self) -> dict[str, dict[str, str]]:
        """The text of the user's own code, by ``model``, ``loss``, ``reset`` and file."""
        return self._contents.code

    @property
    def summary(self) -> dict[str, Any]:
        """What came out in the end; empty until then."""
        return self._contents.summary

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """What is recorded, by module path."""
        return dict(self._contents.layers)

    @property
    def probe(self) -> Probe | None:
        """The stimuli of all snapshots."""
        return self._contents.probe

    @property
    def streams(self) -> list[str]:
        """Names of the streams of scalars."""
        found: set[str] = set()

        def look(sources: Sources) -> None:
            for file in sources:
                found.update(file.members("scalars"))

        self._ask(look)
        return sorted(found, key=natural)

    def scalars(self, stream: str) -> dict[str, Array]:
        """Return the columns of a stream: step, epoch, wall_time and the metrics, ``[row]``.

        Raises:
            RunFileError: there is no such stream.
        """
        table = self._table(f"scalars/{stream}")
        if not table:
            raise RunFileError(
                f"{self.path}: no stream {stream!r}: {nearest(stream, self.streams)}"
            )
        return table

    def _table(self, prefix: str) -> dict[str, Array]:
        columns = self._ask(lambda sources: sources.columns(prefix))
        names = sorted(columns, key=natural)
        table = {name.removeprefix(prefix + "/"): columns[name] for name in names}
        lacking = [name for name in required(prefix) if table and name not in table]
        if lacking:
            raise RunFileError(f"{self.path}: /{prefix} is damaged (it lacks {lacking[0]})")
        return table

    @property
    def snapshots(self) -> dict[str, Array]:
        """Step, epoch and wall_time of every snapshot, ``[snapshot]``."""
        return self._table("snapshots")

    @property
    def trials(self) -> dict[str, Array]:
        """start_ms, stop_ms, snapshot, probe and label of every trial, ``[trial]``."""
        return self._table("trials")

    @property
    def params(self) -> dict[str, dict[str, Array]]:
        """Measures of every parameter, ``[snapshot]``."""
        return self._groups("params")

    @property
    def learning(self) -> dict[str, dict[str, Array]]:
        """Measures of every layer's learning, ``[snapshot]``."""
        return self._groups("learning")

    def _groups(self, prefix: str) -> dict[str, dict[str, Array]]:
        groups: dict[str, dict[str, Array]] = {}
        for name, values in self._table(prefix).items():
            group, column = name.split("/")
            groups.setdefault(group, {})[column] = values
        return groups

    def activation(self, layer: str, snapshot: int | None = None) -> Array:
        """Return the activation of a layer, float32 ``[snapshot, probe, unit]``.

        Args:
            layer: module path.
            snapshot: read only this one, ``[probe, unit]``; negative counts from the end.

        Raises:
            RunFileError: there is no such layer, or nothing of it was recorded.
        """
        name = f"layers/{self._layer(layer)}/activation"
        if snapshot is None:
            values = self._ask(lambda sources: sources.columns(f"layers/{layer}")).get(name)
        else:
            count = len(self.snapshots.get("step", ()))
            index = snapshot + count if snapshot < 0 else snapshot
            if not 0 <= index < count:
                raise RunFileError(f"{self.path}: no snapshot {snapshot}, the run has {count}")
            values = self._ask(lambda sources: sources.row(name, index))
        if values is None:
            raise RunFileError(f"{self.path}: nothing was recorded of layer {layer!r}")
        return values

    def statistics(self, layer: str) -> dict[str, Array]:
        """Return mean, std, frac_active and max over the probes, ``[snapshot, unit]`` each."""
        table = self._table(f"layers/{self._layer(layer)}/stats")
        return {name: table[name] for name in STATISTICS if name in table}

    def spikes(self, layer: str) -> Spikes:
        """Return all spikes of a spiking layer.

        Raises:
            RunFileError: there is no such layer, or nothing of it was recorded.
        """
        group = f"spikes/{self._layer(layer)}"
        values = self._ask(lambda sources: sources.ragged(group))
        if not values:
            raise RunFileError(f"{self.path}: no spikes were recorded of layer {layer!r}")
        return Spikes(**values)

    def _layer(self, layer: str) -> str:
        if layer not in self._contents.layers:
            raise RunFileError(f"{self.path}: no layer {layer!r}: {nearest(layer, self.layers)}")
        return layer

    @property
    def commits(self) -> Array:
        """Segment, step, rank and time in ns of every commit, int64 ``[commit, 4]``."""
        return self._contents.numbers

    @property
    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints that can be read."""
        return sorted({commit.step for commit in self._available()})

    def _available(self) -> list[Commit]:
        named = [commit for commit in self._contents.commits if commit.checkpoint]
        if self._contents.packed:
            return named
        folder = self._contents.place.parts / "checkpoints"
        return [commit for commit in named if (folder / f"{commit.checkpoint}.json").exists()]

    @property
    def last_step(self) -> int:
        """The step of the last checkpoint, as that says itself.

        Raises:
            RunFileError: there is none, or it is damaged.
        """
        step = self.checkpoint()[1].get("step")
        if type(step) is not int or not 0 <= step < 2**53:
            raise RunFileError(f"{self.path}: its checkpoint is damaged (step is {step!r})")
        return step

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """Return the tensors and the meta of a checkpoint, the last one if ``step`` is None.

        Raises:
            RecipeError: there is none of this step.
            RunFileError: there is none, or it is damaged.
        """
        from biograd.runs import checkpoint
        from biograd.runs.parts.resuming import packed_checkpoint

        found = [commit for commit in self._available() if step in (None, commit.step)]
        if not found:
            if step is None or not self.checkpoints:
                raise RunFileError(f"{self.path}: has no checkpoint")
            known = ", ".join(map(str, self.checkpoints))
            raise RecipeError(f"{self.path}: has no checkpoint of step {step} (there are: {known})")
        commit = found[-1]
        if self._contents.packed:
            body, text = packed_checkpoint(self._contents, commit)
            return checkpoint.from_bytes(body, text, f"{self.path}: checkpoint {commit.step}")
        path = self._contents.place.parts / "checkpoints" / str(commit.checkpoint)
        return checkpoint.load(path, commit.checkpoint_sha256)

    def tree(self) -> list[Entry]:
        """Return every data set with its shape, dtype and sizes, sorted by name.

        In a parts folder these are those that grow, with the rows of all segments together.
        """
        entries: dict[str, Entry] = {}

        totals: Counter[str] = Counter()

        def look(sources: Sources) -> None:
            entries.clear()
            totals.clear()
            for file in sources:
                totals.update(table_rows(file))
                for entry in _entries(file):
                    entries[entry.name] = _add(entries.get(entry.name), entry)

        self._ask(look)
        return [_full(entries[name], totals) for name in sorted(entries, key=natural)]


def _entries(file: CheckedFile) -> Iterator[Entry]:
    for name in file.datasets():
        item = file.dataset(name, PLAIN + "O")
        yield Entry(name, item.shape, str(item.dtype), item.nbytes, item.id.get_storage_size())


def _add(total: Entry | None, entry: Entry) -> Entry:
    if total is None:
        return entry
    rows = total.shape[0] + entry.shape[0]
    stored = total.stored + entry.stored
    return dataclasses.replace(entry, shape=(rows, *entry.shape[1:]), stored=stored)


def _full(entry: Entry, totals: Mapping[str, int]) -> Entry:
    """Count the rows of the table, also where a segment lacks the column."""
    shape = entry.shape
    if grows(entry.name) and counted_by(entry.name) in totals:
        rows = totals[counted_by(entry.name)] + entry.name.endswith("/trial_ptr")
        shape = (rows, *shape[1:])
    nbytes = math.prod(shape) * np.dtype(entry.dtype).itemsize
    return dataclasses.replace(entry, shape=shape, nbytes=nbytes)
