"""Figures of what a run's layers did: rasters, rates, silence, dissimilarities, readers, fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import answers, dissimilarity, of_run, selectivity
from biograd.errors import RunFileError
from biograd.plots.of_learning import by_step
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import (
    AXIS,
    BLUE,
    INK,
    PAPER,
    SHADE,
    SOFT,
    VERMILLION,
    Look,
    layer_looks,
    layer_title,
    name_lines,
    step_axis,
    step_line,
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
RDM_STIMULI = 150
LARGEST = 1.5
"""End of the scale of dissimilarities, the same everywhere."""


def rates(run: Run) -> Panel:
    """Return median and quartiles of the units' activity by snapshot."""
    found = of_run.rates(run)
    spiking = any(key.endswith("rate_hz") for key in found)
    by_layer = {key.rpartition("/")[0]: values for key, values in found.items()}
    quartiles = {n: tuple(np.nanpercentile(v, (25, 75), axis=1)) for n, v in by_layer.items()}
    median = {n: np.nanmedian(v, axis=1) for n, v in by_layer.items()}
    probes = len(run.probe.index) if run.probe is not None else 0
    what = "Model time: a step counts as its dt. " if spiking else ""
    return by_step(
        "rates",
        "Firing rate: median and quartiles" if spiking else "Activity: median and quartiles",
        "rate of a unit (Hz)" if spiking else "activity of a unit",
        f"{what}Bars: quartiles of the units, silent ones included, over {probes} stimuli; the "
        "axis of the steps is broken before the first.",
        run.snapshots["step"],
        median,
        quartiles=quartiles,
    )


def silence(run: Run) -> Panel:
    """Return the share of units that no stimulus makes active, by snapshot."""
    found = {key.rpartition("/")[0]: 100 * v for key, v in of_run.silence(run).items()}
    units = ", ".join(f"{layer_title(n)} {len(run.layers[n].units)}" for n in found)
    probes = len(run.probe.index) if run.probe is not None else 0
    top = max(5.0, 1.15 * max(float(np.nanmax(v)) for v in found.values()))
    return by_step(
        "silence",
        f"Units silent for all {probes} stimuli",
        "silent units (%)",
        f"Units: {units}. Other stimuli may make them active.",
        run.snapshots["step"],
        found,
        limits=(-0.02 * top, top),
    )


def classes(run: Run) -> Panel:
    """Return how far dissimilarities follow the classes, by snapshot."""
    found = of_run.rsa(run, RDM_STIMULI)
    courses = {k.rpartition("/")[0]: v for k, v in found.items() if k.endswith("/classes")}
    count = min(RDM_STIMULI, len(run.probe.index) if run.probe is not None else 0)
    return by_step(
        "classes",
        "Do dissimilarities follow the classes?",
        "Spearman's rho",
        f"Rank correlation of 1 - Pearson with same class (0) or another (1), "
        f"{count * (count - 1) // 2} pairs of {count} stimuli, silent ones left out. Ties "
        "keep the maximum below 1. No interval: pairs share stimuli.",
        run.snapshots["step"],
        courses,
    )


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
    step = int(run.snapshots["step"][snapshot])
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

            clear = ListedColormap([to_rgba(PAPER, 0), SOFT])
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
    return max(float(np.nanmax(mean)) * 1000 / (run.layers[name].dt_ms or 1), 1.0)


def rdms(run: Run) -> list[Panel]:
    """Return the dissimilarities of each layer at four snapshots, on one scale."""
    found = of_run.rdm(run, 4, RDM_STIMULI)
    return [
        matrices(
            layer_title(key.removesuffix("/rdm")),
            values,
            [_when(s) for s in found["step"]],
            found["label"],
        )
        for key, values in found.items()
        if key.endswith("/rdm")
    ]


def _when(step: int) -> str:
    return "before" if step == 0 else f"step {step}"


def matrices(title: str, found: Array, names: list[str], labels: Array) -> Panel:
    """Return dissimilarity matrices beside one another.

    Args:
        found: ``[matrix, stimulus, stimulus]``, stimuli sorted by label.
        names: of the matrices.
    """
    undefined = [int(np.isnan(np.diagonal(one)).sum()) for one in found]
    ideal = dissimilarity.label_rdm(labels)
    rows = []
    for name, one, lacking in zip(names, found, undefined, strict=True):
        pairs = dissimilarity.upper(one)
        same = dissimilarity.upper(ideal) == 0
        within, between = (pairs[k] for k in (same, ~same))
        rows.append(
            {
                "matrix": name,
                "same_class": _mean(within),
                "other_class": _mean(between),
                "with_classes": dissimilarity.rsa(one, ideal),
                "silent_stimuli": lacking,
            }
        )

    def draw(figure: Figure | SubFigure) -> None:
        from matplotlib import colormaps

        colours = colormaps["cividis"].with_extremes(bad=AXIS)
        axes = np.atleast_1d(figure.subplots(1, len(found)))
        for axis, one, name in zip(axes, found, names, strict=True):
            image = axis.imshow(
                np.ma.masked_invalid(one), vmin=0, vmax=LARGEST, cmap=colours, interpolation="none"
            )
            axis.set(xticks=[], yticks=[])
            axis.set_title(name, fontweight="normal", color=SOFT, loc="center")
            for spine in axis.spines.values():
                spine.set_visible(False)
        axes[0].set_ylabel(title, color=INK)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.75, pad=0.015, ticks=(0, 0.5, 1, 1.5))
        bar.set_label("1 - correlation", color=SOFT)
        bar.outline.set_visible(False)

    silent = (
        f" Grey: undefined, {max(undefined)} stimuli leave the layer silent."
        if max(undefined)
        else ""
    )
    caption = f"{len(labels)} stimuli sorted by class, {len(np.unique(labels))} classes.{silent}"
    said = "; ".join(
        f"{r['matrix']}: {r['same_class']:.2f} within, {r['other_class']:.2f} between" for r in rows
    )
    return Panel(
        f"rdm_{title.replace(' ', '_')}",
        f"Dissimilarities, {title}",
        caption,
        rows,
        draw,
        f"Mean dissimilarity of stimuli of the same class and of others: {said}.",
        True,
        1.4,
    )


def _mean(values: Array) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def probes(run: Run) -> list[Panel]:
    """Return what linear readers find of classes and inputs, by snapshot, with shuffled ones."""
    found = of_run.probes(run, snapshots=6, shuffles=20)
    steps, panels = found["step"], []
    for what, title, label in (
        ("classes", "Classes read from a layer", "linear reader's accuracy (%)"),
        ("inputs", "Inputs read from a layer", "variance of the inputs (%)"),
    ):
        key = f"/{what}_score"
        layers = [k.removesuffix(key) for k in found if k.endswith(key)]
        if layers:
            panels.append(_reader(what, title, label, steps, layers, found))
    return panels


def _reader(
    what: str, title: str, label: str, steps: Array, layers: list[str], found: dict[str, Array]
) -> Panel:
    score = {n: 100 * found[f"{n}/{what}_score"].mean(1) for n in layers}
    chance = {n: 100 * found[f"{n}/{what}_shuffled"] for n in layers}
    looks = layer_looks(layers)

    def draw(axes: Axes) -> None:
        low, high = (f([f(v) for v in chance.values()]) for f in (np.min, np.max))
        axes.axhspan(float(low), float(high), color=SHADE, lw=0)
        axes.annotate(
            "shuffled",
            (1, float(high)),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=SOFT,
            fontsize="small",
        )
        for layer, values in score.items():
            step_line(axes, steps, values, looks[layer])
        axes.set_ylabel(label)
        axes.set_ylim(min(0.0, 1.1 * float(low)), 104)
        step_axis(axes, steps)
        name_lines(axes, [(layer_title(n), float(v[-1]), looks[n]) for n, v in score.items()])

    rows = [
        {
            "step": int(step),
            **{n: float(v[k]) for n, v in score.items()},
            **{f"{n}_shuffled": (float(v[k].min()), float(v[k].max())) for n, v in chance.items()},
        }
        for k, step in enumerate(steps)
    ]
    first = layers[0]
    folds, times = found[f"{first}/{what}_score"].shape[1], chance[first].shape[1]
    caption = (
        f"Ridge regression, mean of {folds} folds of the stimuli. Shaded: range of {times} "
        "readers to whom the stimuli were told in the wrong order."
    )
    return Panel(f"reader_{what}", title, caption, rows, on_axes(title, draw))


def confusion(run: Run) -> list[Panel]:
    """Return counts of classes and answers on the stimuli, and the share right of each class."""
    table = run.confusion()
    counts = np.asarray(table.counts)
    names = [str(k) for k in range(len(counts))]
    return [confusions(counts, names), class_shares(counts, names)]


def confusions(counts: Array, names: list[str]) -> Panel:
    """Return a table of confusions; errors alone are coloured."""

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        wrong = counts * (1 - np.eye(len(counts)))
        from matplotlib.colors import LinearSegmentedColormap

        warm = LinearSegmentedColormap.from_list("errors", [SHADE, VERMILLION])
        most = max(float(wrong.max()), 1.0)
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = float(wrong[row, column]) / most
            colour = SHADE if row == column else warm(0.25 + 0.35 * share)
            axes.fill_between(
                (column - 0.5, column + 0.5), row - 0.5, row + 0.5, color=colour, lw=0
            )
            if len(counts) <= 20:
                dark = INK if row == column else "#1b1f23"
                axes.text(
                    column, row, int(counts[row, column]), ha="center", va="center", color=dark
                )
        ticks = np.arange(len(names))[:: max(1, len(names) // 12)]
        axes.set_xticks(ticks, [names[k] for k in ticks])
        axes.set_yticks(ticks, [names[k] for k in ticks])
        axes.set(
            xlim=(-0.5, len(names) - 0.5),
            ylim=(len(names) - 0.5, -0.5),
            xlabel="answered",
            ylabel="true class",
            aspect="equal",
        )

    rows = [
        {"class": names[k], **{f"answered_{n}": int(v) for n, v in zip(names, line, strict=True)}}
        for k, line in enumerate(counts)
    ]
    right, number = int(np.trace(counts)), int(counts.sum())
    return Panel(
        "confusion",
        "Confusions (counts)",
        f"The {number} stimuli of the last snapshot, {right} answered rightly; errors alone are "
        "coloured.",
        rows,
        on_axes("Confusions (counts)", draw),
        height=2.9,
    )


def class_shares(counts: Array, names: list[str]) -> Panel:
    """Return the share right of each class with Wilson's interval."""
    number, right = counts.sum(1), np.diagonal(counts)
    low, high = answers.wilson(right, number)
    share = np.where(number > 0, right / np.maximum(number, 1), np.nan)
    rows = [
        {
            "class": names[k],
            "n": int(number[k]),
            "right": float(share[k]),
            "interval": (float(low[k]), float(high[k])),
        }
        for k in range(len(names))
    ]

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        axes.hlines(places, 100 * low, 100 * high, color=BLUE, lw=1.4)
        axes.plot(100 * share, places, "o", color=BLUE)
        axes.grid(axis="x")
        ticks = places[:: max(1, len(names) // 12)]
        axes.set_yticks(ticks, [names[k] for k in ticks])
        axes.set(
            ylim=(len(names) - 0.5, -0.5), xlabel="right (%), 95 % interval", ylabel="true class"
        )

    some = f"{int(number.min())} to {int(number.max())}"
    return Panel(
        "classes_right",
        "Accuracy of each class",
        f"Share right with Wilson's 95 % interval; {some} stimuli a class.",
        rows,
        on_axes("Accuracy of each class", draw),
        height=2.9,
    )


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


def receptive_fields(run: Run) -> list[Panel]:
    """Return the mean stimulus that each unit responds to, as images or courses."""
    found, panels = of_run.receptive_fields(run), []
    for key, fields in found.items():
        shape = [size for size in fields.shape[1:] if size != 1]
        flat = fields.reshape(len(fields), *(shape if len(shape) == 2 else (-1,)))
        panels.append(_fields(layer_title(key.removesuffix("/field")), flat))
    return panels


def _fields(layer: str, fields: Array) -> Panel:
    shown = np.flatnonzero(np.isfinite(fields.reshape(len(fields), -1)).all(1))[:30]

    def draw(figure: Figure | SubFigure) -> None:
        columns = min(10, max(len(shown), 1))
        axes = figure.subplots(-(-max(len(shown), 1) // columns), columns, squeeze=False).ravel()
        most = float(np.abs(fields[shown]).max()) if len(shown) else 1.0
        for axis in axes:
            axis.set_axis_off()
        for axis, unit in zip(axes, shown, strict=False):
            if fields.ndim == 3:
                axis.imshow(
                    fields[unit], cmap="PuOr_r", vmin=-most, vmax=most, interpolation="none"
                )
            else:
                axis.plot(fields[unit], color=INK, lw=0.8)
                axis.set_ylim(-most, most)
            axis.set_title(str(unit), fontweight="normal", color=SOFT, loc="center", pad=1.5)

    rows = [
        {"unit": int(u), **{f"input_{k}": float(v) for k, v in enumerate(fields[u].ravel()[:1024])}}
        for u in shown
    ]
    caption = (
        f"{layer}: covariance of a unit's activity with each input by the unit's deviation (reverse "
        f"correlation), {len(shown)} of {len(fields)} units, silent ones left out; one scale."
    )
    return Panel(
        f"fields_{layer.replace(' ', '_')}",
        f"Receptive fields, {layer}",
        caption,
        rows,
        draw,
        wide=True,
        height=max(0.9, 0.62 * -(-max(len(shown), 1) // 10)),
    )


def alignment(run: Run) -> Panel:
    """Return the angle between the rule's update and back-propagation's, by snapshot."""
    found = {n: v["angle_deg"] for n, v in run.learning.items() if "angle_deg" in v}
    if not found:
        raise RunFileError(f"{run.path}: holds no angles: train with training.probe=4")
    return by_step(
        "alignment",
        "Angle to back-propagation",
        "angle (degrees)",
        "Of one draw of the estimate; 90: no alignment.",
        run.snapshots["step"],
        found,
        limits=(-3, max(95.0, *(float(np.nanmax(v)) + 5 for v in found.values()))),
        levels=[(90.0, "no alignment")],
    )
