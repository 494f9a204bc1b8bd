"""The picture of a comparison: result of every cell, its course, and what it costs.

Drawn without pyplot, which keeps figures alive and asks for a display.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.errors import visible
from biograd.metrics import Shown, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#5e3c99")
"""Told apart by the colour-blind (Okabe & Ito 2008), and two more."""
GREY = "#8a8a8a"
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "biograd",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}
FEW = 8
"""Cells up to which the range of the seeds is drawn beside the mean."""
MANY = 16
"""Cells beyond which courses are too many for one panel."""


def draw(
    rows: Sequence[Row], runs: Sequence[Row], curves: Sequence[Row], shown: Shown
) -> Figure | None:
    """Return the figure of a comparison; None if nothing has been trained.

    Args:
        rows: one for each cell, see ``comparison.report``.
        runs: one for each run.
        curves: one for each run and epoch: cell, seed, epoch, value; shares in per cent.
        shown: how the headline metric is shown.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    trained = [row for row in rows if row["n"]]
    if not trained:
        return None
    colours = _colours([row["cell"] for row in trained], runs)
    costly = [row for row in trained if _operations(row)]
    long = max((point["epoch"] for point in curves), default=0) > 1
    panels = [True, long and len(trained) <= MANY, len(costly) > 1]
    height = max(2.6, 0.9 + 0.24 * len(trained))
    with rc_context(STYLE):
        figure = Figure((3.2 + 3.1 * sum(panels), height), layout="constrained")
        ratios = [r for r, shown in zip((1.15, 1, 1), panels, strict=True) if shown]
        axes = iter(figure.subplots(1, sum(panels), squeeze=False, width_ratios=ratios)[0])
        drawn = [next(axes)]
        _dots(drawn[0], trained, runs, colours, shown)
        if panels[1]:
            drawn.append(next(axes))
            _courses(drawn[-1], trained, curves, colours, shown)
        if panels[2]:
            drawn.append(next(axes))
            _costs(drawn[-1], costly, colours, shown)
        for letter, one in zip("abc", drawn, strict=False):
            one.set_title(f"$\\bf{{{letter}}}$  {one.get_title(loc='left')}", loc="left")
    return figure


def files(figure: Figure) -> Iterable[tuple[str, bytes]]:
    """Yield the ending and the bytes of a figure as PNG (300 dpi), PDF and SVG."""
    from matplotlib import rc_context

    for ending in ("png", "pdf", "svg"):
        stream = io.BytesIO()
        # no dates: the same results make the same file
        keys = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
            figure.savefig(stream, format=ending, dpi=300, metadata={keys[ending]: None})
        yield ending, stream.getvalue()


def _colours(cells: Sequence[str], runs: Sequence[Row]) -> dict[str, str]:
    control = {run["cell"] for run in runs if run["estimator"] == "frozen_hidden"}
    learning = [cell for cell in cells if cell not in control]
    if len(learning) <= len(COLOURS):
        found = dict(zip(learning, COLOURS, strict=False))
    else:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        shades = np.linspace(0.0, 0.95, len(learning))
        found = {c: to_hex(colormaps["turbo"](s)) for c, s in zip(learning, shades, strict=True)}
    return found | dict.fromkeys(control, GREY)


def _dots(
    axes: Axes, rows: Sequence[Row], runs: Sequence[Row], colours: Mapping[str, str], shown: Shown
) -> None:
    """Draw every seed, the mean, and its t interval."""
    low, high = _focus(runs, colours, shown)
    axes.set_xlim(low, high)
    for place, row in enumerate(rows):
        colour = colours[row["cell"]]
        if not low <= row["test"] <= high:  # a control, far from what is compared
            left = row["test"] < low
            text = f"{row['test']:.1f}" if shown.share else f"{row['test']:.3g}"
            words = f"◂ {text}" if left else f"{text} ▸"
            edge, side = (low, "left") if left else (high, "right")
            axes.text(edge, place, words, color=colour, va="center", ha=side)
            continue
        values = [shown.value(figure(run)) for run in runs if run["cell"] == row["cell"]]
        axes.plot(values, [place] * len(values), "o", ms=3, mfc="none", mec=colour, alpha=0.7)
        if row["interval"]:
            axes.plot(row["interval"], [place, place], "-", color=colour, lw=2.2, alpha=0.45)
        axes.plot(row["test"], place, "o", ms=5.5, color=colour, zorder=3)
    axes.set_yticks(range(len(rows)), [_name(row["cell"]) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(colours[row["cell"]])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", lw=0.4, alpha=0.5)
    axes.set_xlabel(_label(shown))
    axes.set_title("mean, 95 % interval, seeds")


def _name(cell: object) -> str:
    """Return a name as it is drawn: between two dollars would be a formula."""
    return visible(str(cell)).replace("$", r"\$")


def _focus(runs: Sequence[Row], colours: Mapping[str, str], shown: Shown) -> tuple[float, float]:
    """Return the range of what learns: controls far below would hide the differences."""
    learning = [run for run in runs if colours[run["cell"]] != GREY] or runs
    values = [shown.value(figure(run)) for run in learning]
    margin = 0.08 * (max(values) - min(values)) + (0.2 if shown.share else 1e-3)
    return min(values) - margin, max(values) + margin


def _courses(
    axes: Axes, rows: Sequence[Row], curves: Sequence[Row], colours: Mapping[str, str], shown: Shown
) -> None:
    """Draw the mean over seeds by epoch, and the range of the seeds."""
    from matplotlib.ticker import MaxNLocator

    for row in rows:
        epochs: dict[int, list[float]] = {}
        for point in curves:
            if point["cell"] == row["cell"]:
                epochs.setdefault(point["epoch"], []).append(point["value"])
        # a seed that stopped earlier would make a step in the mean
        whole = max(map(len, epochs.values()), default=0)
        kept = {epoch: v for epoch, v in sorted(epochs.items()) if len(v) == whole}
        means = [float(np.mean(values)) for values in kept.values()]
        colour = colours[row["cell"]]
        axes.plot(list(kept), means, color=colour, lw=1.3, label=_name(row["cell"]))
        if len(rows) <= FEW:
            lowest = [min(values) for values in kept.values()]
            highest = [max(values) for values in kept.values()]
            axes.fill_between(list(kept), lowest, highest, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    learning = [p for p in curves if colours.get(p["cell"], GREY) != GREY]
    if learning:  # the steep beginning would hide how they differ in the end
        begin = 1 + max(p["epoch"] for p in learning) // 8
        values = [p["value"] for p in learning]
        low = min(p["value"] for p in learning if p["epoch"] >= begin)
        high = max(p["value"] for p in learning if p["epoch"] >= begin)
        margin = 0.08 * (high - low) + (0.5 if shown.share else 0.0)
        steep = (min(values), high + margin) if shown.falls else (low - margin, max(values))
        ends = (0.0, 100.0) if shown.share else (-math.inf, math.inf)
        axes.set_ylim(max(ends[0], steep[0] - margin), min(ends[1], steep[1] + margin))
    axes.set_ylabel(_label(shown))
    axes.set_title("course, range of the seeds" if len(rows) <= FEW else "course, mean of seeds")
    axes.grid(lw=0.4, alpha=0.5)


def _label(shown: Shown) -> str:
    return f"test {shown.word}" + (f" ({shown.unit})" if shown.unit else "")


def _operations(row: Row) -> float:
    return (row.get("multiply_accumulates") or 0) + (row.get("synaptic_operations") or 0)


def _costs(axes: Axes, rows: Sequence[Row], colours: Mapping[str, str], shown: Shown) -> None:
    """Draw the result against the operations of an example's inference."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    learning = [row for row in rows if colours[row["cell"]] != GREY] or rows
    for row in learning:
        axes.plot(_operations(row), row["test"], "o", ms=5.5, color=colours[row["cell"]])
    found = [_operations(row) for row in learning]
    if max(found) > 30 * min(found):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.08 * max(found))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("operations per example at inference")
    axes.set_ylabel(_label(shown))
    axes.set_title(f"{shown.word} and operations, means")
    axes.grid(lw=0.4, alpha=0.5)
