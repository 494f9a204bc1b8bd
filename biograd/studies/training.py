"""A study of trainings: cells that differ in model, data, estimator or settings, seeds over each.

Every cell has the same seeds, so that initial weights and the order of the data agree where shapes
agree; differences to the baseline are paired by seed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biograd import experiment
from biograd.errors import BiogradError, RecipeError, nearest
from biograd.recipes import Table, construct
from biograd.runs import storage
from biograd.studies import Place, Progress, Report, pool


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table; what it leaves out is the study's."""

    model: str | None = None
    dataset: str | None = None
    estimator: str | None = None
    set: tuple[str, ...] = ()
    """``KEY=VALUE``, as on the command line, after the study's own."""
    published: float | None = None
    """The figure of the literature, in per cent."""


@dataclasses.dataclass(frozen=True)
class Trainings:
    """The settings of a study of trainings."""

    cells: Table
    model: str = "ann"
    dataset: str = "digits"
    estimator: str | None = None
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str | None = None
    """The cell to which the others are compared."""
    error: bool = False
    """Show test errors instead of accuracies."""


def run(settings: Trainings, place: Place, progress: Progress) -> Report:
    """Train every cell with every seed and return the table."""
    cells = {
        name: construct(Cell, table, "study", f"cells.{name}")
        for name, table in settings.cells.items()
    }
    if settings.baseline is not None and settings.baseline not in cells:
        raise RecipeError(
            f"study: baseline = {settings.baseline!r}: {nearest(settings.baseline, cells)}"
        )
    # seeds outside, so that an interrupted study has all cells of the seeds that it has
    order = [(name, cell, seed) for seed in settings.seeds for name, cell in cells.items()]
    if place.workers > 1:
        _spread(settings, order, place, progress)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cells}
    for name, cell, seed in order:
        if place.workers == 1:
            progress.note(f"{name}, seed {seed}")
        found[name].append(summary(settings, name, cell, seed, place, progress))
    return _report(settings, cells, found)


def _spread(
    settings: Trainings, order: list[tuple[str, Cell, int]], place: Place, progress: Progress
) -> None:
    """Run the trainings in several processes; their summaries are then in the folder."""
    tasks = [
        pool.Task(f"{name}, seed {seed}", summary, (settings, name, cell, seed, place))
        for name, cell, seed in order
    ]
    failures = pool.run(tasks, place.workers, progress.note)
    if failures:
        first, count = failures[0], len(failures)
        others = f" (and {count - 1} more)" if count > 1 else ""
        raise BiogradError(
            f"{first.name}: {first.reason}{others}; {len(tasks) - count} of {len(tasks)} trainings "
            f"are in {place.folder}: run the study again to go on"
        )


def summary(
    settings: Trainings,
    name: str,
    cell: Cell,
    seed: int,
    place: Place,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the summary of one training: as it was written before, resumed, or new."""
    stem = "".join(c if c.isalnum() else "_" for c in name)
    path = place.folder / f"{stem}-seed{seed}.h5"
    note = path.with_suffix(".json")
    request = experiment.Request(
        model=cell.model or settings.model,
        dataset=cell.dataset or settings.dataset,
        estimator=cell.estimator or settings.estimator,
        seed=seed,
        out=path,
        assignments=(*settings.set, *cell.set),
        data_dir=place.data_dir,
        offline=place.offline,
    )
    asked = json.loads(json.dumps(experiment.configure(request).table()))
    if note.exists():
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        _same(known["configuration"], asked, note)
        return known["summary"]
    begun = storage.Place.of(path)
    if begun.file.exists() or begun.parts.is_dir():
        with experiment.load(path) as run:
            _same(json.loads(json.dumps(run.config)), asked, path)
        ended = experiment.proceed(path, progress=progress)
    else:
        ended = experiment.execute(request, progress)
    storage.write_json(note, {"configuration": asked, "summary": ended})
    return ended


def _same(known: object, asked: object, where: Path) -> None:
    if known != asked:
        raise RecipeError(
            f"{where}: was made with other settings: give another folder, or delete the file"
        )


def _report(
    settings: Trainings, cells: dict[str, Cell], found: dict[str, list[dict[str, Any]]]
) -> Report:
    rows = []
    for name, cell in cells.items():
        test = [_measure(settings, summary["test_accuracy"]) for summary in found[name]]
        train = [_measure(settings, summary["train_accuracy"]) for summary in found[name]]
        row: dict[str, Any] = {
            "cell": name,
            "test": statistics.mean(test),
            "lowest": min(test),
            "highest": max(test),
            "train": statistics.mean(train),
        }
        if settings.baseline is not None:
            other = [_measure(settings, s["test_accuracy"]) for s in found[settings.baseline]]
            row["difference"] = statistics.mean(a - b for a, b in zip(test, other, strict=True))
        if cell.published is not None:
            row["published"] = cell.published
        row["seconds"] = statistics.mean(summary["seconds"] for summary in found[name])
        rows.append(row)
    what = "error" if settings.error else "accuracy"
    columns = {
        "cell": "",
        "test": f"test {what} %",
        "lowest": "lowest",
        "highest": "highest",
        "train": f"train {what} %",
        "difference": f"to {settings.baseline}",
        "published": "published %",
        "seconds": "seconds",
    }
    kept = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    return Report(kept, rows, _notes(settings, rows))


def _measure(settings: Trainings, accuracy: float) -> float:
    return 100 * ((1 - accuracy) if settings.error else accuracy)


def _notes(settings: Trainings, rows: list[dict[str, Any]]) -> list[str]:
    notes = [f"mean over {len(settings.seeds)} seeds: {', '.join(map(str, settings.seeds))}"]
    known = [(row["published"], row["test"]) for row in rows if "published" in row]
    if len(known) > 2:
        published, here = zip(*known, strict=True)
        notes.append(
            f"rank correlation with the published figures {rank_correlation(published, here):.2f}"
        )
    return notes


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank.

    >>> rank_correlation([1, 2, 3], [10, 20, 15])
    0.5
    """
    from scipy.stats import spearmanr

    return round(float(spearmanr(first, second).statistic), 12)
