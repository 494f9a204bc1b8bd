"""A comparison as one HTML page that needs nothing else: no network, no script.

Everything that comes from a user's file or a run is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from biograd.metrics import headline
from biograd.pages.markup import Figures, document, html, listing, region, section
from biograd.plots.panel import Panel
from biograd.studies import Report, Row
from biograd.studies.results.cell_runs import gathered
from biograd.studies.results.writing import COSTLY, write_cell

CONTRASTS = {
    "axis": "axis",
    "level": "level",
    "against": "against",
    "cells": "cells",
    "pairs": "seeds",
    "difference": "difference",
    "difference_interval": "95 %",
    "p_holm": "p",
    "effect": "effect",
}
RUNS = {
    "cell": "cell",
    "seed": "seed",
    "epochs": "epochs",
    "forward_passes": "forward passes",
    "training_seconds": "seconds",
    "peak_memory_bytes": "memory",
    "run": "file",
}
COSTS = (
    "Seconds are those of the training steps, measured while other trainings may have run beside; "
    "memory is the peak of the process. Operations are those of one example's inference: "
    "multiply-accumulates of layers that receive numbers, synaptic operations (spikes times "
    "fan-out) of layers that receive spikes; they stand for energy only roughly."
)


def page(
    title: str,
    report: Report,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    panels: Sequence[Panel],
    command: str,
    representation: Sequence[Panel] = (),
) -> str:
    """Return the page of a comparison.

    Args:
        settings: of the study, as a table.
        environment: of its runs: versions and machine.
        panels: its figures.
        command: that repeats it.
        representation: figures of what the layers hold.
    """
    drawing = Figures()
    results = [panel for panel in panels if not panel.name.startswith("curves")]
    courses = [panel for panel in panels if panel.name.startswith("curves")]
    runs = report.tables.get("runs", [])
    parts = [
        section("Results", drawing.grid(results) if results else ""),
        section("Learning curves", drawing.grid(courses) if courses else ""),
        section("Representation", drawing.grid(representation) if representation else ""),
        section("Numbers", *_results(report)),
        section("Contrasts", *_contrasts(report.tables.get("contrasts", []), report.fine)),
        section("Search", *_tuning(report.tables.get("tuning", []))),
        section("Costs", *_costs(report.rows)),
        section("Runs", *_runs(runs)),
        section("Settings", listing(settings, "Settings")),
        section("Environment", listing(environment, "Environment")),
        section("Repeat", f"<pre>{html(command)}</pre>"),
    ]
    head = _key(report.rows, runs) + _failures(report.failures)
    return document(title, _lead(report), head, parts)


def _lead(report: Report) -> str:
    runs = report.tables.get("runs", [])
    data = ", ".join(dict.fromkeys(str(run["dataset"]) for run in runs)) or "no data"
    seeds = len({run["seed"] for run in runs})
    return (
        f"{len(report.rows)} cells, {seeds} seeds, {len(runs)} runs on {data}. Runs of a seed "
        "share the order of the data and, where shapes agree, the initial weights."
    )


def _key(rows: Sequence[Row], runs: Sequence[Row]) -> str:
    """Return one key for all figures: colours of rules, markers of models, strokes."""
    cells = gathered(rows, runs)
    rules = {str(cell.runs[0].get("estimator", "")): cell.look.colour for cell in cells}
    marks = {cell.model: cell.look.marker for cell in cells}
    entries = [
        (f'<rect y="3" width="30" height="8" rx="2" fill="{c}"/>', n) for n, c in rules.items()
    ]
    if len(marks) > 1:
        entries += [(SHAPES.get(mark, SHAPES["o"]), name) for name, mark in marks.items()]
    if any(cell.open for cell in cells):
        line = '<path d="M1 7H29" stroke="var(--ink)" stroke-width="2"{}/>'
        entries += [
            (line.format(""), "decorrelated"),
            (line.format(' stroke-dasharray="2 3"'), "not decorrelated"),
        ]
    each = (
        f'<li><svg viewBox="0 0 32 14" aria-hidden="true">{mark}</svg>{html(name)}</li>'
        for mark, name in entries
    )
    return f'<ul class="key" aria-label="Key of the figures">{"".join(each)}</ul>' if cells else ""


SHAPES = {
    "o": '<circle cx="15" cy="7" r="5" fill="var(--ink)"/>',
    "s": '<rect x="10" y="2" width="10" height="10" fill="var(--ink)"/>',
    "^": '<path d="M15 1l6 11H9z" fill="var(--ink)"/>',
    "D": '<path d="M15 1l6 6-6 6-6-6z" fill="var(--ink)"/>',
    "v": '<path d="M15 13L9 2h12z" fill="var(--ink)"/>',
    "P": '<path d="M13 2h4v3h3v4h-3v3h-4V9h-3V5h3z" fill="var(--ink)"/>',
}


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    if not failures:
        return ""
    lines = "".join(
        f"<li><b>{html(one['training'])}</b>: {html(one['reason'])}</li>" for one in failures
    )
    return f'<div class="failed"><b>Not trained</b><ul>{lines}</ul></div>'


def table(
    rows: Sequence[Row], columns: Mapping[str, str], fine: bool = False, name: str = "Results"
) -> str:
    """Return rows as an HTML table."""
    head = "".join(f'<th scope="col">{html(title or "cell")}</th>' for title in columns.values())
    lines = []
    for row in rows:
        control = ' class="control"' if "frozen" in str(row.get("cell", "")) else ""
        cells = "".join(f"<td>{_cell(key, row.get(key), fine)}</td>" for key in columns)
        lines.append(f"<tr{control}>{cells}</tr>")
    body = "".join(lines)
    return region(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", name)


def _cell(key: str, value: Any, fine: bool) -> str:
    text = html(write_cell(key, value, fine))
    # behind "./" a name is never an address
    linked = key == "run" and isinstance(value, str)
    return f'<a href="./{quote(str(value), safe="")}">{text}</a>' if linked else text


def _results(report: Report) -> Iterator[str]:
    shown = {key: name for key, name in report.columns.items() if key not in COSTLY}
    yield table(report.rows, shown, report.fine)
    for note in report.notes:
        yield f'<p class="note">{html(note[:1].upper() + note[1:])}.</p>'


def _contrasts(rows: Sequence[Row], fine: bool) -> Iterator[str]:
    if rows:
        yield table(rows, CONTRASTS, fine, "Contrasts")
        words = "Each level against the first, with all else the same, averaged over the other axes"
        yield f'<p class="note">{words}, paired by seed; controls are left out.</p>'


def _tuning(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield table(rows, {k: k.replace("_", " ") for row in rows for k in row}, name="Search")


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    shown = {key: name for key, name in COSTLY.items() if any(row.get(key) for row in rows)}
    if shown:
        yield table(rows, {"cell": "", **shown}, name="Costs")
        yield f'<p class="note">{html(COSTS)}</p>'


def _runs(runs: Sequence[Row]) -> Iterator[str]:
    names = dict.fromkeys(headline(run) for run in runs)
    results = {f"{split}_{name}": split for name in names for split in ("test", "train")}
    head, tail = dict(list(RUNS.items())[:2]), dict(list(RUNS.items())[2:])
    known = {**head, **results, **tail}
    shown = {k: name for k, name in known.items() if any(run.get(k) is not None for run in runs)}
    if runs:
        yield table(runs, shown, name="Runs")
