"""Figures of what layers hold: dissimilarities, linear readers, receptive fields."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import dissimilarity, of_run
from biograd.plots.of_learning import by_step
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import (
    AXIS,
    INK,
    SHADE,
    SOFT,
    layer_looks,
    layer_title,
    name_lines,
    plain,
    step_axis,
    step_line,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Array = NDArray[Any]
RDM_STIMULI = 150
LARGEST = 1.5
"""End of the scale of dissimilarities, the same everywhere."""


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
        of_run.steps_of(run),
        courses,
    )


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
    lines = -(-len(found) // 4)
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
        axes = figure.subplots(lines, min(len(found), 4), squeeze=False).ravel()
        for axis in axes[len(found) :]:
            axis.set_visible(False)
        for axis, one, name in zip(axes, found, names, strict=False):
            image = axis.imshow(
                np.ma.masked_invalid(one), vmin=0, vmax=LARGEST, cmap=colours, interpolation="none"
            )
            axis.set(xticks=[], yticks=[])
            words = textwrap.fill(plain(name, 60), 22)
            axis.set_title(words, fontweight="normal", color=SOFT, loc="center", fontsize="small")
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
        1.4 if lines == 1 else 1.75 * lines,
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
        f"{layer}: covariance of a unit's activity with each input by the unit's deviation "
        f"(reverse correlation), {len(shown)} of {len(fields)} units, silent ones "
        "left out; one scale."
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
