"""The figures of a comparison: cells, paired differences, courses, what a result costs.

Colour is the rule, marker the model (circle and on), stroke and filling the decorrelation; the
control is grey.  Accuracies are spaced by the logarithm of the error, so that 94 and 95 % can be
told apart beside a control of 60.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.metrics import Shown
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import AXIS, INK, PAPER, SOFT, Look, name_lines, plain
from biograd.studies.results.cell_runs import CONTROL, CellRuns, ResultScale, Row, gathered
from biograd.studies.results.statistics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def panels(
    rows: Sequence[Row], runs: Sequence[Row], curves: Sequence[Row], shown: Shown
) -> list[Panel]:
    """Return the figures of a comparison; none if nothing has been trained.

    Args:
        rows: one for each cell, see ``comparison.report``.
        runs: one for each run.
        curves: one for each run and epoch: cell, seed, epoch, value; shares in per cent.
        shown: how the headline metric is shown.
    """
    cells = gathered(rows, runs)
    if not cells:
        return []
    found = [_cells(cells, shown)]
    if (pairs := _pairs(cells, shown)) is not None:
        found.append(pairs)
    if (costs := _operations(cells, shown)) is not None:
        found.append(costs)
    if max((point["epoch"] for point in curves), default=0) > 1:
        for model in dict.fromkeys(cell.model for cell in cells):
            mine = [cell for cell in cells if cell.model == model]
            parts = [mine[k : k + 12] for k in range(0, len(mine), 12)]
            found += [_courses(model, part, k, curves, shown) for k, part in enumerate(parts)]
    return found


def _lines(cells: Sequence[CellRuns]) -> tuple[dict[int, float], list[tuple[float, str, bool]]]:
    """Return the height of each cell, and heights, names and kinds (model or not) of the labels."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    heights: dict[int, float] = {}
    labels: list[tuple[float, str, bool]] = []
    at = 0.0
    for model in models:
        if len(models) > 1:
            labels.append((at, model, True))
            at += 1
        mine = [(k, cell) for k, cell in enumerate(cells) if cell.model == model]
        for place in dict.fromkeys(cell.place for _, cell in mine):
            here = [k for k, cell in mine if cell.place == place]
            for nth, k in enumerate(here):
                heights[k] = at + 0.36 * (nth - (len(here) - 1) / 2)
            labels.append((at, place, False))
            at += max(1.0, 0.36 * len(here) + 0.3)
    return heights, labels


def _name_heights(axes: Axes, labels: Sequence[tuple[float, str, bool]]) -> None:
    axes.set_yticks([at for at, _, _ in labels], [plain(name, 34) for _, name, _ in labels])
    for text, (_, _, head) in zip(axes.get_yticklabels(), labels, strict=True):
        text.set(color=INK, fontweight="bold" if head else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(labels[-1][0] + 0.7, -0.7)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")


def _mark(axes: Axes, x: float, y: float, look: Look) -> None:
    filled = PAPER if look.line == ":" else look.colour
    axes.plot(x, y, look.marker, ms=4.6, mfc=filled, mec=look.colour, mew=1.2, zorder=4)


def _height(labels: int) -> float:
    return max(2.35, 0.75 + 0.2 * labels)


def _cells(cells: Sequence[CellRuns], shown: Shown) -> Panel:
    """Return every seed, the mean and its t interval, for each cell."""
    scale, (heights, labels) = ResultScale(shown), _lines(cells)

    def draw(axes: Axes) -> None:
        seen = [scale.at(v) for cell in cells for v in cell.values(shown).values()]
        margin = 0.06 * (max(seen) - min(seen) or 1.0)
        low, high = min(seen) - margin, max(seen) + margin
        axes.set_xlim(low, high)
        for k, cell in enumerate(cells):
            y, look, row = heights[k], cell.look, cell.row
            at = scale.at(list(cell.values(shown).values()))
            axes.vlines(at, y - 0.2, y - 0.06, color=look.colour, lw=0.8)
            if row.get("interval"):
                ends = np.clip(
                    np.nan_to_num(scale.at(_within(row["interval"], shown)), nan=high), low, high
                )
                axes.plot(ends, [y, y], color=look.colour, ls=look.line, lw=1.6)
            _mark(axes, float(scale.at(row["test"])), y, look)
        _name_heights(axes, labels)
        scale.label(axes, "x")

    seeds = max(len(cell.runs) for cell in cells)
    return Panel(
        "cells",
        "Mean, 95 % interval, seeds",
        f"Ticks: each of up to {seeds} seeds. Marker: mean. Line: 95 % t interval of the mean over "
        "seeds, for this recipe and these data, cut at the axis; one more seed may lie outside."
        + _spaced(shown),
        [
            {
                "cell": cell.row["cell"],
                "n": len(cell.runs),
                "mean": cell.row["test"],
                "interval": cell.row.get("interval") or (math.nan, math.nan),
                **{f"seed_{s}": v for s, v in cell.values(shown).items()},
            }
            for cell in cells
        ],
        on_axes("Mean, 95 % interval, seeds", draw),
        "; ".join(f"{c.row['cell']} {c.row['test']:.4g}" for c in cells),
        height=_height(len(labels)),
    )


def _within(ends: Sequence[float], shown: Shown) -> list[float]:
    return [min(max(v, 0.0), 100.0) for v in ends] if shown.share else list(ends)


def _pairs(cells: Sequence[CellRuns], shown: Shown) -> Panel | None:
    """Return differences paired by seed: with and without decorrelation, else to the baseline."""
    found: list[tuple[CellRuns, list[float]]] = []
    partner: Callable[[CellRuns], CellRuns | None]
    if any(cell.open for cell in cells):
        closed = {(c.model, c.place): c for c in cells if c.open}
        partner, title = (
            lambda c: None if c.open else closed.get((c.model, c.place)),
            "with less without decorrelation",
        )
    else:
        bases = [cell for cell in cells if cell.row.get("difference") is None]
        if len(bases) != 1:
            return None
        partner, title = lambda c: None if c is bases[0] else bases[0], f"to {bases[0].row['cell']}"
    for cell in (c for c in cells if c.runs[0].get("estimator") != CONTROL):
        other = partner(cell)
        if other is not None:
            ours, theirs = cell.values(shown), other.values(shown)
            found.append((cell, [ours[s] - theirs[s] for s in ours if s in theirs]))
    found = [(cell, pairs) for cell, pairs in found if pairs]
    return _differences(found, plain(title, 60), shown) if found else None


def _differences(found: Sequence[tuple[CellRuns, list[float]]], what: str, shown: Shown) -> Panel:
    title, (heights, labels) = "Differences, paired by seed", _lines([cell for cell, _ in found])
    ends = [interval(pairs) or (pairs[0], pairs[0]) for _, pairs in found]
    wide = sorted(
        max(abs(v) for v in (*two, *pairs)) for two, (_, pairs) in zip(ends, found, strict=True)
    )
    # one cell that is far wider would press all others together
    second = wide[-2] if len(wide) > 1 else wide[-1]
    limit = 1.1 * (wide[-1] if wide[-1] <= 2 * second else second) or 1.0

    def draw(axes: Axes) -> None:
        axes.set_xlim(-limit, limit)
        axes.axvline(0, color=AXIS, lw=0.9)
        for k, ((cell, pairs), (low, high)) in enumerate(zip(found, ends, strict=True)):
            y, look = heights[k], cell.look
            inside = [v for v in pairs if abs(v) <= limit]
            axes.vlines(inside, y - 0.3, y - 0.1, color=look.colour, lw=0.8)
            axes.plot(np.clip([low, high], -limit, limit), [y, y], color=look.colour, lw=1.6)
            mean = float(np.mean(pairs))
            _mark(axes, min(max(mean, -limit), limit), y, look)
            if max(abs(low), abs(high)) > limit or len(inside) < len(pairs):
                for end, sign in ((low, "<"), (high, ">")):
                    if abs(end) > limit:
                        axes.plot(math.copysign(limit, end), y, sign, color=look.colour, ms=4)
                beyond = len(pairs) - len(inside)
                text = f"{low:+.2g} to {high:+.2g}" + (
                    f", {beyond} of {len(pairs)} seeds beyond" if beyond else ""
                )
                axes.text(limit, y + 0.14, text, ha="right", va="top", color=SOFT, fontsize="small")
        _name_heights(axes, labels)
        unit = " (points)" if shown.share else ""
        axes.set_xlabel(f"difference of {plain(shown.word)}{unit}")

    rows = [
        {
            "cell": cell.row["cell"],
            "pairs": len(pairs),
            "mean": float(np.mean(pairs)),
            "interval": two if len(pairs) > 1 else (math.nan, math.nan),
            **{f"pair_{k}": v for k, v in enumerate(pairs)},
        }
        for (cell, pairs), two in zip(found, ends, strict=True)
    ]
    return Panel(
        "differences",
        title,
        f"{what[:1].upper()}{what[1:]}. Each tick is one seed with its own partner; "
        "line: 95 % t interval of the mean difference, "
        f"up to {max(len(p) for _, p in found)} pairs. Overlap of "
        "intervals on the left decides nothing; this does.",
        rows,
        on_axes(title, draw),
        "; ".join(f"{c.row['cell']} {np.mean(p):+.3g}" for c, p in found),
        height=_height(len(labels)),
    )


def operations(row: Row) -> float:
    """Return multiply-accumulates and synaptic operations of an example, added."""
    return float((row.get("multiply_accumulates") or 0) + (row.get("synaptic_operations") or 0))


def _operations(cells: Sequence[CellRuns], shown: Shown) -> Panel | None:
    costly = [c for c in cells if operations(c.row) and c.runs[0].get("estimator") != CONTROL]
    if len(costly) < 2:
        return None
    scale = ResultScale(shown)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import EngFormatter, MaxNLocator

        for cell in costly:
            x, values = operations(cell.row), scale.at(list(cell.values(shown).values()))
            each = [operations(run) for run in cell.runs]
            how: dict[str, Any] = {"color": cell.look.colour, "ls": cell.look.line, "lw": 0.9}
            axes.plot([x, x], [min(values), max(values)], **how)
            axes.plot([min(each), max(each)], [scale.at(cell.row["test"])] * 2, **how)
            _mark(axes, x, float(scale.at(cell.row["test"])), cell.look)
        found = [operations(cell.row) for cell in costly]
        if max(found) > 30 * min(found):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.1 * max(found))
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel("operations of an example")
        scale.label(axes, "y")

    rows = [
        {
            "cell": cell.row["cell"],
            "result": cell.row["test"],
            "multiply_accumulates": cell.row.get("multiply_accumulates"),
            "synaptic_operations": cell.row.get("synaptic_operations"),
        }
        for cell in costly
    ]
    return Panel(
        "operations",
        "Result and operations",
        "Multiply-accumulates and synaptic operations, added; lines: range of the seeds. One "
        "of the first and one of the second do not cost the same: the table has both."
        + _spaced(shown),
        rows,
        on_axes("Result and operations", draw),
    )


def _courses(
    model: str, cells: Sequence[CellRuns], part: int, curves: Sequence[Row], shown: Shown
) -> Panel:
    """Return the courses of a model's cells: each seed thin, the mean thick."""
    title = f"Learning curves, {plain(model, 24)}" + (f" ({part + 1})" if part else "")
    scale, rows, drawn = ResultScale(shown), [], []
    for cell in cells:
        seeds: dict[int, dict[int, float]] = {}
        for point in curves:
            if point["cell"] == cell.row["cell"]:
                seeds.setdefault(point["seed"], {})[point["epoch"]] = point["value"]
        # a seed that stopped earlier would make a step in the mean
        common = sorted(set.intersection(*(set(s) for s in seeds.values()))) if seeds else []
        mean = [float(np.mean([s[e] for s in seeds.values()])) for e in common]
        if common:
            drawn.append((cell, seeds, common, mean))
            rows += [
                {"cell": cell.row["cell"], "epoch": e, "mean": v, "n": len(seeds)}
                for e, v in zip(common, mean, strict=True)
            ]

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for cell, seeds, common, mean in drawn:
            look = cell.look
            for course in seeds.values():
                axes.plot(
                    list(course),
                    scale.at(list(course.values())),
                    color=look.colour,
                    lw=0.5,
                    alpha=0.45,
                    ls=look.line,
                )
            axes.plot(common, scale.at(mean), color=look.colour, lw=1.7, ls=look.line)
            _mark(axes, common[-1], float(scale.at(mean[-1])), look)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        scale.label(axes, "y")
        ends = {
            cell.place: (float(scale.at(mean[-1])), cell.look) for cell, _, _, mean in drawn[::-1]
        }
        name_lines(
            axes,
            [(name, value, Look(look.colour, look.marker)) for name, (value, look) in ends.items()],
        )

    number = max((len(seeds) for _, seeds, _, _ in drawn), default=0)
    return Panel(
        f"curves_{plain(model, 24).replace(' ', '_')}{part or ''}",
        title,
        f"Thick: mean of up to {number} seeds, as far as all have come; thin: every seed. Solid: "
        "decorrelated, dotted: not, where the comparison has both." + _spaced(shown),
        rows,
        on_axes(title, draw),
    )


def _spaced(shown: Shown) -> str:
    return " The axis is spaced by the logarithm of the error." if shown.share else ""
