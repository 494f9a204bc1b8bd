"""``biograd inspect``: what a run file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biograd.commands.options import Answer, command
from biograd.display.columns import columns, costs, size
from biograd.errors import RecipeError
from biograd.metrics import DEFAULT, written

if TYPE_CHECKING:
    from rich.tree import Tree

    from biograd.brian.learned import Learned
    from biograd.runs.reader import Run
    from biograd.runs.views.entries import Entry

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
@click.option(
    "--source", is_flag=True, help="Print the code of the user's own that the run was made with."
)
def inspect(run: Path, source: bool) -> Answer:
    """Show what a run file holds.

    RUN is a run file, also of a run that still goes on or was killed, or a set.h5 of a study.
    """
    from biograd.runs.reader import open_run
    from biograd.studies.results.set_file import is_set

    if is_set(run):
        if source:
            raise RecipeError(f"{run}: a set has no code: give one of its runs")
        return _inspect_set(run)

    with open_run(run) as opened:
        if source:
            return _source(opened)
        entries = opened.tree()
        record = {
            "run": opened.path,
            "status": opened.status,
            "sealed": opened.sealed,
            "lost_seal": opened.lost_seal,
            "attributes": opened.attributes,
            "config": opened.config,
            "summary": opened.summary,
            "credit": opened.credit,
            "code": opened.code,
            "checkpoints": opened.checkpoints,
            "constants": [learned._asdict() for learned in constants(opened, entries)],
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


def _source(run: Run) -> Answer:
    """Show the text of the user's code, each file under its name if there are several."""
    files = {name: text for part in run.code.values() for name, text in part.items()}
    if not files:
        raise RecipeError(f"{run.path}: holds no code of the user's")
    several = len(files) > 1
    texts = [f"# {name}\n{text}" if several else text for name, text in files.items()]
    return Answer({"run": run.path, "code": run.code}, "\n".join(texts).removesuffix("\n"))


def _inspect_set(path: Path) -> Answer:
    """Show the runs that a set links."""
    from biograd.studies.results.set_file import load_set

    found = load_set(path)
    table = found.tables.get("runs", {})
    rows: list[dict[str, Any]] = [
        {
            "cell": str(cell),
            "seed": int(seed),
            f"test_{name}": float(value),
            "run": str(file),
            "found": (found.path.parent / str(file)).is_file(),
        }
        for cell, seed, name, value, file in results(table)
    ]
    lines = [
        [
            row["cell"],
            str(row["seed"]),
            *(written(k.removeprefix("test_"), v) for k, v in row.items() if k.startswith("test_")),
            row["run"] if row["found"] else f"{row['run']} (missing)",
        ]
        for row in rows
    ]
    title = str(found.configuration.get("description") or path)
    text = f"{title}\n\n{columns(lines, ['CELL', 'SEED', 'TEST', 'RUN'])}"
    record = {"set": found.path, "configuration": found.configuration, "runs": rows}
    return Answer(record, text)


def results(table: Mapping[str, Any]) -> Iterator[tuple[Any, Any, str, Any, Any]]:
    """Yield cell, seed, headline metric, its value and file of every run of a set."""
    count = len(table.get("cell", []))
    names = [str(name) for name in table.get("headline", [DEFAULT] * count)]
    for row, name in enumerate(names):
        cell, seed, value, file = (table[k][row] for k in ("cell", "seed", f"test_{name}", "run"))
        yield cell, seed, name, value, file


def constants(run: Run, entries: Iterable[Entry]) -> list[Learned]:
    """Return what the populations' constants have become, as the last checkpoint has them."""
    factors = any(
        entry.name.startswith("params/") and ".factors." in entry.name for entry in entries
    )
    recipe = run.config.get("recipe")
    if not factors or recipe is None or not run.checkpoints:
        return []
    from biograd.brian.learned import in_units
    from biograd.recipes import ModelRecipe, construct

    tensors, _meta = run.checkpoint()
    own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    return in_units(construct(ModelRecipe, recipe, run.path), own)


def last(run: Run, stream: str) -> dict[str, Any]:
    """Return the last row of a stream of scalars, less the metrics that were not measured."""
    row = {name: values[-1].item() for name, values in run.scalars(stream).items() if len(values)}
    return {name: value for name, value in row.items() if value == value}


def _drawing(record: dict[str, Any], entries: list[Entry]) -> Any:
    from rich.console import Group
    from rich.text import Text

    text = [columns(_header(record)), "", *_metrics(record["last"]), ""]
    text += [*_constants(record["constants"]), ""] if record["constants"] else []
    text += _outside(record["credit"])
    return Group(Text("\n".join(text)), tree(str(record["run"]), entries))


def _header(record: dict[str, Any]) -> list[tuple[str, str]]:
    attributes = record["attributes"]
    rows = [("run", str(record["run"])), ("status", record["status"])]
    rows += [(label, str(attributes[key])) for key, label in HEADER.items() if key in attributes]
    rows += _code(record["config"].get("code"))
    steps, none = record["checkpoints"], "none: damage to the file would not be seen"
    lost = "gone: another program changed the file since it was written"
    rows.append(("digest", "right" if record["sealed"] else lost if record["lost_seal"] else none))
    kept = f"{len(steps)}, the last at step {steps[-1]}" if steps else "none"
    ended = costs(record["summary"]) if record["summary"] else []
    return [*rows, *[(label, text) for label, text in ended if text], ("checkpoints", kept)]


def _code(known: Any) -> Iterator[tuple[str, str]]:
    """Yield name and digest of the user's code, as far as a file of anybody's has them."""
    for part, code in known.items() if isinstance(known, Mapping) else ():
        if isinstance(code, Mapping):
            digest = str(code.get("sha256", ""))
            version = f", {code['package']} {code.get('version')}" if code.get("package") else ""
            name = f"{code.get('place')}:{code.get('name')}{version}"
            yield f"{part} code", f"{name}, SHA-256 {digest}" if digest else name


def _metrics(last: dict[str, dict[str, Any]]) -> Iterable[str]:
    rows = []
    for stream, row in last.items():
        values = [f"{name} {row[name]:.4g}" for name in row if name not in POSITION]
        rows.append([stream, f"step {row.get('step', '?')}", "  ".join(values)])
    return [columns(rows)] if rows else ["no metrics yet"]


def _constants(found: list[dict[str, Any]]) -> Iterable[str]:
    rows = [
        [
            f"{one['population']}.{one['constant']}",
            f"mean {one['mean']:.4g} {one['unit']}".rstrip(),
            f"{one['lowest']:.4g} to {one['highest']:.4g}",
        ]
        for one in found
    ]
    return ["learned constants", columns(rows)]


def _outside(credit: Mapping[str, Any]) -> Iterable[str]:
    """Return a line for each parameter that the rule does not credit."""
    found = {name: str(entry.get("credit")) for name, entry in credit.items()}
    rows = [(name, words) for name, words in found.items() if words.startswith("outside")]
    return [columns(rows), ""] if rows else []


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
