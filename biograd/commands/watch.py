"""``biograd watch``: follow a run that goes on, in the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from biograd.commands.options import Answer, command
from biograd.display.columns import columns, duration
from biograd.errors import natural, visible

BARS = " ▁▂▃▄▅▆▇█"
POSITION = ("step", "epoch", "wall_time")
WIDTH = 40
"""Values in a sparkline."""


@command("watch")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--once", is_flag=True, help="Show how the run stands now, and end.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
def watch(run: Path, once: bool, every: float) -> Answer:
    """Follow a run that goes on.

    RUN is a run file.  Until the run ends, its last figures and their courses are shown anew
    whenever it has written something; of a run that has ended, or was killed, they are shown once.
    Nothing is written beside the run.
    """
    from biograd.display.printing import redrawn

    if not once and standing_of(run)["status"] == "running":
        with redrawn() as show:
            for record in looks(run, every):
                show(drawn(record))
    record = standing_of(run)
    return Answer(record, drawn(record))


def looks(run: Path, every: float) -> Iterator[dict[str, Any]]:
    """Yield how a run stands, again and again until it ends or its process is gone."""
    before: dict[str, Any] | None = None
    while True:
        record = standing_of(run)
        if record != before:
            yield record
        if record["status"] != "running":
            return
        before = record
        time.sleep(every)


def standing_of(path: Path) -> dict[str, Any]:
    """Return how a run stands: status, place, last figures, their courses."""
    from biograd.runs.reader import open_run

    with open_run(path) as run:
        about, summary = run.attributes, run.summary
        commits = run.commits
        streams = {name: run.scalars(name) for name in run.streams if name != "final"}
    stream = streams.get("epoch") or streams.get("train_step") or {}
    courses = {
        name: [float(value) for value in stream[name]]
        for name in sorted(stream, key=natural)
        if name not in POSITION
    }
    steps: Any = streams.get("train_step", stream).get("step", ())
    budget = summary.get("budget") or {}
    return {
        "run": str(path),
        "status": about.get("status", run.status),
        "model": about.get("model"),
        "dataset": about.get("dataset"),
        "rule": about.get("rule"),
        "seed": about.get("seed"),
        "step": int(steps[-1]) if len(steps) else 0,
        "epochs": len(next(iter(courses.values()), [])) if "epoch" in streams else 0,
        "asked": budget.get("epochs"),
        "written": float(commits[-1][3]) / 1e9 if len(commits) else None,
        "courses": courses,
    }


def spark(values: Sequence[float]) -> str:
    """Return a course as a line of bars; what is not finite is a gap.

    >>> spark([0, 1, 2, float("nan"), 4])
    '▁▃▅ █'
    """
    shown = list(values)[-WIDTH:]
    known = [value for value in shown if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = (high - low) or 1.0
    return "".join(
        BARS[1 + round(7 * (value - low) / span)] if math.isfinite(value) else " "
        for value in shown
    )


def drawn(record: dict[str, Any]) -> str:
    """Return how a run stands as text."""
    title = " · ".join(
        str(record[k]) for k in ("model", "dataset", "rule") if record[k] is not None
    )
    head = [("run", record["run"]), ("what", f"{title}, seed {record['seed']}")]
    head += [("status", record["status"]), ("step", str(record["step"]))]
    if record["epochs"]:
        head.append(("epoch", str(record["epochs"])))
    if record["status"] == "running" and record["written"]:
        ago = max(time.time() - record["written"], 0.0)
        head.append(("written", f"{duration(ago)} ago"))
    rows = [
        [visible(name), f"{values[-1]:.4g}", spark(values)]
        for name, values in record["courses"].items()
        if values and any(value == value for value in values)
    ]
    table = (
        columns(rows, ["FIGURE", "LAST", f"COURSE (last {WIDTH})"]) if rows else "no figures yet"
    )
    return f"{columns([[k, visible(str(v))] for k, v in head])}\n\n{table}"
