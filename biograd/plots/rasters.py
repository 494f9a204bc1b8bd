"""Figures of spikes: rasters before and after training, rates after the onset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import of_run, selectivity
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import (
    AXIS,
    INK,
    PAPER,
    SHADE,
    SOFT,
    Look,
    largest,
    layer_title,
    name_lines,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Array = NDArray[Any]
SHOWN_TRIALS = 30
"""Trials in a raster."""
SHOWN_UNITS = 100
POINTS = 20_000
"""Spikes beyond which a raster is drawn as an image."""


def rasters(run: Run) -> list[Panel]:
    """Return a raster of each spiking layer before and after training, in one order of units."""
    panels = []
    for name in of_run.recorded_layers(run, spiking=True):
        spikes = run.spikes(name)
        count = int(spikes.trials["snapshot"].max()) + 1
        last = spikes.snapshot(count - 1)
        counted, labels = last.counts(), last.trials["label"]
        first, second = selectivity.halves(labels)
        order = selectivity.raster_order(counted[first], labels[first])[:SHOWN_UNITS]
        preferred = selectivity.tuning(counted[first], labels[first]).preferred[order]
        trials = _few(labels, second)
        for snapshot in sorted({0, count - 1}):
            here = spikes.snapshot(snapshot)
            panels.append(_raster(run, name, here, snapshot, trials, order, preferred))
    return panels


def _few(labels: Array, allowed: Array) -> Array:
    """Return trials of the second half, the labels in turn sorted, as many of each."""
    known = np.unique(labels)
    each = max(1, SHOWN_TRIALS // max(len(known), 1))
    picked = [np.flatnonzero((labels == label) & allowed)[:each] for label in known]
    return np.concatenate(picked)[:SHOWN_TRIALS]


def _raster(
    run: Run, name: str, spikes: Any, snapshot: int, trials: Array, order: Array, preferred: Array
) -> Panel:
    step = int(of_run.steps_of(run)[snapshot])
    when = "before training" if step == 0 else f"after training (step {step})"
    title = f"{layer_title(name)}, {when}"
    labels, duration = spikes.trials["label"][trials], spikes.duration_ms
    rate = spikes.rates().mean(0)[order]
    rank = np.full(len(spikes.units), -1)
    rank[order] = np.arange(len(order))
    times, rows = [], []
    for column, trial in enumerate(trials):
        one = spikes.trial(int(trial))
        position = rank[np.searchsorted(spikes.units, one.unit)]
        times.append(one.time_ms[position >= 0] + column * duration)
        rows.append(position[position >= 0])
    x, y = np.concatenate(times), np.concatenate(rows)

    def draw(figure: Figure | SubFigure) -> None:
        axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(5.6, 1))
        axes.set_title(title)
        for column in range(0, len(trials), 2):
            axes.axvspan(column * duration, (column + 1) * duration, color=SHADE, lw=0)
        if len(x) > POINTS:
            grid = np.zeros(
                (len(order), max(1, round(len(trials) * duration / spikes.dt_ms))), bool
            )
            grid[y, np.minimum((x / spikes.dt_ms).round().astype(int), grid.shape[1] - 1)] = True
            from matplotlib.colors import ListedColormap, to_rgba

            clear = ListedColormap([to_rgba(PAPER, 0), to_rgba(SOFT)])
            extent = (0, len(trials) * duration, len(order) - 0.5, -0.5)
            axes.imshow(grid, cmap=clear, extent=extent, aspect="auto", interpolation="none")
        else:
            _ticks(axes, x, y)
        changes = np.flatnonzero(np.diff(preferred)) + 0.5
        for change in changes:
            axes.axhline(change, color=AXIS, lw=0.5)
        starts = np.concatenate(([-0.5], changes, [len(order) - 0.5]))
        middles = (starts[1:] + starts[:-1]) / 2
        groups = [preferred[int(m + 0.5)] if len(preferred) else 0 for m in middles]
        axes.set_yticks(middles, ["\u2013" if g < 0 else str(g) for g in groups])
        axes.tick_params(axis="y", length=0)
        known = np.unique(labels)
        centres = [(np.flatnonzero(labels == k).mean() + 0.5) * duration for k in known]
        axes.set_xticks(centres, [str(k) for k in known])
        axes.set(
            xlim=(0, len(trials) * duration),
            ylim=(len(order) - 0.5, -0.5),
            ylabel="units by preferred class",
            xlabel=f"class of the stimulus ({len(trials)} trials, {duration:g} ms each)",
        )
        bars.barh(np.arange(len(order)), rate, height=0.8, color=SOFT)
        bars.tick_params(axis="y", length=0, labelleft=False)
        bars.set(xlabel="rate (Hz)", xlim=(0, _ceiling(run, name)))
        bars.spines["left"].set_visible(False)

    numbers = [
        {"unit": int(spikes.units[u]), "preferred": int(p), "rate_hz": float(r)}
        for u, p, r in zip(order, preferred, rate, strict=True)
    ]
    caption = (
        f"{len(trials)} of {len(spikes.rows)} trials side by side: not one recording. Units "
        f"({len(order)} of {len(spikes.units)}) are sorted, before and after alike, by the class "
        "for which they fire most after training in the other half of the trials. Bars: rate "
        "over all trials. \u2013: no spike in that half."
    )
    key = f"raster_{layer_title(name).replace(' ', '_')}_{snapshot}"
    return Panel(key, title, caption, numbers, draw, wide=True, height=2.5)


def _ticks(axes: Axes, x: Array, y: Array) -> None:
    """Draw spikes as one path, which is short in a file."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    ends = np.stack([np.repeat(x, 2), np.repeat(y, 2) + np.tile((-0.45, 0.45), len(x))], 1)
    codes = np.tile((Path.MOVETO, Path.LINETO), len(x))
    axes.add_patch(PathPatch(Path(ends, codes), fill=False, edgecolor=INK, lw=0.7))


def _ceiling(run: Run, name: str) -> float:
    """Return the end of the axis of rates, that of before and after."""
    mean = run.statistics(name)["mean"][[0, -1]]
    return max(largest(mean, 0.0) * 1000 / (run.layers[name].dt_ms or 1), 1.0)


def psth(run: Run) -> list[Panel]:
    """Return the mean rate of each spiking layer after the onset, by class."""
    found, panels = of_run.psth(run), []
    for name in of_run.recorded_layers(run, spiking=True):
        course = found[f"{name}/rate_hz"].mean(1)
        start, labels = found[f"{name}/start_ms"], found[f"{name}/label"]
        panels.append(_psth(name, course, start, labels, len(run.layers[name].units)))
    return panels


def _psth(name: str, course: Array, start: Array, labels: Array, units: int) -> Panel:
    title = f"After the onset, {layer_title(name)}"

    def draw(axes: Axes) -> None:
        for line in course:
            axes.step(start, line, where="post", color=AXIS, lw=0.8)
        axes.step(start, course.mean(0), where="post", color=INK, lw=1.6)
        axes.set(xlabel="time in the trial (ms)", ylabel="rate of a unit (Hz)", ylim=(0, None))
        look = {"mean": Look(INK, ""), "a class": Look(AXIS, "")}
        ends = [("mean", float(course.mean(0)[-1]), look["mean"])]
        name_lines(axes, [*ends, ("a class", float(course[:, -1].max()), look["a class"])])

    rows = [
        {
            "start_ms": float(t),
            **{f"class_{k}": float(v) for k, v in zip(labels, values, strict=True)},
        }
        for t, values in zip(start, course.T, strict=True)
    ]
    caption = (
        f"Mean over {units} units, silent ones included, at the last snapshot; {len(labels)} "
        "classes."
    )
    return Panel(
        f"psth_{layer_title(name).replace(' ', '_')}", title, caption, rows, on_axes(title, draw)
    )
