"""A comparison as one HTML page that needs nothing else: no network, no script.

Everything that comes from a user's file or a run is escaped; the picture is an image, in which no
script can run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from biograd.errors import visible
from biograd.metrics import headline
from biograd.studies import Report, Row
from biograd.studies.results.writing import COSTLY, write_cell

STYLE = """
:root { --ink: #1c2024; --soft: #60646c; --line: #d9dbe0; --paper: #fff; --mark: #f2f5fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9ba1a6; --line: #3a3f42; --paper: #16181a; --mark: #202427; }
  img { background: #fff; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p.lead, .note { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
tr.control td { color: var(--soft); }
tr:hover td { background: var(--mark); }
td.text { text-align: left; white-space: normal; }
img { max-width: 100%; height: auto; }
pre { background: var(--mark); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px;
  font-size: .85rem; }
.failed { border-left: 4px solid #c62a2f; padding-left: 1rem; }
"""

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


def html(text: object) -> str:
    """Return a text as HTML has it, all of it visible."""
    return escape(visible(str(text), "\n"))


def page(
    title: str,
    report: Report,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    picture: bytes | None,
    command: str,
) -> str:
    """Return the page of a comparison.

    Args:
        settings: of the study, as a table.
        environment: of its runs: versions and machine.
        picture: an SVG.
        command: that repeats it.
    """
    parts = [
        f"<h1>{html(title)}</h1>",
        f'<p class="lead">{html(_lead(report))}</p>',
        _failures(report.failures),
        *_results(report),
        *_contrasts(report.tables.get("contrasts", []), report.fine),
        *_tuning(report.tables.get("tuning", [])),
        *_picture(picture),
        *_costs(report.rows),
        *_runs(report.tables.get("runs", [])),
        *_block("Settings", settings),
        *_block("Software and machine", environment),
        "<h2>Again</h2>",
        f"<pre>{html(command)}</pre>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


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


def _lead(report: Report) -> str:
    runs = report.tables.get("runs", [])
    data = ", ".join(dict.fromkeys(str(run["dataset"]) for run in runs)) or "no data"
    seeds = len({run["seed"] for run in runs})
    return f"{len(report.rows)} cells, {seeds} seeds, {len(runs)} runs on {data}."


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    if not failures:
        return ""
    lines = "".join(
        f"<li><b>{html(one['training'])}</b>: {html(one['reason'])}</li>" for one in failures
    )
    return f'<div class="failed"><b>Not trained</b><ul>{lines}</ul></div>'


def table(rows: Sequence[Row], columns: Mapping[str, str], fine: bool = False) -> str:
    """Return rows as an HTML table."""
    head = "".join(f"<th>{html(name)}</th>" for name in columns.values())
    lines = []
    for row in rows:
        control = ' class="control"' if "frozen" in str(row.get("cell", "")) else ""
        cells = "".join(f"<td>{html(write_cell(key, row.get(key), fine))}</td>" for key in columns)
        lines.append(f"<tr{control}>{cells}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _results(report: Report) -> Iterator[str]:
    yield "<h2>Results</h2>"
    shown = {key: name for key, name in report.columns.items() if key not in COSTLY}
    yield table(report.rows, shown, report.fine)
    for note in report.notes:
        yield f'<p class="note">{html(note[:1].upper() + note[1:])}.</p>'


def _contrasts(rows: Sequence[Row], fine: bool) -> Iterator[str]:
    if rows:
        yield "<h2>What each choice gives</h2>"
        yield table(rows, CONTRASTS, fine)
        words = "Each level against the first, with all else the same, averaged over the other axes"
        yield f'<p class="note">{words}, paired by seed; controls are left out.</p>'


def _tuning(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield "<h2>What the search chose</h2>"
        yield table(rows, {key: key.replace("_", " ") for row in rows for key in row})


def _picture(picture: bytes | None) -> Iterator[str]:
    if picture is not None:
        data = base64.b64encode(picture).decode()
        alternative = "Result of every cell, its course over the epochs, and its cost"
        yield "<h2>Picture</h2>"
        yield f'<p><img alt="{alternative}" src="data:image/svg+xml;base64,{data}"></p>'


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    shown = {key: name for key, name in COSTLY.items() if any(row.get(key) for row in rows)}
    if shown:
        yield "<h2>Costs</h2>"
        yield table(rows, {"cell": "", **shown})
        yield f'<p class="note">{html(COSTS)}</p>'


def _runs(runs: Sequence[Row]) -> Iterator[str]:
    names = dict.fromkeys(headline(run) for run in runs)
    results = {f"{split}_{name}": split for name in names for split in ("test", "train")}
    head, tail = dict(list(RUNS.items())[:2]), dict(list(RUNS.items())[2:])
    known = {**head, **results, **tail}
    shown = {k: name for k, name in known.items() if any(run.get(k) is not None for run in runs)}
    if runs:
        yield "<h2>Every run</h2>"
        yield table(runs, shown)


def _block(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{title}</h2>"
    yield f"<pre>{html(json.dumps(values, indent=2, ensure_ascii=False))}</pre>"
