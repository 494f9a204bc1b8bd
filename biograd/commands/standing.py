"""What ``--status`` of ``compare`` and ``run`` prints: how a study stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from click.core import ParameterSource

from biograd.commands.columns import columns
from biograd.commands.options import Answer
from biograd.errors import RecipeError
from biograd.metrics import written


def check_alone(*beside: str) -> None:
    """Refuse what is typed beside ``--status`` and would have no effect.

    Raises:
        RecipeError: with the first such option.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and name not in ("status", "as_json", "debug", "quiet", *beside):
            raise RecipeError(f"{parameter.opts[0]}: has no effect beside --status: leave it out")


def standing(folder: Path) -> Answer:
    """Return how the study of a folder stands."""
    from biograd.studies.status import TrainingState, status

    def progress(one: TrainingState) -> str:
        if one.reason:
            return one.reason
        figure = "" if one.value is None else written(one.metric, one.value)
        place = "" if one.epoch is None or one.state == "done" else f"epoch {one.epoch}"
        return ", ".join(filter(None, (place, figure)))

    found = status(folder)
    rows = [
        [one.cell, "search" if one.seed is None else str(one.seed), one.state, progress(one)]
        for one in found.trainings
    ]
    said = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    places = {True: "; a process of this machine places them", False: "", None: ""}[found.placed]
    text = f"{columns(rows, ['CELL', 'SEED', 'STATE', ''])}\n\n{said}{places}"
    record = {
        "folder": str(folder),
        "title": found.title,
        "placed": found.placed,
        "counts": found.counts,
        "trainings": [dataclasses.asdict(one) for one in found.trainings],
    }
    return Answer(record, f"{found.title}\n\n{text}" if found.title else text)
