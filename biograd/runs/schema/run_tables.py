"""The tables of a run: which data sets grow together, how their rows look, how they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

from biograd.runs.layout import STATISTICS, LayerInfo, Probe
from biograd.runs.schema.row_info import RowInfo

STEPS = "snapshots/step"
TRIALS = "trials/start_ms"
GROWING = (
    "scalars",
    "snapshots",
    "layers",
    "params",
    "learning",
    "trials",
    "spikes",
    "weights",
    "outputs",
)

COORDINATES = ("snapshot", "probe", "unit")
"""Coordinates that the groups of layers, parameters and learning measures have of their own."""

VARIABLES = ("potential", "synaptic_current", "adaptation", "credit")
"""What a layer may have beside its activation, at every step of a trial if it has time."""
VALUES = ("value", "gradient")
"""What a parameter, or the outputs, have at snapshots."""
AXES = {"trials": ("trial",), "spikes": ("spike", "edge")}
"""Data sets that are nothing but an axis."""

TIMES = ("start_ms", "stop_ms")
WHOLE = {
    "scalars": ("step", "epoch"),
    "snapshots": ("step", "epoch"),
    "trials": ("snapshot", "probe", "label"),
    "spikes": ("node_ids", "trial_ids", "trial_ptr"),
}
"""Columns of whole numbers."""


def counted_by(name: str) -> str:
    """Return the data set whose length counts the rows of the growing data set ``name``.

    >>> counted_by("layers/fc1/stats/mean"), counted_by("scalars/eval/loss")
    ('snapshots/step', 'scalars/eval/step')
    >>> counted_by("spikes/fc1/node_ids"), counted_by("spikes/fc1/trial_ptr")
    ('spikes/fc1/timestamps', 'trials/start_ms')
    """
    top, *rest = name.split("/")
    if top == "scalars":
        return f"scalars/{rest[0]}/step"
    if top == "trials" or rest[-1] == "trial_ptr":
        return TRIALS
    return f"spikes/{rest[0]}/timestamps" if top == "spikes" else STEPS


def grows(name: str) -> bool:
    """Return whether ``name`` is a data set that grows with the run.

    >>> grows("layers/fc1/activation"), grows("layers/fc1/unit"), grows("probe/index")
    (True, False, False)
    """
    top, *rest = name.split("/")
    if top not in GROWING or not rest:
        return False
    last = rest[-1]
    if top == "layers":
        return last in ("activation", *VARIABLES) or (
            rest[1] == "stats" and last not in COORDINATES
        )
    if top in ("weights", "outputs"):
        return last in VALUES
    if top in ("params", "learning"):
        return last not in COORDINATES
    return last not in AXES.get(top, ())


def kinds_of(name: str) -> str:
    """Return the kinds, as NumPy names them, that the values of a growing data set may have.

    >>> kinds_of("scalars/epoch/step"), kinds_of("scalars/epoch/loss")
    ('iu', 'f')
    """
    return "iu" if name.rpartition("/")[2] in WHOLE.get(name.split("/")[0], ()) else "f"


def row_shape(
    name: str,
    layers: Mapping[str, LayerInfo],
    probe: Probe | None,
    rows: Mapping[str, RowInfo],
) -> tuple[int, ...] | None:
    """Return the shape of a row of a growing data set; None: the run says nothing of it."""
    if name in rows:
        return rows[name].shape
    top, *rest = name.split("/")
    if top != "layers":
        return None if top in ("weights", "outputs") else ()
    if rest[0] not in layers or probe is None or rest[1:] in [[one] for one in VARIABLES]:
        return None
    units = len(layers[rest[0]].units)
    return (len(probe), units) if rest[1:] == ["activation"] else (units,)


def required(table: str) -> tuple[str, ...]:
    """Return the columns that a table cannot lack.

    >>> required("scalars/epoch")
    ('step', 'epoch', 'wall_time')
    """
    top = table.split("/")[0]
    if top == "layers" and table.endswith("/stats"):
        return STATISTICS
    more = {"scalars": ("wall_time",), "snapshots": ("wall_time",), "trials": TIMES}
    return (*WHOLE[top], *more[top]) if top in more else ()


def chunks_of(name: str, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the chunk of a data set: whole unit axis, 64 kB or 64 probes, whichever is more."""
    if name.startswith("layers/") and name.endswith("/activation"):
        probes = max(64, 65536 // max(1, shape[2] * itemsize))
        return (1, min(shape[1], probes), shape[2])
    rows = max(1, 65536 // max(1, math.prod(shape[1:]) * itemsize))
    if name.startswith("scalars/"):
        rows = 4096
    return (min(shape[0], rows), *shape[1:])
