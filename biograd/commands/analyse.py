"""``biograd analyse``: statistics and representations of what a run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from biograd.commands.options import Answer, command
from biograd.display.columns import columns
from biograd.errors import RecipeError, visible


def listed(text: str) -> list[str]:
    """Return the words of a list with commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


@command("analyse")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--what",
    required=True,
    metavar="NAME,...",
    help="Of rates, silence, sparseness, intervals, fano, psth, correlations, tuning, "
    "receptive_fields, rdm, rsa, cka, dimensions, probes, gradients, drift.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="A setting of one of them, as in probes.folds=10; repeatable.",
)
def analyse(run: Path, what: str, settings: tuple[str, ...]) -> Answer:
    """Analyse what a run holds.

    RUN is a run file, also of a run that goes on or was killed.  Each analysis is kept beside it,
    as named arrays in RUN.analyses/NAME.h5, and made again only when the run or a setting changed.
    """
    from biograd.analyses.cached import kept
    from biograd.analyses.of_run import settings_of
    from biograd.runs.reader import open_run

    names, given = listed(what), read_settings(settings)
    if not names:
        raise RecipeError("--what: names at least one analysis")
    for name in [*names, *given]:
        settings_of(name, given.get(name))
        if name not in names:
            raise RecipeError(f"--set {name}: has no effect: --what does not name it")
    rows, record = [], {}
    with open_run(run) as opened:
        for name in names:
            found = kept(opened, name, given.get(name))
            arrays = {key: list(values.shape) for key, values in found.arrays.items()}
            record[name] = {"file": found.file, "fresh": found.fresh, "arrays": arrays}
            rows += [
                [name, visible(key), " x ".join(map(str, shape)), "made" if found.fresh else "kept"]
                for key, shape in arrays.items()
            ]
        path = opened.path
    text = columns(rows, ["ANALYSIS", "ARRAY", "SHAPE", ""])
    return Answer({"run": path, "analyses": record}, text)


def read_settings(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return ``NAME.KEY=VALUE`` by name and key; a value is JSON, or else text.

    Raises:
        RecipeError: a text is not of this form.
    """
    from biograd.runs.json_text import value_of

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        name, dot, key = left.partition(".")
        if not (equals and dot and name and key):
            raise RecipeError(f"--set {text}: not NAME.KEY=VALUE")
        found.setdefault(name, {})[key] = value_of(value)
    return found
