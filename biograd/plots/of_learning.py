"""Figures of how a run learned: results, losses, decorrelation, gradients, weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses.answers import wilson
from biograd.errors import RunFileError
from biograd.metrics import headline, is_share, words
from biograd.plots.panel import Panel, Row, on_axes
from biograd.plots.style import (
    AXIS,
    BLUE,
    SHADE,
    SOFT,
    Look,
    layer_looks,
    layer_title,
    log_axis,
    name_lines,
    plain,
    step_axis,
    step_line,
    step_places,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
TEST, TRAIN = Look(BLUE, "o"), Look(SOFT, "", "--")
ENERGY = "off_diagonal_energy."


def _epochs(run: Run) -> dict[str, Array]:
    if "epoch" not in run.streams:
        raise RunFileError(f"{run.path}: holds no epochs")
    return run.scalars("epoch")


def classes_of(run: Run) -> int | None:
    """Return the number of classes of a task that has them."""
    data = run.config.get("data")
    found = data.get("classes") if isinstance(data, dict) else None
    task = data.get("task", {}) if isinstance(data, dict) else {}
    known = isinstance(task, dict) and task.get("name", "classes") == "classes"
    return found if known and type(found) is int and 1 < found < 10**6 else None


def curves(run: Run) -> Panel:
    """Return the headline metric by epoch, of test and training data."""
    table, name = _epochs(run), headline(run.attributes)
    share = 100 if is_share(name) else 1
    epochs = np.arange(1, len(table["step"]) + 1)
    found = {
        key: share * table[f"{key}_{name}"] for key in ("test", "train") if f"{key}_{name}" in table
    }
    if not found:
        raise RunFileError(f"{run.path}: holds no course of {name}")
    control, classes = run.summary.get("frozen_hidden_control"), classes_of(run)
    rows = [
        {"epoch": int(e), **{key: float(v[k]) for key, v in found.items()}}
        for k, e in enumerate(epochs)
    ]

    def draw(axes: Axes) -> None:
        ends = []
        for key, look in (("test", TEST), ("train", TRAIN)):
            if key in found:
                mark = look.marker if len(epochs) < 2 else ""
                axes.plot(epochs, found[key], color=look.colour, ls=look.line, marker=mark)
                ends.append((key, float(found[key][-1]), look))
        if share == 100:
            axes.set_ylim(0, 104)
        if isinstance(control, float) and share == 100:
            _level(axes, 100 * control, "control: hidden layers frozen (end)")
        if classes and share == 100:
            _level(axes, 100 / classes, f"chance, {classes} classes")
        axes.set(xlabel="epoch", ylabel=f"{plain(words(name))}{' (%)' if share == 100 else ''}")
        _whole(axes)
        name_lines(axes, ends)

    interval = ""
    count = evaluated(run)
    if share == 100 and count and "test" in found:
        low, high = wilson(round(count * found["test"][-1] / 100), count)
        interval = f" At the end {100 * low:.1f} to {100 * high:.1f} % (Wilson, n = {count} rows)."
    last = ", ".join(f"{key} {v[-1]:.4g}" for key, v in found.items())
    return Panel(
        "curves",
        words(name).capitalize(),
        "Test: after each epoch. Train: mean over the steps of the epoch, each before its update: "
        f"it lags behind.{interval} One run: it says nothing of other seeds.",
        rows,
        on_axes(words(name).capitalize(), draw),
        f"Over {len(epochs)} epochs to {last}.",
    )


def evaluated(run: Run) -> int | None:
    """Return the number of rows of the test split, if the file says it."""
    data = run.config.get("data")
    found = run.attributes.get("test_rows", run.summary.get("test_rows"))
    if found is None and isinstance(data, dict):
        found = data.get("test_examples")
    return found if type(found) is int and found > 0 else None


def _level(axes: Axes, value: float, text: str) -> None:
    axes.axhline(value, color=AXIS, ls=":", lw=0.9)
    axes.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-1, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=SOFT,
        fontsize="small",
    )


def _whole(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def loss(run: Run) -> Panel:
    """Return the loss by epoch, with the spread of single steps."""
    table, steps = _epochs(run), run.scalars("train_step") if "train_step" in run.streams else {}
    epochs = np.arange(1, len(table["step"]) + 1)
    rows: list[Row] = []
    for place, epoch in enumerate(epochs):
        row: Row = {"epoch": int(epoch)}
        row |= {
            k: float(table[f"{k}_loss"][place]) for k in ("test", "train") if f"{k}_loss" in table
        }
        here = steps["loss"][steps["epoch"] == table["epoch"][place]] if "loss" in steps else []
        if len(here):
            row["low"], row["high"] = (float(v) for v in np.nanpercentile(here, (10, 90)))
        rows.append(row)
    classes = classes_of(run)

    def draw(axes: Axes) -> None:
        ends = []
        if all("low" in row for row in rows):
            low, high = ([row[key] for row in rows] for key in ("low", "high"))
            axes.fill_between(epochs, low, high, color=SHADE, lw=0)
        for key, look in (("test", TEST), ("train", TRAIN)):
            values = [row[key] for row in rows if key in row]
            if len(values) == len(epochs):
                axes.plot(epochs, values, color=look.colour, ls=look.line)
                ends.append((key, values[-1], look))
        seen = [v for row in rows for k, v in row.items() if k in ("test", "train")]
        if seen and min(seen) > 0:
            log_axis(axes)
        if classes and _default_loss(run):
            _level(axes, math.log(classes), f"chance, ln {classes}")
        axes.set(xlabel="epoch", ylabel="loss (log)" if seen and min(seen) > 0 else "loss")
        _whole(axes)
        name_lines(axes, ends)

    what = "Shaded: 10th to 90th percentile of single steps. " if steps else ""
    return Panel(
        "loss", "Loss", f"{what}Train: mean of the epoch's steps.", rows, on_axes("Loss", draw)
    )


def _default_loss(run: Run) -> bool:
    recipe = run.config.get("recipe")
    training = recipe.get("training") if isinstance(recipe, dict) else None
    return isinstance(training, dict) and training.get("loss") is None


def decorrelation(run: Run) -> Panel:
    """Return the energy off the diagonal of the covariance of each layer's input."""
    table = _epochs(run)
    found = {k.removeprefix(ENERGY): v for k, v in table.items() if k.startswith(ENERGY)}
    found = {name: values for name, values in found.items() if np.isfinite(values).any()}
    if not found:
        raise RunFileError(f"{run.path}: holds no energies of decorrelation")
    epochs = np.arange(1, len(table["step"]) + 1)
    looks = layer_looks(list(found))

    def draw(axes: Axes) -> None:
        for name, values in found.items():
            look = looks[name]
            every = max(1, len(epochs) // 8)
            axes.plot(
                epochs, values, color=look.colour, ls=look.line, marker=look.marker, markevery=every
            )
        if all((values > 0).all() for values in found.values()):
            log_axis(axes)
        axes.set(xlabel="epoch", ylabel="off-diagonal energy")
        _whole(axes)
        name_lines(
            axes, [(f"to {layer_title(n)}", float(v[-1]), looks[n]) for n, v in found.items()]
        )

    rows = [
        {"epoch": int(e), **{n: float(v[k]) for n, v in found.items()}}
        for k, e in enumerate(epochs)
    ]
    return Panel(
        "decorrelation",
        "Decorrelation: what is left",
        "Mean squared covariance of two inputs of a layer by their mean squared variance; 0: none "
        "is left. Of the last batch of each epoch.",
        rows,
        on_axes("Decorrelation: what is left", draw),
    )


def by_step(
    name: str,
    title: str,
    label: str,
    caption: str,
    steps: Array,
    found: dict[str, Array],
    **how: Any,
) -> Panel:
    """Return a panel of courses over the snapshots, one for each layer.

    Args:
        how: ``log``, ``levels`` (value, text), ``band`` (low, high), ``errors`` by layer,
            ``quartiles`` by layer, ``limits``.
    """
    looks = layer_looks(list(found))
    errors, quartiles = how.get("errors", {}), how.get("quartiles", {})

    def draw(axes: Axes) -> None:
        if "band" in how:
            axes.axhspan(*how["band"], color=SHADE, lw=0)
        for place, (layer, values) in enumerate(found.items()):
            shift = 0.03 * (place - (len(found) - 1) / 2)
            if layer in quartiles:
                at = step_places(steps) + shift
                axes.vlines(at, *quartiles[layer], color=looks[layer].colour, lw=0.9)
            elif layer in errors:
                at, reach = step_places(steps) + shift, 1.96 * errors[layer]
                axes.vlines(at, values - reach, values + reach, color=looks[layer].colour, lw=0.9)
            step_line(axes, steps, values, looks[layer])
        if how.get("log") and all((v[np.isfinite(v)] > 0).all() for v in found.values()):
            log_axis(axes)
        if "limits" in how:
            axes.set_ylim(*how["limits"])
        for level in how.get("levels", ()):
            _level(axes, *level)
        axes.set_ylabel(label)
        step_axis(axes, steps)
        ends = [
            (layer_title(n), float(v[np.isfinite(v)][-1]), looks[n])
            for n, v in found.items()
            if np.isfinite(v).any()
        ]
        name_lines(axes, ends)

    rows = []
    for k, step in enumerate(steps):
        row: Row = {"step": int(step), **{n: float(v[k]) for n, v in found.items()}}
        row |= {f"{n}_error": float(v[k]) for n, v in errors.items()}
        row |= {f"{n}_quartiles": (float(v[0][k]), float(v[1][k])) for n, v in quartiles.items()}
        rows.append(row)
    said = ", ".join(f"{layer_title(n)} {v[-1]:.3g}" for n, v in found.items())
    spoken = f"{label} over {len(steps)} snapshots; at the last: {said}."
    return Panel(name, title, caption, rows, on_axes(title, draw), spoken)
