"""``biograd inspect``: what a run file holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biograd.commands.layout import columns, size
from biograd.commands.options import Answer, command

if TYPE_CHECKING:
    from rich.tree import Tree

    from biograd.runs.reader import Entry, Run

HEADER = {
    "model": "model",
    "dataset": "dataset",
    "rule": "estimator",
    "seed": "seed",
    "device": "device",
    "created_at": "started",
    "finished_at": "finished",
    "biograd_version": "biograd",
}
"""The attributes that open the text, and what they are called there; ``--json`` has them all."""
POSITION = ("step", "epoch", "wall_time")
"""Columns of a stream that say where a row stands, not what was measured."""


@command("inspect")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def inspect(run: Path) -> Answer:
    """Show what a run file holds.

    RUN is a run file, also of a run that still goes on or was killed.
    """
    from biograd.runs.reader import open_run

    with open_run(run) as opened:
        entries = opened.tree()
        record = {
            "run": opened.path,
            "status": opened.status,
            "attributes": opened.attributes,
            "config": opened.config,
            "checkpoints": opened.checkpoints,
            "last": {stream: last(opened, stream) for stream in opened.streams},
            "data": [
                {
                    "name": entry.name,
                    "shape": list(entry.shape),
                    "dtype": entry.dtype,
                    "bytes": entry.nbytes,
                    "stored_bytes": entry.stored,
                }
                for entry in entries
            ],
        }
    return Answer(record, _drawing(record, entries))


def last(run: Run, stream: str) -> dict[str, Any]:
    """Return the last row of a stream of scalars, less the metrics that were not measured."""
    row = {name: values[-1].item() for name, values in run.scalars(stream).items() if len(values)}
    return {name: value for name, value in row.items() if value == value}


def _drawing(record: dict[str, Any], entries: list[Entry]) -> Any:
    from rich.console import Group
    from rich.text import Text

    text = [columns(_header(record)), "", *_metrics(record["last"]), ""]
    return Group(Text("\n".join(text)), tree(str(record["run"]), entries))


def _header(record: dict[str, Any]) -> list[tuple[str, str]]:
    attributes = record["attributes"]
    rows = [("run", str(record["run"])), ("status", record["status"])]
    rows += [(label, str(attributes[key])) for key, label in HEADER.items() if key in attributes]
    steps = record["checkpoints"]
    kept = f"{len(steps)}, the last at step {steps[-1]}" if steps else "none"
    return [*rows, ("checkpoints", kept)]


def _metrics(last: dict[str, dict[str, Any]]) -> Iterable[str]:
    rows = []
    for stream, row in last.items():
        values = [f"{name} {row[name]:.4g}" for name in row if name not in POSITION]
        rows.append([stream, f"step {row.get('step', '?')}", "  ".join(values)])
    return [columns(rows)] if rows else ["no metrics yet"]


def tree(title: str, entries: Iterable[Entry]) -> Tree:
    """Return the data sets as a tree of groups, each leaf with its shape, type and size."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(title), guide_style="dim")
    groups: dict[tuple[str, ...], Tree] = {(): root}
    for entry in entries:
        *path, name = entry.name.split("/")
        for depth in range(len(path)):
            here = tuple(path[: depth + 1])
            if here not in groups:
                groups[here] = groups[here[:-1]].add(Text(here[-1], style="bold"))
        shape = " x ".join(map(str, entry.shape)) or "scalar"
        kind = "text" if entry.dtype.startswith("|S") else entry.dtype
        facts = f"  {shape}  {kind}  {size(entry.stored)}"
        groups[tuple(path)].add(Text.assemble(name, (facts, "dim")))
    return root
