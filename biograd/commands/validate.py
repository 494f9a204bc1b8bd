"""``biograd validate``: whether a run file is what the layout says."""

from __future__ import annotations

from pathlib import Path

import click

from biograd.commands.options import Answer, command
from biograd.errors import RunFileError, visible


@command("validate")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def validate(run: Path) -> Answer:
    """Read a run file to the last value and compare it with the layout.

    RUN is a run file, also of a run that still goes on or was killed.  Nothing is changed.
    """
    from biograd.runs.reader import open_run
    from biograd.runs.views.validation import validate as check

    with open_run(run) as opened:
        found = check(opened)
        version = opened.attributes.get("format_version")
    wrong = [one for one in found if one.problem]
    if wrong:
        first = visible(f"{wrong[0].name}: {wrong[0].problem}")
        raise RunFileError(f"{run}: {len(wrong)} of {len(found)} parts are wrong: {first}")
    notes = [f"{one.name}: {one.note}" for one in found if one.note]
    text = "\n".join([f"{run}: {len(found)} parts are as format {version} has them", *notes])
    record = {"run": run, "parts": [one._asdict() for one in found]}
    return Answer(record, visible(text, "\n"))
