"""The cells of a comparison as they are drawn: runs, looks, the axis of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.metrics import Shown, figure
from biograd.plots.style import COLOURS, MARKERS, SOFT, Look, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
CONTROL = "frozen_hidden"
HALF_ROW = 0.15
"""What keeps 100 % on the axis, in per cent, where the number of test rows is not known."""
TICKS = (0, 20, 50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.8)


@dataclasses.dataclass(frozen=True)
class CellRuns:
    """One cell of a comparison.

    Attributes:
        row: of the results.
        runs: one for each seed.
        place: name of its line: the cell without its model and decorrelation.
        look: colour, marker, stroke; dotted and open: not decorrelated.
    """

    row: Row
    runs: Sequence[Row]
    place: str
    model: str
    look: Look

    @property
    def open(self) -> bool:
        """Whether its marker is not filled."""
        return self.look.line == ":"

    def values(self, shown: Shown) -> dict[int, float]:
        """Return the result of each seed."""
        return {int(run["seed"]): shown.value(figure(run)) for run in self.runs}


def gathered(rows: Sequence[Row], runs: Sequence[Row]) -> list[CellRuns]:
    """Return the cells that were trained, each with its runs and its look."""
    by_cell = {row["cell"]: [run for run in runs if run["cell"] == row["cell"]] for row in rows}
    there = [row for row in rows if row["n"] and by_cell[row["cell"]]]
    first = {row["cell"]: by_cell[row["cell"]][0] for row in there}

    def levels(key: str) -> list[str]:
        return list(dict.fromkeys(str(first[row["cell"]].get(key, "")) for row in there))

    rules, models = levels("estimator"), levels("model")
    colours = {
        rule: COLOURS[k % len(COLOURS)] for k, rule in enumerate(r for r in rules if r != CONTROL)
    }
    several = len(levels("decorrelation")) > 1
    found = []
    for row in there:
        one = first[row["cell"]]
        rule, model = str(one.get("estimator", "")), str(one.get("model", ""))
        off = several and one.get("decorrelation") == "off"
        mark = MARKERS[models.index(model) % len(MARKERS)]
        look = Look(colours.get(rule, SOFT), mark, ":" if off else "-")
        found.append(CellRuns(row, by_cell[row["cell"]], _place(row, model, several), model, look))
    return found


def _place(row: Row, model: str, several: bool) -> str:
    left = [row[k] for k in ("dataset", "estimator") if k in row]
    if "estimator" in row:
        return " · ".join(map(str, left))
    parts = str(row["cell"]).split(" · ")
    kept = [part for part in parts if part != model]
    if several:
        kept = [part for part in kept if not part.startswith("decorrelation ")]
    return " · ".join(kept) or str(row["cell"])


@dataclasses.dataclass(frozen=True)
class ResultScale:
    """Where results stand on an axis."""

    shown: Shown

    def at(self, value: Any) -> Any:
        """Return the places of results."""
        values = np.asarray(value, float)
        if not self.shown.share:
            return values
        error = values if self.shown.error else 100 - values
        place = np.log10(np.clip(error, 0, None) + HALF_ROW)
        return place if self.shown.error else -place

    def label(self, axes: Axes, which: str) -> None:
        """Write the labels of an axis, x or y."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        if self.shown.share:
            low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
            ticks = [100 - t for t in TICKS] if self.shown.error else list(TICKS)
            inside = [t for t in ticks if low <= float(self.at(t)) <= high]
            axis.set_ticks([float(self.at(t)) for t in inside], [f"{t:g}" for t in inside])
        unit = " (%)" if self.shown.share else ""
        getattr(axes, f"set_{which}label")(f"test {plain(self.shown.word)}{unit}")
