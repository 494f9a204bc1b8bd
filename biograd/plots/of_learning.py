"""Figures of how a run learned: results, losses, decorrelation, gradients, weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import weights
from biograd.analyses.answers import wilson
from biograd.errors import RunFileError
from biograd.metrics import headline, is_share, words
from biograd.plots.panel import Panel, Row, on_axes
from biograd.plots.style import (
    AXIS,
    BLUE,
    INK,
    SHADE,
    SOFT,
    Look,
    is_readout,
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


def gradients(run: Run) -> list[Panel]:
    """Return direction, size and signs of the gradient estimate, by snapshot."""
    table = {n: v for n, v in run.learning.items() if "cosine" in v}
    if not table:
        raise RunFileError(f"{run.path}: holds no gradients: train with training.probe=4")
    steps = run.snapshots["step"]
    sizes = [
        math.prod(e["shape"])
        for n, e in run.credit.items()
        if n.rsplit(".", 1)[0] in table and isinstance(e.get("shape"), list)
    ]
    reach = 1.96 / math.sqrt(max(min((s for s in sizes if s > 100), default=100), 1))
    probe = run.config.get("recipe", {}).get("training", {}).get("probe")
    draws = (
        f"Means of {probe} draws; bars: 95 % of those means. "
        if type(probe) is int and probe > 0
        else ""
    )

    def panel(
        key: str, title: str, label: str, caption: str, scale: float = 1.0, **how: Any
    ) -> Panel:
        values = {n: scale * v[key] for n, v in table.items()}
        errors = {n: scale * v[f"{key}_error"] for n, v in table.items() if f"{key}_error" in v}
        return by_step(
            f"gradient_{key}", title, label, draws + caption, steps, values, errors=errors, **how
        )

    return [
        panel(
            "cosine",
            "Gradient: direction",
            "cosine of one draw",
            "1: the direction of back-propagation (of spikes: with the surrogate derivative), 0: "
            "none of it. Shaded: 95 % of random directions.",
            band=(-reach, reach),
            limits=(-0.15 - reach, 1.08),
        ),
        panel(
            "norm_ratio",
            "Gradient: size of one draw",
            "norm / norm of the reference (log)",
            "Dotted: as large as the reference. Above it at a low cosine: mostly noise.",
            log=True,
            levels=[(1.0, "as large")],
        ),
        panel(
            "sign_agreement",
            "Gradient: signs",
            "same sign (%)",
            "Share of the weights whose estimate has the reference's sign.",
            100.0,
            limits=(0, 104),
            levels=[(50.0, "guessing")],
        ),
    ]


def weight_norms(run: Run) -> list[Panel]:
    """Return the norms of the weights, and their net change by step."""
    steps, found, change = run.snapshots["step"], {}, {}
    gaps = np.diff(steps, prepend=steps[:1])
    for name, table in run.params.items():
        if name.endswith("weight") and "norm" in table and table["norm"][0] > 0:
            found[name] = table["norm"] / table["norm"][0]
            if "update_norm" in table:
                with np.errstate(divide="ignore", invalid="ignore"):
                    moved = table["update_norm"] / table["norm"] / gaps
                change[name] = np.where(gaps > 0, moved, np.nan)
    if not found:
        raise RunFileError(f"{run.path}: holds no norms of weights")
    panels = [
        by_step(
            "weight_norm",
            "Weights: norm",
            "norm / initial norm",
            "Frobenius norm, by that before training.",
            steps,
            found,
            levels=[(1.0, "as at first")],
        )
    ]
    if any(np.isfinite(v).any() and (np.nan_to_num(v) > 0).any() for v in change.values()):
        positive = {n: np.where(v > 0, v, np.nan) for n, v in change.items()}
        panels.append(
            by_step(
                "weight_change",
                "Weights: net change of a step",
                "net change / norm, by step (log)",
                "The straight way since the snapshot before, by the norm and the steps between: a "
                "way that turns is longer than its line, so long intervals look slower.",
                steps,
                positive,
                log=True,
            )
        )
    return panels


def histograms(run: Run) -> list[Panel]:
    """Return the weights of each layer before and after training."""
    panels = []
    for name in run.params:
        if not name.endswith("weight"):
            continue
        course = run.weights(name)
        both = np.stack([np.asarray(course[0]), np.asarray(course[-1])])
        if not np.isfinite(both).all():
            continue
        panels.append(_histogram(name, weights.histograms(both), both))
    if not panels:
        raise RunFileError(f"{run.path}: holds no weights at its snapshots")
    return panels


def _histogram(name: str, found: dict[str, Array], both: Array) -> Panel:
    title = f"Weights of {layer_title(name)}"
    number = both[0].size
    before, after = (float(one.std()) for one in both)

    def draw(axes: Axes) -> None:
        edge, share = found["edge"], 100 * found["share"]
        axes.stairs(share[0], edge, fill=True, color=AXIS, alpha=0.55, label="before")
        look = layer_looks([name])[name]
        axes.stairs(
            share[1],
            edge,
            color=look.colour if not is_readout(name) else INK,
            lw=1.4,
            label="after",
        )
        axes.legend(frameon=False, handlelength=1.2, loc="upper left", labelcolor=INK)
        axes.set(xlabel="weight", ylabel=f"% of {number:,} weights".replace(",", "\u2009"))

    rows = [
        {"low": float(a), "high": float(b), "before": float(p), "after": float(q)}
        for a, b, p, q in zip(found["edge"], found["edge"][1:], *found["share"], strict=False)
    ]
    caption = f"Before (filled) and after (line); standard deviation {before:.3g} and {after:.3g}."
    return Panel(
        f"weights_{layer_title(name).replace(' ', '_')}", title, caption, rows, on_axes(title, draw)
    )
