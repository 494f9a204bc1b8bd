"""Figures of answers: confusions, and the share right of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import answers
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import (
    BLUE,
    INK,
    SHADE,
    VERMILLION,
    plain,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]


def confusion(run: Run) -> list[Panel]:
    """Return counts of classes and answers on the stimuli, and the share right of each class."""
    table = run.confusion()
    counts, names = np.asarray(table.counts), [plain(name, 16) for name in table.classes]
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
                    column, row, str(counts[row, column]), ha="center", va="center", color=dark
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
