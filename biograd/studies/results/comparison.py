"""What the summaries of many runs say together: a table, paired differences, contrasts, costs."""

from __future__ import annotations

import dataclasses
import statistics as means
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from biograd.metrics import Shown, figure
from biograd.placement import Failure
from biograd.studies import Report
from biograd.studies.grid import Cell
from biograd.studies.results import statistics
from biograd.studies.results.writing import COSTLY

Summary = dict[str, Any]
Row = dict[str, Any]

TUNED = (
    "settings of every cell were chosen by as many trials on a held-out part of the training data"
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Cells, and the summaries of those of their runs that are complete.

    Attributes:
        found: name of a cell to seed to summary.
        baseline: name of the cell to which the others are compared.
        error: whether errors are shown in place of shares.
        split: what the results are of.
    """

    cells: Sequence[Cell]
    seeds: Sequence[int]
    found: Mapping[str, dict[int, Summary]]
    baseline: str
    error: bool = False
    split: str = "test"

    def baseline_of(self, cell: Cell) -> str:
        """Return the cell to which one is compared: on the same data, if the grid has several."""
        data = cell.factors.get("dataset")
        named = {one.name: one for one in self.cells}
        factors = named[self.baseline].factors if self.baseline in named else {}
        if data is None or factors.get("dataset") in (None, data):
            return self.baseline
        same = [one.name for one in self.cells if one.factors == {**factors, "dataset": data}]
        return same[0] if same else self.baseline

    @cached_property
    def shown(self) -> Shown:
        """How the headline metric is shown."""
        every = [summary for of in self.found.values() for summary in of.values()]
        return Shown.of(every, self.error)

    def test(self, cell: str, seed: int) -> float:
        """Return the headline metric of a run as it is shown, shares in per cent."""
        return self.shown.value(figure(self.found[cell][seed]))

    def train(self, cell: str, seed: int) -> float:
        """Return the same of the training data."""
        return self.shown.value(figure(self.found[cell][seed], "train"))

    def shared(self, one: str, other: str) -> list[int]:
        """Return the seeds with which two cells have been trained."""
        return [seed for seed in self.found[one] if seed in self.found[other]]


def report(
    compared: Comparison, failures: Sequence[Failure] = (), tuning: Sequence[Row] = ()
) -> Report:
    """Return the table of a comparison, its runs and its contrasts.

    Args:
        tuning: what a search chose for every cell.
    """
    rows = [_row(compared, cell) for cell in compared.cells]
    _add_differences(compared, rows)
    what = f"{compared.shown.word} {compared.shown.unit}".rstrip()
    columns = {
        "cell": "",
        "n": "n",
        "test": f"{compared.split} {what}",
        "interval": "95 %",
        "difference": f"to {_short(compared)}",
        "difference_interval": "95 %",
        "p_holm": "p",
        "effect": "effect",
        "published": f"published {compared.shown.unit}".rstrip(),
        **COSTLY,
    }
    kept = {k: title for k, title in columns.items() if any(r.get(k) is not None for r in rows)}
    return Report(
        kept,
        rows,
        [*_notes(compared, rows), *([TUNED] if tuning else [])],
        tables={
            "runs": list(_runs(compared)),
            "contrasts": _contrasts(compared),
            "tuning": list(tuning),
        },
        failures=[{"training": one.name, "reason": one.reason} for one in failures],
        trainings=len(compared.cells) * len(compared.seeds),
        fine=not compared.shown.share,
    )


def _row(compared: Comparison, cell: Cell) -> Row:
    found = compared.found[cell.name]
    row: Row = {"cell": cell.name, **cell.factors, "n": len(found)}
    if cell.published is not None:
        row["published"] = cell.published
    if not found:
        return row
    test = [compared.test(cell.name, seed) for seed in found]
    row |= {
        "test": means.mean(test),
        "interval": statistics.interval(test),
        "deviation": means.stdev(test) if len(test) > 1 else None,
        "lowest": min(test),
        "highest": max(test),
        "train": means.mean(compared.train(cell.name, seed) for seed in found),
        "seconds": means.mean(summary["seconds"] for summary in found.values()),
    }
    for key in COSTLY:
        known = [summary[key] for summary in found.values() if summary.get(key) is not None]
        row[key] = means.mean(known) if known else None
    return row


def _add_differences(compared: Comparison, rows: Sequence[Row]) -> None:
    """Add to every row its difference to the baseline, paired by seed."""
    cells = {cell.name: cell for cell in compared.cells}
    for row in rows:
        baseline = compared.baseline_of(cells[row["cell"]])
        seeds = compared.shared(row["cell"], baseline)
        if not seeds or row["cell"] == baseline:
            continue
        ours, theirs = ([compared.test(c, s) for s in seeds] for c in (row["cell"], baseline))
        row |= _paired(ours, theirs)
    _correct(rows)


def _short(compared: Comparison) -> str:
    """Return what the baseline is called where every data set has its own."""
    known = {cell.name: cell for cell in compared.cells}
    data = known[compared.baseline].factors.get("dataset") if compared.baseline in known else None
    prefix = "" if data is None else f"{Path(data).stem} · "
    return compared.baseline.removeprefix(prefix)


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> Row:
    found = statistics.paired(ours, theirs)
    return {
        "difference": found.mean,
        "difference_interval": found.interval,
        "pairs": found.pairs,
        "p": found.p,
        "p_exact": found.p_exact,
        "effect": found.effect,
    }


def _correct(rows: Sequence[Row]) -> None:
    for row, p in zip(rows, statistics.holm([row.get("p") for row in rows]), strict=True):
        row["p_holm"] = p


def _contrasts(compared: Comparison) -> list[Row]:
    """Return what each level of an axis gives, against the first, with all else the same.

    A seed's differences are averaged over the other axes, so that seeds stay the sample.
    """
    cells = [cell for cell in compared.cells if cell.factors and not cell.control]
    rows: list[Row] = []
    for axis in dict.fromkeys(axis for cell in cells for axis in cell.factors):
        if axis == "dataset":  # results on other data are no pair
            continue
        first, *others = dict.fromkeys(cell.factors[axis] for cell in cells)
        for level in others:
            values = list(_matched(compared, cells, axis, level, first))
            if values:
                ours, theirs, count = zip(*values, strict=True)
                row = {"axis": axis, "level": level, "against": first, "cells": count[0]}
                rows.append(row | _paired(ours, theirs))
    _correct(rows)
    return rows


def _matched(
    compared: Comparison, cells: Sequence[Cell], axis: str, level: str, first: str
) -> Iterator[tuple[float, float, int]]:
    """Yield for each seed the means of two levels over the cells that both have."""
    names = {frozenset(cell.factors.items()): cell.name for cell in cells}
    pairs = [
        (cell.name, other)
        for cell in cells
        if cell.factors[axis] == level
        and (other := names.get(frozenset({**cell.factors, axis: first}.items())))
    ]
    pairs = [(one, other) for one, other in pairs if compared.shared(one, other)]
    for seed in compared.seeds:
        if pairs and all(seed in compared.shared(one, other) for one, other in pairs):
            ours = means.mean(compared.test(one, seed) for one, _ in pairs)
            theirs = means.mean(compared.test(other, seed) for _, other in pairs)
            yield ours, theirs, len(pairs)


def _runs(compared: Comparison) -> Iterator[Row]:
    """Yield a row for every run: what of its summary fits into a cell."""
    plain = (str, int, float, bool, type(None))
    for cell in compared.cells:
        for seed, summary in compared.found[cell.name].items():
            flat = {key: value for key, value in summary.items() if isinstance(value, plain)}
            file = Path(str(summary["run"])).name
            yield {"cell": cell.name, **cell.factors, "seed": seed, **flat, "run": file}


def _notes(compared: Comparison, rows: Sequence[Row]) -> list[str]:
    count = len(compared.seeds)
    words = "seed" if count == 1 else "seeds"
    notes = [f"{count} {words}: {', '.join(map(str, compared.seeds))}; n: how many were trained"]
    if any(row.get("p") is not None for row in rows):
        notes.append(
            "95 %: t interval of the mean over seeds; "
            "differences are paired by seed; p: paired t test, corrected after Holm for all of a "
            "table; effect: Hedges' g of the differences"
        )
    for cell, found in compared.found.items():
        kinds = {summary["outside"] for summary in found.values() if summary.get("outside")}
        notes += [f"{cell}: outside of the rule: {kind}" for kind in sorted(kinds)]
    if not compared.found.get(compared.baseline):
        notes.append(f"nothing is compared: {compared.baseline} was not trained")
    known = [(row["published"], row["test"]) for row in rows if "published" in row and row["n"]]
    if len(known) > 2:
        published, here = zip(*known, strict=True)
        correlation = rank_correlation(published, here)
        notes.append(f"rank correlation with the published figures {correlation:.2f}")
    return notes


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank.

    >>> rank_correlation([1, 2, 3], [10, 20, 15])
    0.5
    """
    from scipy.stats import spearmanr

    return round(float(spearmanr(first, second).statistic), 12)
