r"""The layout ``biograd-run`` 1.1: names, shapes, units, and the equations of time.

Finished file ``run.h5``::

    /                     format format_version magic version run_id created_at finished_at status
                          parts_id biograd_version ... and whatever the run says about itself
                          (of a module of the user's: network, its text; neurons, encoding, JSON)
    /config /environment /hyperparameters /summary     JSON text, one scalar each
    /README               text, how to read the file
    /recording            JSON text: rows of the data sets that only some runs have, classes
    /credit /code         JSON text: parameter to shape and creditor; the user's code, never run
    /scalars/<stream>/    step i8 | epoch i4 | wall_time f8 [s] | <metric> f4, NaN = missing
    /probe/               index i8 (row of the split) | label i4 | split | input f4, the stimuli
                          source_row i8 (row of what the source gave: of the file of the split,
                          or of all of it if biograd divided it, as load_digits of scikit-learn)
                          target (what the task asks for)
    /snapshots/           step i8 | epoch i4 | wall_time f8 [s]
    /layers/<module>/     snapshot i8 (its step) | probe i8 (its index) | unit i8
                          activation f4 (snapshot, probe, unit)
                          stats/{mean,std,frac_active,max} f4 (snapshot, unit)
                          potential | synaptic_current | adaptation f4 (snapshot, probe, time,
                          unit) | credit, if the recipe asks for them (/recording names them)
    /spikes/<module>/     SONATA: timestamps f8 [ms] | node_ids u8, sorted by time
                          trial_ids u4 (row of /trials) | trial_ptr u8 (trial + 1)
    /trials/              start_ms f8 | stop_ms f8 | snapshot i4 | probe i4 | label i4
    /outputs/             value f4 (snapshot, probe, output)
    /weights/<name>/      value f4 (snapshot, ...) | gradient
    /params/<name>/       norm | update_norm | sparsity f4 (snapshot)
    /learning/<module>/   cos_to_bp | angle_deg | ... f4 (snapshot)
    /progress/commits     i8 (commit, [segment, step, rank, unix_ns])
    /checkpoints/<step>/  tensors u1 (the bytes of a safetensors file) | meta (JSON)

While a run goes on, its data lie in the folder ``run.h5.parts``::

    header.json           what attributes, /config, /environment, /credit, /code, /layers will hold
    probe.h5              /probe
    segments/000012.h5    the rows since the commit before: the same names as in the finished file
    commits.jsonl         one line a commit: the segment and checkpoint it completes, their digests
    checkpoints/<step>.safetensors and <step>.json
    status.json           how the run ended, written just before the segments are merged
    lock                  held by the process that writes

A segment, a checkpoint and a header appear under their name only when they are complete, and
never change; a row counts as written when the commit line that names its segment is on disk.
Every reader therefore sees a state that was once complete, whenever the writer dies.

**Tables.** Data sets that grow belong to a table and have one row for each of its rows: a stream
of scalars, the snapshots (with all layers, parameters and learning measures), the trials. A column
that a segment lacks is NaN there. Spikes are ragged: ``trial_ptr`` counts them, so that trial
``k`` owns the spikes ``trial_ptr[k]:trial_ptr[k + 1]``. In the finished file the axes of the
tables carry HDF5 dimension scales, so that
``xarray.open_dataset("run.h5", group="layers/fc1", engine="h5netcdf")`` has named axes.

**Time.** With ``P`` probes, ``T`` steps of ``dt`` ms and a gap of ``g`` ms, probe ``p`` of
snapshot ``s`` is trial ``k`` and a spike in step ``t`` (0 .. T-1) has the time stamp ``tau``::

    k = s P + p,    start_ms[k] = k (T dt + g),    stop_ms[k] = start_ms[k] + T dt
    tau = start_ms[k] + t dt,    t = round((tau - start_ms[trial_ids]) / dt)

so that any reader of SONATA gets one continuous raster. ``wall_time`` is in seconds since
1970-01-01 UTC, ``unix_ns`` the same in nanoseconds.

**Measures.** ``activation`` is the output of a rate layer, or of a spiking layer the mean number
of spikes a step, ``sum_t s_t / T``. A layer of the user's own module has the kind ``unknown``: its
activation is what the next layer receives, the mean over the steps of a trial. Over the probes,
``frac_active`` is the fraction with activation > 0, ``std`` divides by ``P``.

Why a folder of segments: a compressed HDF5 file that grows in place loses committed rows when its
process is killed, and one that does not compress is several times as large.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from biograd.errors import RecipeError

FORMAT = "biograd-run"
SET = "biograd-set"
"""The format of a file that links several runs."""
VERSION = "1.1"
SONATA_MAGIC = 0x0A7A
SONATA_VERSION = (0, 1)
STATISTICS = ("mean", "std", "frac_active", "max")
COMMIT_COLUMNS = ("segment", "step", "rank", "unix_ns")

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """What a run file says of one layer.

    Attributes:
        n_units: number of units of the layer.
        shape: shape of the units; empty means ``(n_units,)``.
        dt_ms: length of a step (spiking layers).
        n_steps: number of steps of a trial, None without time.
        neuron_params: the neurons that were simulated, as JSON: their constants, or Brian2's
            equations, conditions, namespaces and initial values with units; {}: unknown.
        unit: indices of the recorded units, increasing; None records all.
    """

    kind: Literal["rate", "spiking", "unknown"]
    n_units: int
    shape: tuple[int, ...] = ()
    dt_ms: float | None = None
    n_steps: int | None = None
    neuron_params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: tuple[int, ...] | None = None

    @property
    def units(self) -> Array:
        """Indices of the recorded units, int64."""
        return np.asarray(range(self.n_units) if self.unit is None else self.unit, np.int64)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = dataclasses.asdict(self)
        values["shape"] = list(self.shape or (self.n_units,))
        values["neuron_params"] = dict(self.neuron_params)
        values["unit"] = None if self.unit is None else [int(index) for index in self.unit]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayerInfo:
        """Return the layer whose :meth:`as_json` gave ``values``; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in values.items() if key in known}
        fields["shape"] = tuple(fields.get("shape") or ())
        if fields.get("unit") is not None:
            fields["unit"] = tuple(fields["unit"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Probe:
    """The fixed stimuli that every snapshot shows to the network.

    Attributes:
        index: row of each stimulus in the split that was trained with, int64 ``[probe]``.
        label: class of each stimulus, int32 ``[probe]``.
        split: ``train`` or ``test``, one for all or one for each.
        input: the stimuli themselves, ``[probe, ...]``; optional.
        source_row: row of each stimulus in what the source gave as this split, or as a whole if
            biograd divided it, int64 ``[probe]``; optional.
        gap_ms: silence between two trials in the continuous raster.
        target: what the task asks for on each stimulus, ``[probe, ...]``; optional.
    """

    index: Array
    label: Array
    split: str | Sequence[str] = "test"
    input: Array | None = None
    gap_ms: float = 10.0
    source_row: Array | None = None
    target: Array | None = None

    def __len__(self) -> int:
        """Return the number of stimuli."""
        return len(self.index)

    def arrays(self) -> dict[str, Array]:
        """Return the data sets of ``/probe``."""
        words = [self.split] * len(self) if isinstance(self.split, str) else list(self.split)
        values: dict[str, Array] = {
            "index": as_array(self.index).astype(np.int64),
            "label": as_array(self.label).astype(np.int32),
            "split": np.array([word.encode() for word in words], dtype=np.bytes_),
        }
        if self.input is not None:
            values["input"] = as_array(self.input)
        if self.target is not None:
            values["target"] = as_array(self.target)
        if self.source_row is not None:
            values["source_row"] = as_array(self.source_row).astype(np.int64)
        lengths = {name: len(value) for name, value in values.items()}
        if len(set(lengths.values())) > 1 or len(self) == 0:
            raise RecipeError(f"probe: its parts differ in length: {lengths}")
        return values


def as_array(values: Any) -> Array:
    """Return a NumPy array of an array, a list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def check_name(what: str, name: str) -> str:
    """Return ``name`` if HDF5 can hold it as one link.

    Raises:
        RecipeError: it is empty, a dot, or has a slash.
    """
    if not isinstance(name, str) or name in ("", ".") or "/" in name or "\0" in name:
        raise RecipeError(f"{what} {name!r}: a name must be text without '/', not empty or '.'")
    return name


def check_layers(layers: Mapping[str, LayerInfo], probe: Probe | None) -> None:
    """Check that the layers of one run fit together.

    Raises:
        RecipeError: a name or size is not valid, or spiking layers differ in trial length.
    """
    durations = {}
    for name, layer in layers.items():
        check_name("layer", name)
        if layer.kind not in ("rate", "spiking", "unknown"):
            raise RecipeError(
                f"layer {name}: kind {layer.kind!r} is none of rate, spiking, unknown"
            )
        _check_units(name, layer)
        if layer.kind == "spiking":
            if not layer.dt_ms or not layer.n_steps or layer.dt_ms < 0 or layer.n_steps < 0:
                raise RecipeError(f"layer {name}: a spiking layer needs dt_ms > 0 and n_steps > 0")
            durations[name] = layer.dt_ms * layer.n_steps
    if durations and not math.isclose(min(durations.values()), max(durations.values())):
        raise RecipeError(f"spiking layers differ in trial length (ms): {durations}")
    if probe is not None:
        probe.arrays()


def checked_layer(values: Mapping[str, Any]) -> LayerInfo:
    """Return the layer of a table of which nothing is known.

    Raises:
        RecipeError: a value is not of its type, or the values do not fit together.
    """
    whole = [values.get("n_units"), *_list(values.get("shape")), *_list(values.get("unit"))]
    steps, dt = values.get("n_steps"), values.get("dt_ms")
    sound = (
        all(type(n) is int and 0 <= n < 2**31 for n in [*whole, 0 if steps is None else steps])
        and (dt is None or (type(dt) in (int, float) and 0 <= dt < 1e9))
        and isinstance(values.get("kind"), str)
        and isinstance(values.get("neuron_params"), dict)
    )
    if not sound or (values.get("unit") is None and values["n_units"] > 2**24):
        raise RecipeError("n_units, shape, unit, dt_ms, n_steps, kind or neuron_params")
    layer = LayerInfo.from_json(values)
    check_layers({"layer": layer}, None)
    return layer


def _list(value: object) -> list[Any]:
    if not isinstance(value, list | tuple | None):
        raise RecipeError(f"{value!r} is not a list")
    return list(value or ())


def _check_units(name: str, layer: LayerInfo) -> None:
    units = layer.units
    if layer.n_units < 1 or (layer.shape and math.prod(layer.shape) != layer.n_units):
        raise RecipeError(f"layer {name}: shape {layer.shape} does not have {layer.n_units} units")
    if len(units) == 0 or units[0] < 0 or units[-1] >= layer.n_units or (np.diff(units) < 1).any():
        raise RecipeError(f"layer {name}: unit must increase within 0..{layer.n_units - 1}")


@dataclasses.dataclass(frozen=True)
class Raster:
    """The times of the trials, the same for all spiking layers of a run (see the module)."""

    probes: int
    duration_ms: float
    gap_ms: float

    @classmethod
    def of(cls, layers: Mapping[str, LayerInfo], probe: Probe | None) -> Raster | None:
        """Return the raster of a run, None if nothing in it spikes."""
        for layer in layers.values():
            if layer.kind == "spiking" and layer.dt_ms and layer.n_steps and probe is not None:
                return cls(len(probe), layer.dt_ms * layer.n_steps, probe.gap_ms)
        return None

    def start_ms(self, trials: Array) -> Array:
        """Return when trials begin, ``k (T dt + g)``, float64 of the shape of ``trials``."""
        return np.asarray(trials, np.float64) * (self.duration_ms + self.gap_ms)


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as text, int, float or bool; None is left out, the rest becomes JSON."""
    plain: dict[str, Any] = {}
    for name, value in attributes.items():
        check_name("attribute", name)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = str(value)
        if value is not None:
            simple = isinstance(value, str | int | float | bool)
            plain[name] = value if simple else to_json(f"attribute {name}", value)
    return plain


def to_json(what: str, value: Any) -> str:
    """Return ``value`` as one line of JSON; ``what`` names it in the error.

    Raises:
        RecipeError: it holds something that JSON cannot.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{what} cannot be written as JSON: {error}; use plain values") from error
