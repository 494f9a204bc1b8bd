"""What a run has recorded, to work with: numbers, activity, spikes, weights, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from biograd.errors import RunFileError, natural, nearest
from biograd.runs.contents import Contents, find
from biograd.runs.layout import STATISTICS, Array, LayerInfo, Probe, as_array
from biograd.runs.parts.segments import Sources
from biograd.runs.schema.meaning import meaning
from biograd.runs.schema.run_tables import required, row_shape
from biograd.runs.views.confusion import Confusion, confusion
from biograd.runs.views.recorded_spikes import Spikes
from biograd.runs.views.snapshot_array import SnapshotArray

if TYPE_CHECKING:
    import pandas
    import xarray

Answer = TypeVar("Answer")


class RecordedRun:
    """What was recorded in one run; nothing is read before it is asked for."""

    def __init__(self, contents: Contents) -> None:
        """Show what was found."""
        self._contents = contents

    @property
    def path(self) -> Path:
        """The finished file, or the parts folder if there is none yet."""
        place = self._contents.place
        return place.file if self._contents.packed else place.parts

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

    def variable(self, layer: str, name: str) -> SnapshotArray:
        """Return a variable of a layer that the recipe asked for, read when used.

        Args:
            layer: module path.
            name: "potential", "synaptic_current", "adaptation", each ``[snapshot, probe, time,
                unit]``, or "credit".

        Raises:
            RunFileError: there is no such layer, or it was not recorded.
        """
        info = self._contents.layers[self._layer(layer)]
        coords = {"unit": info.units, "time": np.arange(info.n_steps or 0) * (info.dt_ms or 1)}
        return self.named(f"layers/{layer}/{name}", coords)

    def weights(self, name: str, what: Literal["value", "gradient"] = "value") -> SnapshotArray:
        """Return a parameter at the snapshots, or its gradient on the stimuli, read when used.

        Raises:
            RunFileError: there is no such parameter, or it was not recorded.
        """
        known = [one.split("/")[1] for one in self._contents.rows if one.startswith("weights/")]
        if name not in known:
            raise RunFileError(f"{self.path}: no weights {name!r}: {nearest(name, known)}")
        return self.named(f"weights/{name}/{what}", {})

    @property
    def further_rows(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of each data set that only some runs have."""
        return {name: row.shape for name, row in self._contents.rows.items()}

    @property
    def recorded_weights(self) -> list[str]:
        """The parameters whose values are recorded."""
        rows = self._contents.rows
        return [name.split("/")[1] for name in rows if name.endswith("/value") and name[0] == "w"]

    def outputs(self) -> SnapshotArray:
        """Return the outputs of the network on the stimuli, ``[snapshot, probe, ...]``.

        Raises:
            RunFileError: they were not recorded.
        """
        return self.named("outputs/value", {})

    def confusion(self, snapshot: int = -1) -> Confusion:
        """Return how often stimuli of each class were taken for which, at a snapshot.

        Raises:
            RunFileError: outputs were not recorded, or the stimuli have no classes.
        """
        classes = self._contents.recording.get("classes")
        if not classes:
            raise RunFileError(f"{self.path}: its stimuli have no classes that could be confused")
        return confusion(self.outputs()[snapshot], self._probe_label, classes)

    def named(self, name: str, coords: Mapping[str, Array] | None = None) -> SnapshotArray:
        """Return a data set that only some runs have, with the names that it gives its axes.

        Args:
            name: in the file, one of ``further_rows``.
            coords: coordinates of its axes beside those of the stimuli.

        Raises:
            RunFileError: it was not recorded.
        """
        row = self._contents.rows.get(name)
        if row is None:
            raise RunFileError(f"{self.path}: /{name} was not recorded: see [recording]")
        stimuli = {"probe": self._probe_index, "label": self._probe_label}
        own = {
            dim: c
            for dim, c in {**stimuli, **(coords or {})}.items()
            if dim in (*row.dims, "label")
        }
        return self._over_snapshots(
            name, ("snapshot", *row.dims), own if "probe" in row.dims else {}
        )

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
        layers, rows = self._contents.layers, self._contents.rows
        shape = row_shape(name, layers, self.probe, rows)
        if shape is None or not self._ask(lambda sources: sources.holds(name)):
            raise RunFileError(f"{self.path}: nothing was recorded as /{name}")
        return SnapshotArray(
            name,
            lambda start, stop: self._ask(lambda sources: sources.rows(name, start, stop)),
            (self._ask(lambda sources: sources.length(name)), *shape),
            dims,
            {"snapshot": self.snapshots["step"], **coords},
            *meaning(name, layers, rows)[1:],
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
