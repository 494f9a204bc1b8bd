"""SONATA spikes as data: a file of spikes and a table that says which piece is which trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from biograd.checking import Checked
from biograd.data.files.csv_files import ENDINGS, read_csv
from biograd.data.files.own_paths import paths_of
from biograd.data.formats import AddressEvents
from biograd.data.formats.sonata_spikes import populations
from biograd.data.recordings.packed import read_packed
from biograd.data.recordings.sessions import TrialTable, pieces
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows import tables
from biograd.errors import DataError, RecipeError, nearest


@dataclasses.dataclass(frozen=True)
class SonataSettings(Checked):
    """What is read, and what is asked for.

    Attributes:
        trials: name of a ``.csv`` in the folder of the spikes, with columns ``start_ms``,
            ``end_ms`` and the target; a column ``split`` is obeyed.
        target: column whose values are classes.
        population: whose spikes are inputs; "": the only one.
        group: column that names what stays together when rows are divided; "": none.
    """

    trials: str = "trials.csv"
    target: str = "label"
    population: str = ""
    group: str = ""


@with_settings(SonataSettings)
def read(request: Request, settings: SonataSettings) -> Parts:
    """Return the spikes of a SONATA file in each trial, ``[B, T, nodes]``, with its class.

    Raises:
        RecipeError: ``trials`` is no plain name of a table.
        DataError: the file or the table is damaged, or has no such column or population.

    Source: K. Dai et al., PLoS Computational Biology 16:e1007696 (2020).
    """
    name = Path(settings.trials)
    if name.name != settings.trials or name.suffix.lower() not in ENDINGS:
        raise RecipeError(
            f"dataset {request.name}: settings.trials = {settings.trials!r}: must be the name of a "
            ".csv beside the spikes"
        )
    found = {split: _one(path, request, settings) for split, path in paths_of(request).items()}
    return tables.joined(found, request.name)


def _one(path: Path, request: Request, settings: SonataSettings) -> Parts:
    events = _population(path, settings.population)
    beside = path.with_name(settings.trials)
    trials = TrialTable(read_csv(beside), str(beside))
    start, end = (trials.numbers(name) * 1e3 for name in ("start_ms", "end_ms"))
    labels, classes = trials.classes(settings.target)
    examples, _kept, notes = pieces(path, trials, start, end, labels, settings.group)
    units = request.recipe.units or int(events.places.max(initial=0)) + 1
    how = ["sonata", settings.population]
    parts = read_packed(request, examples, lambda _path: events, (units,), how, classes)
    return dataclasses.replace(parts, notes=notes)


def _population(path: Path, name: str) -> AddressEvents:
    found = populations(path)
    if not name and len(found) > 1:
        raise DataError(f"{path}: several populations, {', '.join(found)}: set settings.population")
    if name and name not in found:
        raise DataError(f"{path}: settings.population = {name!r}: {nearest(name, found)}")
    return found[name] if name else next(iter(found.values()))
