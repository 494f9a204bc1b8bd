"""Any runs as one comparison: those of a set, or files that somebody has put together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biograd.analyses import dissimilarity, of_run
from biograd.errors import BiogradError, RecipeError, RunFileError, visible
from biograd.metrics import headline
from biograd.placement import Failure
from biograd.plots.of_representation import RDM_STIMULI, matrices
from biograd.plots.panel import Panel
from biograd.plots.style import layer_title
from biograd.progress import Key
from biograd.runs.reader import Run, open_run
from biograd.studies.grid import Cell
from biograd.studies.results import panels
from biograd.studies.results.comparison import Comparison, report
from biograd.studies.results.outputs import courses, environment_of
from biograd.studies.results.page import page

SHOWN_CELLS = 8
"""Cells whose dissimilarities are drawn."""
AXES = ("model", "dataset", "estimator", "decorrelation")


def comparison_page(paths: Sequence[Path], cells: Mapping[Path, str], command: str) -> str:
    """Return the page of several runs.

    Args:
        cells: names of those that have one; others are called by what sets them apart.

    Raises:
        RecipeError: two runs of one cell have the same seed, or none has ended.
        RunFileError: a file is no run.
    """
    summaries, failures = _read(paths)
    if not summaries:
        raise RecipeError("none of the runs has ended: there is nothing to compare yet")
    names = _names(summaries, cells)
    compared, files = _compared(summaries, names)
    made = report(compared, failures)
    curves = list(courses(files, compared.shown))
    drawn = panels.panels(made.rows, made.tables["runs"], curves, compared.shown)
    about = {"runs": [visible(path.name) for path in paths]}
    return page(
        f"{len(summaries)} runs compared",
        made,
        about,
        environment_of(files),
        drawn,
        command,
        representation(files),
    )


def _read(paths: Sequence[Path]) -> tuple[dict[Path, dict[str, Any]], list[Failure]]:
    found: dict[Path, dict[str, Any]] = {}
    failures = []
    for path in paths:
        with open_run(path) as run:
            said = {**run.attributes, **run.summary}
        said["estimator"] = said.get("estimator") or said.get("rule") or "unknown"
        said["dataset"] = str(said.get("dataset", "unknown"))
        needed = (f"test_{headline(said)}", f"train_{headline(said)}", "seconds")
        if not all(map(_known, map(said.get, needed))) or type(said.get("seed")) is not int:
            why = f"it is {said.get('status', 'unknown')} and has no result"
            failures.append(Failure(visible(path.name), why))
            continue
        found[path] = {**said, "run": str(path)}
    return found, failures


def _known(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _names(found: Mapping[Path, Mapping[str, Any]], given: Mapping[Path, str]) -> dict[Path, str]:
    """Return the cell of each run: what differs among the runs sets it apart."""
    differ = [key for key in AXES if len({str(said.get(key)) for said in found.values()}) > 1]
    made = {}
    for path, said in found.items():
        words = [
            f"decorrelation {said.get(key)}" if key == "decorrelation" else str(said.get(key))
            for key in differ or ["estimator"]
        ]
        made[path] = given.get(path, " · ".join(words))
    return made


def _compared(
    found: Mapping[Path, dict[str, Any]], names: Mapping[Path, str]
) -> tuple[Comparison, dict[Key, Path]]:
    cells: dict[str, Cell] = {}
    by_cell: dict[str, dict[int, dict[str, Any]]] = {}
    files: dict[Key, Path] = {}
    for path, said in found.items():
        name, seed = names[path], said["seed"]
        if seed in by_cell.setdefault(name, {}):
            raise RecipeError(
                f"{path}: seed {seed} of {visible(name)} is there already: give one run of each"
            )
        texts = [str(said.get(key, "")) for key in AXES[:3]]
        cells[name] = Cell(name, texts[0], texts[1], texts[2])
        by_cell[name][seed], files[name, seed] = said, path
    seeds = sorted({seed for _, seed in files})
    return Comparison(list(cells.values()), seeds, by_cell, next(iter(cells))), files


def representation(files: Mapping[Key, Path]) -> list[Panel]:
    """Return the dissimilarities of every hidden layer at the end, a column for each cell.

    One run of each cell is taken; layers are matched by their names, and those that no other cell
    has, or other stimuli, are left out.
    """
    first: dict[str, Path] = {}
    for (cell, _), path in files.items():
        first.setdefault(cell, path)
    held: dict[str, dict[str, tuple[Any, Any]]] = {}
    for cell, path in list(first.items())[:SHOWN_CELLS]:
        try:
            with open_run(path) as run:
                for layer, one in _last(run).items():
                    held.setdefault(layer, {})[cell] = one
        except BiogradError:
            continue
    return [_side_by_side(layer, of) for layer, of in held.items() if len(of) > 1]


def _last(run: Run) -> dict[str, tuple[Any, Any]]:
    order, labels = of_run.stimuli(run, RDM_STIMULI)
    return {
        name: (dissimilarity.rdm(run.activity(name)[-1][order]), labels)
        for name in of_run.recorded_layers(run)
    }


def _side_by_side(layer: str, found: Mapping[str, tuple[Any, Any]]) -> Panel:
    (first, labels), names = next(iter(found.values())), list(found)
    alike = [name for name in names if np.array_equal(found[name][1], labels)]
    made = matrices(
        layer_title(layer),
        np.stack([found[n][0] for n in alike]),
        [visible(n) for n in alike],
        labels,
    )
    return with_similarity(made, [dissimilarity.rsa(found[n][0], first) for n in alike], alike[0])


def with_similarity(panel: Panel, similar: Sequence[float], baseline: str) -> Panel:
    """Return a panel whose numbers and caption say how alike each matrix is to the first."""
    rows = [
        {**row, "similar_to_first": value} for row, value in zip(panel.rows, similar, strict=True)
    ]
    said = ", ".join(f"{row['matrix']} {row['similar_to_first']:.2f}" for row in rows[1:])
    caption = (
        f"{panel.caption} After training, one seed of each. Similarity with "
        f"{visible(baseline)}: {said}."
    )
    return dataclasses.replace(panel, rows=rows, caption=caption, name=f"{panel.name}_cells")


def paths_of(given: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the runs of files and sets, and the cells that the sets name.

    Raises:
        RunFileError: there is no such run or set.
    """
    from biograd.studies.results.set_file import is_set, load_set

    found: list[Path] = []
    cells: dict[Path, str] = {}
    for path in given:
        if is_set(path):
            of = {run: cell for (cell, _), run in load_set(path).runs.items()}
            found += list(of)
            cells |= of
        elif path.is_dir() and path.suffix != ".parts":
            raise RunFileError(f"{path}: a folder without set.h5: name its run files")
        else:
            found.append(path)
    return list(dict.fromkeys(found)), cells
