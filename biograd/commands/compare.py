"""``biograd compare``: models, rules and decorrelation under equal conditions, with statistics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biograd import recipes
from biograd.commands.options import (
    Answer,
    command,
    loss_option,
    metric_option,
    model_args_option,
    reset_option,
)
from biograd.commands.run import conduct, place, placing_options
from biograd.commands.standing import check_alone, standing
from biograd.errors import RecipeError
from biograd.user_code import is_named, named_metrics, whole

if TYPE_CHECKING:
    from biograd.studies import Place

PLACES = (
    *("workers", "engine", "address", "job", "data_dir", "offline", "device", "storage"),
    "allow_code",
)
"""Options that say where trainings run."""
OPTIONS = {
    "datasets": "dataset",
    "model_args": "model-arg",
    "settings": "set",
    "metrics": "metric",
}
"""Options whose values have another name here."""


def _names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Read names with commas between them."""
    names = tuple(part.strip() for part in value.split(",")) if value is not None else ()
    if not all(names):
        raise click.BadParameter(f"{value!r}: write names with commas between them")
    return names


def _seeds(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...]:
    """Read a number of seeds, or seeds with commas between them."""
    if value is None:
        return ()
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0 or value.strip() == "0":
        raise click.BadParameter(f"{value!r}: write a number of seeds, or seeds as in 0,7,9")
    return numbers if "," in value else tuple(range(numbers[0]))


@command("compare")
@click.option(
    "--models",
    callback=_names,
    metavar="NAMES",
    help="Shipped models, TOML files, or modules of your own: ann,net.py:Net.",
)
@model_args_option
@click.option(
    "--estimators",
    callback=_names,
    metavar="NAMES",
    help="How gradients are estimated: backprop,weak.  [default: each model's own]",
)
@click.option(
    "--decorrelate",
    callback=_names,
    metavar="RULES",
    help="Decorrelation: off,kappa.  [default: each model's own]",
)
@click.option(
    "--cells",
    callback=_names,
    metavar="LIST",
    help="Only these, in place of a full grid: ann:backprop,spiking:weak:kappa.",
)
@click.option(
    "--dataset",
    "datasets",
    callback=_names,
    metavar="NAMES",
    help="Shipped datasets, TOML files, or your own: FILE.npz, FILE.h5, folders, "
    "FILE.py:FUNCTION, package.module:function.  [default: digits]",
)
@click.option("--task", metavar="NAME", help="What the targets ask for.  [default: what they tell]")
@loss_option
@metric_option
@reset_option
@click.option(
    "--seeds",
    callback=_seeds,
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
@click.option(
    "--tune",
    multiple=True,
    metavar="RANGE",
    help="First search every cell's best KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B on a held-out "
    "part of the training data; repeatable.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="Of the search in every cell.  [default: 20]",
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
    "--status",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Train nothing: say which trainings of the comparison there are done, run, or failed.",
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
    status: Path | None,
    print_sbatch: bool,
    quiet: bool,
    **choices: Any,
) -> Answer:
    """Compare models and rules under equal conditions.

    Trains every model with every rule and every seed.  The trainings of a seed share the order of
    the data and, where shapes agree, the initial weights.  Each model is also trained with frozen
    hidden layers, the control.  The folder receives every run file, results.csv, runs.csv,
    contrasts.csv, set.h5 (links to all runs), comparison.png and .pdf, and report.html.
    Interrupted, it goes on with --resume FOLDER.

    \b
    biograd compare --models ann,spiking --estimators backprop,weak --seeds 3
    """
    from biograd import studies
    from biograd.studies import comparing

    if status is not None:
        check_alone()
        return standing(status)
    places = {key: choices.pop(key) for key in PLACES}
    if resume is not None:
        code = [name for key in ("models", "datasets") for name in choices[key]]
        code += [choices[key] for key in ("loss", "reset") if choices[key]]
        code += named_metrics(choices["metrics"]).values()
        if all(map(is_named, code)):  # it must be typed anew
            places["typed"] = frozenset(map(whole, code))
            choices |= dict.fromkeys(("models", "datasets", "metrics"), ())
            choices["loss"] = choices["reset"] = None
        given = sorted(
            k for k, v in choices.items() if not (v is None or v is False or v == ())
        ) + ["out"] * bool(out)
        if given:
            raise RecipeError(
                f"--resume: {resume} says what is compared: leave "
                f"--{OPTIONS.get(given[0], given[0]).replace('_', '-')} away"
            )
        folder = resume
        table, path = studies.read(studies.resumed(folder))
    else:
        table = comparing.study(
            choices.pop("models"),
            choices.pop("estimators"),
            seeds=choices.pop("seeds") or (0, 1, 2),
            control=not choices.pop("no_control"),
            **choices,
        )
        folder = out or Path("studies") / _name(table)
        path = folder / studies.SAVED
        places["typed"] = comparing.typed(table)
    where = place(folder, **places)
    if print_sbatch:
        return _script(table, path, where)
    return conduct(table, path, where, quiet)


def _name(table: dict[str, Any]) -> str:
    if "cells" in table:
        return "-".join(re.sub(r"\W+", "_", name) for name in table["cells"])[:80]
    axes = [value for value in table["grid"].values() if isinstance(value, list) and value]
    return "-".join("_".join(map(recipes.title, names)) for names in axes)


def _script(table: dict[str, Any], path: Path, where: Place) -> Answer:
    """Return a script for ``sbatch``, which does what ``biograd run`` does."""
    from biograd import placement, studies
    from biograd.studies.study_folder import keep

    _module, settings = studies.settle(table, path)
    if settings.tune is not None:
        raise RecipeError("--print-sbatch: a search comes first: run it with --engine submitit")
    count = len(settings.lines()) * len(settings.seeds)
    keep(settings.table(), where.folder)
    command = ["biograd", "run", str(path), "--out", str(where.folder)]
    device = where.placement.device
    command += [] if device == "auto" else ["--device", device]
    command += ["--allow-code"] * (bool(where.allow_code) or any(map(is_named, where.typed)))
    text = placement.sbatch(command, count, where.placement)
    return Answer({"script": text, "trainings": count, "folder": str(where.folder)}, text.rstrip())
