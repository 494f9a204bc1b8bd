"""What a comparison leaves in its folder beside the runs: set file, picture, page, courses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.display.csv_text import as_csv
from biograd.metrics import Shown, headline
from biograd.plots.panel import files as figure_files
from biograd.plots.panel import paper
from biograd.progress import Key
from biograd.runs.reader import open_run
from biograd.studies import SAVED, Report, Row
from biograd.studies.results import page, panels, set_file

VERSIONS = ("versions", "platform", "device", "git")


def write(
    report: Report,
    study: Mapping[str, Any],
    files: Mapping[Key, Path],
    folder: Path,
    shown: Shown,
) -> None:
    """Write ``set.h5``, ``courses.csv``, ``comparison.png|pdf|svg`` and ``report.html``.

    Args:
        study: its settings.
        files: of the runs that are complete.
        shown: how the headline metric is shown.
    """
    curves = list(courses(files, shown))
    tables = {"results": report.rows, **report.tables, "courses": curves}
    names = {key: path.name for key, path in files.items()}
    set_file.write(folder / "set.h5", study, names, {n: t for n, t in tables.items() if t})
    if curves:
        disk.write_bytes(folder / "courses.csv", as_csv(curves).encode())
    drawn = panels.panels(report.rows, report.tables["runs"], curves, shown)
    if drawn:
        for ending, data in figure_files(paper(drawn), ("pdf", "png", "svg")).items():
            disk.write_bytes(folder / f"comparison.{ending}", data)
    command = shlex.join(["biograd", "run", str(folder / SAVED), "--out", str(folder)])
    text = page.page(
        str(study.get("description") or "Comparison"),
        report,
        study,
        environment_of(files),
        drawn,
        command,
    )
    disk.write_bytes(folder / "report.html", text.encode())


def courses(files: Mapping[Key, Path], shown: Shown) -> Iterator[Row]:
    """Yield the headline metric of every run and epoch; shares in per cent."""
    for (cell, seed), path in files.items():
        with open_run(path) as run:
            if "epoch" not in run.streams:
                continue
            table, name = run.scalars("epoch"), headline(run.attributes)
        for epoch, value in enumerate(table[f"test_{name}"].tolist(), 1):
            yield {"cell": cell, "seed": seed, "epoch": epoch, "value": shown.value(value)}


def environment_of(files: Mapping[Key, Path]) -> dict[str, Any]:
    """Return the software of the first run; the others say theirs in their files."""
    for path in files.values():
        with open_run(path) as run:
            return {key: value for key, value in run.environment.items() if key in VERSIONS}
    return {}
