"""Deterministic content for run files: every value is a function of its step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.runs.layout import Array, LayerInfo, Probe
from biograd.runs.parts.seal import write_seal
from biograd.runs.writer import RunWriter

PROBES, STEPS, RATE_UNITS, SPIKING_UNITS, DT_MS = 5, 8, 6, 7, 0.5
LAYERS = {
    "0.linear": LayerInfo("rate", RATE_UNITS, shape=(2, 3)),
    "1.lif": LayerInfo(
        "spiking",
        SPIKING_UNITS,
        dt_ms=DT_MS,
        n_steps=STEPS,
        neuron_params={"threshold": 1.0},
        unit=(0, 2, 3, 6),
    ),
}
IGNORED = {"created_at", "finished_at", "parts_id"}


def probe() -> Probe:
    """Return five stimuli with their inputs."""
    index = np.arange(PROBES) * 10
    inputs = np.arange(PROBES * 4, dtype=np.float32).reshape(PROBES, 4)
    return Probe(index, index % 3, split="test", input=inputs, gap_ms=1.5)


def writer(path: Path, **changes: Any) -> RunWriter:
    """Return a writer of a small run with a rate layer and a spiking layer."""
    arguments: dict[str, Any] = {
        "config": {"model": "spiking", "training": {"epochs": 3}},
        "environment": {"versions": {"python": "3", "torch": "2"}, "hostname": "here"},
        "attributes": {"seed": 7, "rule": "weak", "run_id": "fixed", "nothing": None},
        "probe": probe(),
        "layers": LAYERS,
    }
    return RunWriter(path, **(arguments | changes))


def row(step: int) -> dict[str, float]:
    """Return the scalars of a step; from step 7 on with a metric more."""
    values = {"loss": 1.0 / (step + 1), "accuracy": float(np.float32(np.sin(step) ** 2))}
    return values | ({"late": float(step)} if step >= 7 else {})


def rates(step: int) -> Array:
    """Return the activity of the rate layer, float32 ``[probe, 2, 3]``."""
    stream = np.random.default_rng(step)
    return np.maximum(stream.normal(size=(PROBES, 2, 3)), 0).astype(np.float32)


def spikes(step: int) -> Array:
    """Return the spikes of the spiking layer, bool ``[probe, time, unit]``."""
    return np.random.default_rng(1000 + step).random((PROBES, STEPS, SPIKING_UNITS)) < 0.3


def write_step(target: RunWriter, step: int) -> None:
    """Write the rows of one step."""
    target.scalars("train_step", step, step // 4, row(step))
    if step % 3 == 0:
        target.snapshot(
            step,
            step // 4,
            {"0.linear": rates(step), "1.lif": spikes(step)},
            {"0.weight": {"norm": step + 0.5, "update_norm": 0.1, "sparsity": 0.0}},
            {"0.linear": {"angle_deg": 90.0 / (step + 1)}},
        )
    if step % 4 == 3:
        target.scalars("eval", step, step // 4, {"accuracy": step / 100})


def checkpoint(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint of a step (loads torch)."""
    import torch

    tensors = {
        "weight": torch.full((2, 3), float(step)),
        "generator": torch.arange(9, dtype=torch.uint8),
    }
    return tensors, {"step": step}


def contents(path: Path) -> dict[str, Any]:
    """Return all data sets and attributes of a finished file, but times and identities."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        for key, value in item.attrs.items():
            if key not in ("REFERENCE_LIST", "DIMENSION_LIST"):
                found[f"{name}@{key}"] = np.asarray(value)
        if not isinstance(item, h5py.Dataset):
            return
        value = item[()]
        if name.endswith("wall_time"):
            value = np.isfinite(value)
        if name == "progress/commits":
            value = value[:, :3]
        found[name] = value

    with h5py.File(path) as file:
        found.update({f"@{k}": v for k, v in file.attrs.items() if k not in IGNORED})
        file.visititems(visit)
    return {name: value for name, value in found.items() if not name.endswith("@commit")}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Compare what two files hold, NaN equal to NaN."""
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def check_rows(run: Any, count: int) -> int:
    """Check that a run holds the rows of the first steps, at least ``count``; return how many."""
    table = run.scalars("train_step")
    rows = len(table["step"])
    assert rows >= count
    np.testing.assert_array_equal(table["step"], np.arange(rows))
    for name in row(7):
        expected = [row(step).get(name, np.nan) for step in range(rows)]
        if name in table:
            np.testing.assert_array_equal(table[name], np.array(expected, np.float32))
        else:
            assert np.isnan(expected).all()
    steps = run.snapshots["step"]
    np.testing.assert_array_equal(steps, np.arange(0, rows, 3))
    expected_rates = np.stack([rates(step).reshape(PROBES, -1) for step in steps])
    np.testing.assert_array_equal(run.activity("0.linear"), expected_rates)
    check_spikes(run, steps)
    return rows


def check_spikes(run: Any, steps: Array) -> None:
    """Check that the spikes of a run give back the rasters of the given steps."""
    found, layer = run.spikes("1.lif"), LAYERS["1.lif"]
    start = run.trials["start_ms"]
    bins = np.round((found.timestamps - start[found.trial_ids]) / DT_MS).astype(int)
    raster = np.zeros((len(steps) * PROBES, STEPS, SPIKING_UNITS), bool)
    raster[found.trial_ids, bins, found.node_ids.astype(int)] = True
    expected = np.zeros_like(raster)
    whole = np.concatenate([spikes(int(step)) for step in steps])
    expected[..., layer.units] = whole[..., layer.units]
    np.testing.assert_array_equal(raster, expected)
    assert len(found) == expected.sum()
    assert (np.diff(found.timestamps) >= 0).all()
    counts = np.bincount(found.trial_ids, minlength=len(raster))
    np.testing.assert_array_equal(np.diff(found.trial_ptr.astype(int)), counts)


@contextmanager
def failing(patches: dict[Any, list[str]], error: BaseException, after: int) -> Iterator[None]:
    """Let the named functions raise from call number ``after`` on, counted over all of them."""
    calls, kept = [0], []

    def wrap(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise error
            return function(*arguments, **options)

        return wrapped

    for module, names in patches.items():
        for name in names:
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, wrap(getattr(module, name)))
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


@contextmanager
def edited(path: str | Path) -> Iterator[h5py.File]:
    """Open a finished run to be changed by a stranger, who gives it a digest again."""
    with h5py.File(path, "r+") as file:
        yield file
    with FileIO(str(path), "r+") as stream:
        write_seal(stream)
