"""Two runs side by side: what must repeat, and how far it is apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from biograd.errors import RunFileError
from biograd.metrics import headline, is_share
from biograd.reproduction.verdict import RATE, SPIKING, Change, Difference, Kind, Reproduction
from biograd.runs.environment import environment
from biograd.runs.layout import Array
from biograd.runs.reader import Run

TIMES = frozenset(("wall_time", "seconds", "steps_per_second", "training_seconds"))
MACHINE = TIMES | {"run", "peak_memory_bytes", "ranks"}
"""What of a summary belongs to the machine and not to the training."""


@dataclasses.dataclass(frozen=True)
class Part:
    """An array of a run that must repeat.

    Attributes:
        steps: of its rows; None: it is of the end.
    """

    kind: Kind
    name: str
    values: Array
    steps: Array | None = None


def contents(run: Run, step: int) -> Iterator[Part]:
    """Yield all of a run up to a step that does not depend on when and where it was made."""
    for name, tensor in run.checkpoint(step)[0].items():
        known = tensor.float() if tensor.dtype is torch.bfloat16 else tensor  # NumPy has none
        yield Part("tensors", name, known.numpy())
    yield from _metrics(run, step)
    count = int((run.snapshots.get("step", np.zeros(0)) <= step).sum())
    yield from _snapshots(run, count)
    yield from _spikes(run, count)


def _metrics(run: Run, step: int) -> Iterator[Part]:
    for stream in run.streams:
        columns = run.scalars(stream)
        rows = columns["step"] <= step
        if stream == "final":  # every end of a run that was trained on left a row
            if run.status != "completed":
                continue
            rows = np.arange(len(rows)) == len(rows) - 1
        for name, values in columns.items():
            missing = np.isnan(values[rows]).all() and rows.any()  # of earlier ends alone
            if name not in TIMES and not missing:
                yield Part("metrics", f"{stream}/{name}", values[rows], columns["step"][rows])
    if run.status == "completed":
        for name, value in run.summary.items():
            if name not in MACHINE and isinstance(value, int | float):
                yield Part("metrics", f"summary/{name}", np.array([value]))


def _snapshots(run: Run, count: int) -> Iterator[Part]:
    places = run.snapshots
    steps = places.get("step", np.zeros(0))[:count]

    def part(name: str, values: Array) -> Part:
        return Part("snapshots", name, values[:count], steps)

    for name in places.keys() - TIMES:
        yield part(f"snapshots/{name}", places[name])
    for title, groups in (("params", run.params), ("learning", run.learning)):
        for group, columns in groups.items():
            for name, values in columns.items():
                yield part(f"{title}/{group}/{name}", values)
    for layer in run.layers:
        yield part(f"layers/{layer}/activation", np.asarray(run.activity(layer)))
        for name, values in run.statistics(layer).items():
            yield part(f"layers/{layer}/{name}", values)


def _spikes(run: Run, count: int) -> Iterator[Part]:
    spiking = [name for name, layer in run.layers.items() if layer.kind == "spiking"]
    if not spiking:
        return
    if "snapshot" not in run.trials:
        raise RunFileError(f"{run.path}: has layers that spike, but no /trials: it is damaged")
    trials = int((run.trials["snapshot"] < count).sum())
    for layer in spiking:
        spikes = run.spikes(layer)
        stop = int(spikes.trial_ptr[trials])
        for name in ("timestamps", "node_ids", "trial_ids"):
            yield Part("spikes", f"spikes/{layer}/{name}", getattr(spikes, name)[:stop])


def compared(run: Run, repeated: Run, step: int, device: str) -> Reproduction:
    """Return what a run and its repetition have in common up to a step."""
    then = {part.name: part for part in contents(run, step)}
    now = {part.name: part for part in contents(repeated, step)}
    differences = tuple(
        difference
        for name in dict.fromkeys((*then, *now))
        if (difference := _difference(then.get(name), now.get(name))) is not None
    )
    spiking = any(layer.kind == "spiking" for layer in run.layers.values())
    return Reproduction(
        run=run.path,
        repeated=None,
        step=step,
        compared=_counts(then),
        differences=differences,
        numbers=_sizes(then, now, headline(run.attributes)),
        limits=SPIKING if spiking else RATE,
        changes=tuple(_changes(run, device)),
        device=device,
        metric=headline(run.attributes),
    )


def _counts(parts: Mapping[str, Part]) -> dict[Kind, int]:
    """Return how many tensors, rows, snapshots and spikes there are."""

    def rows(ending: str) -> int:
        return sum(len(p.values) for name, p in parts.items() if name.endswith(ending))

    return {
        "tensors": sum(part.kind == "tensors" for part in parts.values()),
        "metrics": sum(rows(name) for name in parts if name.endswith("/step"))
        - rows("snapshots/step"),
        "snapshots": rows("snapshots/step"),
        "spikes": rows("/timestamps"),
    }


def _difference(then: Part | None, now: Part | None) -> Difference | None:
    """Return how two arrays differ; None if every bit agrees."""
    if then is None or now is None:
        only = then or now
        assert only is not None
        return Difference(only.kind, only.name, math.inf)
    a, b = then.values, now.values
    if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    step = None
    if then.steps is not None and a.shape == b.shape:
        same = (a == b) | ((a != a) & (b != b))
        rows = np.flatnonzero(~same.reshape(len(a), -1).all(1))
        step = int(then.steps[rows[0]]) if len(rows) else None
    return Difference(then.kind, then.name, size(a, b), step)


def size(a: Array, b: Array) -> float:
    """Return the largest difference of two arrays by the largest value of the first.

    >>> size(np.array([2.0, 4.0, np.nan]), np.array([2.0, 3.0, np.nan]))
    0.25
    """
    if a.shape != b.shape:
        return math.inf
    a, b = (np.atleast_1d(values).astype(np.float64) for values in (a, b))
    apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    if not apart.size or not apart.any():
        return 0.0
    scale = float(np.nanmax(np.abs(a), initial=0.0))
    largest = float(apart.max())
    return largest / scale if scale > 0 and math.isfinite(largest) else math.inf


def _sizes(then: Mapping[str, Part], now: Mapping[str, Part], metric: str) -> dict[str, float]:
    """Return the largest differences of what is judged."""

    def largest(names: list[str]) -> float:
        missing = np.zeros((0, 0))
        return max(
            (size(then[n].values, now[n].values if n in now else missing) for n in names),
            default=0.0,
        )

    found = {
        "parameters": largest([n for n in then if n.startswith("network.")]),
        "losses": largest(
            [n for n, p in then.items() if p.kind == "metrics" and n.endswith("loss")]
        ),
    }
    results = [parts.get(f"epoch/test_{metric}") for parts in (then, now)]
    if all(part is not None and len(part.values) for part in results):
        before, after = (float(part.values[-1]) for part in results if part is not None)
        scale = 1.0 if is_share(metric) else max(abs(before), 1e-12)
        found |= {"result": abs(after - before) / scale}
        found |= {"result_then": before, "result_now": after}
    return found


def _changes(run: Run, device: str) -> Iterator[Change]:
    """Yield what of the environment can round differently, and is not as it was."""
    then, now = run.environment, environment(device)
    versions = then.get("versions") or {}
    for name, version in now["versions"].items():
        if version != versions.get(name):
            yield Change(name, versions.get(name), version)
    if now["source"] != then.get("source") and now["versions"]["biograd"] == versions["biograd"]:
        yield Change("biograd's code", then.get("source"), now["source"])
    for what in ("cpu", "threads", "device"):
        if now[what] != then.get(what):
            yield Change(what, then.get(what), now[what])
    kept = then.get("brian2") or {}  # earlier versions kept none
    for name in kept.keys() & now["brian2"].keys():
        if kept[name] != now["brian2"][name]:
            yield Change(f"Brian2's {name}", kept[name], now["brian2"][name])
    if run.summary.get("ranks", 1) != 1:
        yield Change("ranks", run.summary["ranks"], 1)
