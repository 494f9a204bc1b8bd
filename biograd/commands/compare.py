"""``biograd compare``: models, rules and decorrelation under equal conditions, with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biograd.commands.options import Answer, command
from biograd.commands.run import conduct, place, placing_options
from biograd.errors import RecipeError

if TYPE_CHECKING:
    from biograd.studies import Place


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r}: write names with commas between them", parameter, context)
        return names


class Seeds(click.ParamType[tuple[int, ...]]):
    """A number of seeds, or seeds with commas between them."""

    name = "seeds"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """Return the seeds."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 0 or (numbers == (0,) and "," not in str(value)):
            self.fail(
                f"{value!r}: write a number of seeds, or seeds as in 0,7,9", parameter, context
            )
        return numbers if "," in str(value) else tuple(range(numbers[0]))


@command("compare")
@click.option(
    "--models", type=Names(), metavar="NAMES", help="Shipped models or TOML files: ann,spiking."
)
@click.option(
    "--estimators",
    type=Names(),
    metavar="NAMES",
    help="How gradients are estimated: backprop,weak.  [default: each model's own]",
)
@click.option(
    "--decorrelate",
    type=Names(),
    metavar="RULES",
    help="Decorrelation: off,kappa.  [default: each model's own]",
)
@click.option(
    "--dataset",
    "datasets",
    type=Names(),
    metavar="NAMES",
    help="Shipped datasets or TOML files.  [default: digits]",
)
@click.option(
    "--seeds",
    type=Seeds(),
    metavar="N|LIST",
    help="A number of seeds, or seeds: 0,7,9.  [default: 3]",
)
@click.option("--epochs", type=click.IntRange(0), metavar="N", help="Equal budget in epochs.")
@click.option(
    "--passes",
    type=click.IntRange(1),
    metavar="N",
    help="Equal budget in forward passes: an example through the network once, in one copy.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Equal budget in seconds of training.",
)
@click.option(
    "--baseline", metavar="CELL", help="Compared to this one.  [default: the table's first]"
)
@click.option("--no-control", is_flag=True, help="Train no network with frozen hidden layers.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key in every training; repeatable.",
)
@click.option("--title", metavar="TEXT", help="Of the report.  [default: what is compared]")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where runs and results go.  [default: studies/ and what is compared]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Go on with the comparison that was begun there.",
)
@click.option(
    "--print-sbatch",
    is_flag=True,
    help="Train nothing: print a script for sbatch that does, as a job array.",
)
@placing_options
def compare(
    *,
    out: Path | None,
    resume: Path | None,
    print_sbatch: bool,
    quiet: bool,
    **choices: Any,
) -> Answer:
    """Train every model with every rule and every seed, and compare.

    The trainings of a seed share the order of the data and, where shapes agree, the initial
    weights.  Each model is also trained with frozen hidden layers, the control.  The folder
    receives every run file, results.csv, runs.csv, contrasts.csv, set.h5 (links to all runs),
    comparison.png and .pdf, and report.html.  Interrupted, it goes on with --resume FOLDER.

    \b
    biograd compare --models ann,spiking --estimators backprop,weak --seeds 3
    """
    from biograd import studies
    from biograd.studies import comparing

    places = {
        key: choices.pop(key)
        for key in ("workers", "engine", "address", "job", "data_dir", "offline")
    }
    if resume is not None:
        given = sorted(key for key, value in choices.items() if value) + ["out"] * bool(out)
        if given:
            raise RecipeError(
                f"--resume: {resume} says what is compared: leave "
                f"--{given[0].replace('datasets', 'dataset').replace('_', '-')} away"
            )
        folder = resume
        table, path = studies.read(studies.resumed(folder))
    else:
        table = comparing.study(
            choices.pop("models") or (),
            choices.pop("estimators") or (),
            decorrelate=choices.pop("decorrelate") or (),
            datasets=choices.pop("datasets") or (),
            seeds=choices.pop("seeds") or (0, 1, 2),
            control=not choices.pop("no_control"),
            **choices,
        )
        folder = out or Path("studies") / _name(table)
        path = folder / studies.SAVED
    where = place(folder, **places)
    if print_sbatch:
        return _script(table, path, where)
    return conduct(table, path, where, quiet)


def _name(table: dict[str, Any]) -> str:
    axes = [value for value in table["grid"].values() if isinstance(value, list) and value]
    return "-".join("_".join(Path(name).stem for name in names) for names in axes)


def _script(table: dict[str, Any], path: Path, where: Place) -> Answer:
    """Return a script for ``sbatch``, which does what ``biograd run`` does."""
    from biograd import studies
    from biograd.studies import engines

    module, settings = studies.settle(table, path)
    count = len(settings.trainings(where))
    module.keep(settings, where.folder)
    command = ["biograd", "run", str(path), "--out", str(where.folder)]
    text = engines.sbatch(command, count, where.placement)
    return Answer({"script": text, "trainings": count, "folder": str(where.folder)}, text.rstrip())
