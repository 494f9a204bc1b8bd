"""Read a run: a finished file, or the folder of one that still goes or was killed.

Both give the same answers; in a folder, every segment is compared with its digest when it is
first read. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from biograd.errors import RecipeError, RunFileError, natural, nearest
from biograd.runs.contents import Commit, Contents, described, find
from biograd.runs.layout import (
    STATISTICS,
    Array,
    LayerInfo,
    Probe,
    as_array,
    required,
    row_shape,
    units_of,
)
from biograd.runs.parts.segments import Sources
from biograd.runs.storage import RunPaths
from biograd.runs.views.entries import Entry, entries
from biograd.runs.views.recorded_spikes import Spikes
from biograd.runs.views.snapshot_array import SnapshotArray

if TYPE_CHECKING:
    import pandas
    import xarray

    from biograd.runs.checkpoint import Checkpoint

Answer = TypeVar("Answer")


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

    def activity(self, layer: str) -> SnapshotArray:
        """Return what a layer did on the stimuli, ``[snapshot, probe, unit]``, read when used.

        Of a spiking layer it is the mean number of spikes a step.

        Raises:
            RunFileError: there is no such layer, or nothing of it was recorded.
        """
        coords = {"probe": self._probe_index, "label": self._probe_label}
        coords["unit"] = self._contents.layers[self._layer(layer)].units
        name = f"layers/{layer}/activation"
        return self._over_snapshots(name, ("snapshot", "probe", "unit"), coords)

    @property
    def _probe_index(self) -> Array:
        return np.zeros(0, np.int64) if self.probe is None else as_array(self.probe.index)

    @property
    def _probe_label(self) -> Array:
        return np.zeros(0, np.int64) if self.probe is None else as_array(self.probe.label)

    def _over_snapshots(
        self, name: str, dims: tuple[str, ...], coords: Mapping[str, Array]
    ) -> SnapshotArray:
        """Return a data set with a row for each snapshot."""
        shape = row_shape(name, self._contents.layers, self.probe)
        if shape is None or not self._ask(lambda sources: sources.holds(name)):
            raise RunFileError(f"{self.path}: nothing was recorded as /{name}")
        return SnapshotArray(
            name,
            lambda start, stop: self._ask(lambda sources: sources.rows(name, start, stop)),
            (self._ask(lambda sources: sources.length(name)), *shape),
            dims,
            {"snapshot": self.snapshots["step"], **coords},
            units_of(name, self._contents.layers) or "",
        )

    def statistics(self, layer: str) -> dict[str, Array]:
        """Return mean, std, frac_active and max over the probes, ``[snapshot, unit]`` each."""
        table = self._table(f"layers/{self._layer(layer)}/stats")
        return {name: table[name] for name in STATISTICS if name in table}

    def spikes(self, layer: str) -> Spikes:
        """Return the spikes of a spiking layer, of all trials; read when used.

        Raises:
            RunFileError: there is no such layer, or nothing of it was recorded.
        """
        group = f"spikes/{self._layer(layer)}"
        pointer = self._ask(lambda sources: sources.pointer(group))
        if pointer is None:
            raise RunFileError(f"{self.path}: no spikes were recorded of layer {layer!r}")

        def read(name: str, start: int, stop: int) -> Array:
            return self._ask(lambda sources: sources.spikes(f"{group}/{name}", start, stop))

        return Spikes(layer, self._contents.layers[layer], self.trials, pointer, read)

    def frame(self, stream: str = "epoch") -> pandas.DataFrame:
        """Return a stream of scalars as a DataFrame by step.

        Raises:
            RunFileError: there is no such stream.
            MissingExtraError: pandas is not installed.
        """
        from biograd.runs.views.tabulated import frame

        return frame(self.scalars(stream), stream)

    def to_xarray(self) -> xarray.DataTree:
        """Return scalars, measures and activity as a DataTree; large arrays are read when used.

        Raises:
            MissingExtraError: xarray is not installed.
        """
        from biograd.runs.views.tabulated import data_tree

        return data_tree(self)

    def to_rsatoolbox(self, layer: str, snapshot: int = -1) -> Any:
        """Return the activity of a layer as a data set of rsatoolbox, stimuli by units.

        Its observations say which are ``silent``: these have no correlation with any other.

        Raises:
            MissingExtraError: rsatoolbox is not installed.
        """
        from biograd.runs.views.converters import rsatoolbox_dataset

        return rsatoolbox_dataset(self.activity(layer), snapshot)

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
        return self._ask(entries)
