"""A comparison from Python: what ``biograd compare`` does on the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from biograd import studies
from biograd.errors import BiogradError, RecipeError
from biograd.recipes import Table
from biograd.studies import Place, Report, Silent, set_file
from biograd.studies.engines import Placement
from biograd.studies.set_file import RunSet


def study(
    models: Sequence[str],
    estimators: Sequence[str] = (),
    *,
    decorrelate: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    baseline: str | None = None,
    control: bool = True,
    settings: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """Return a comparison as a study's file would hold it.

    Raises:
        RecipeError: no models, or two budgets.
    """
    if not models:
        raise RecipeError("--models: say what to compare, as in --models ann,spiking")
    budgets = {"epochs": epochs, "passes": passes, "seconds": seconds}
    given = {key: value for key, value in budgets.items() if value is not None}
    if len(given) > 1:
        raise RecipeError(f"--{' and --'.join(given)}: give one budget")
    axes = {
        "models": models,
        "estimators": estimators,
        "decorrelate": decorrelate,
        "datasets": datasets,
    }
    words = [", ".join(names) for names in axes.values() if names]
    table: Table = {
        "description": title or " × ".join(words),
        "kind": "training",
        "seeds": list(seeds),
        "set": [f"training.{key}={value}" for key, value in given.items()] + list(settings),
        "grid": {**{key: list(names) for key, names in axes.items()}, "control": control},
    }
    return table | ({"baseline": baseline} if baseline else {})


def compare(
    models: Sequence[str],
    estimators: Sequence[str] = (),
    *,
    folder: str | Path,
    decorrelate: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    baseline: str | None = None,
    control: bool = True,
    settings: Sequence[str] = (),
    workers: int = 1,
    data_dir: str | Path | None = None,
    offline: bool = False,
) -> RunSet:
    """Train every model with every rule and every seed, and return the runs as a set.

    What is in the folder already is not trained again.  With several workers the calling script
    must have its ``if __name__ == "__main__":``, as whatever starts processes.

    Args:
        models: shipped names or TOML files.
        estimators: names; empty: each model's own.
        folder: for the runs and the results.
        decorrelate: rules of decorrelation, "off" among them; empty: each model's own.
        datasets: shipped names or TOML files; empty: digits.
        seeds: their number, or the seeds themselves.
        baseline: name of the cell to which the others are compared; None: the first.
        control: also train every model with frozen hidden layers.
        settings: ``KEY=VALUE`` overrides for every training.
        workers: trainings at a time; 1: in this process.

    Raises:
        RecipeError: the comparison is not valid.
        BiogradError: trainings failed; the others are in the folder.
    """
    place = Path(folder)
    table = study(
        models,
        estimators,
        decorrelate=decorrelate,
        datasets=datasets,
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else seeds,
        epochs=epochs,
        baseline=baseline,
        control=control,
        settings=settings,
    )
    where = Place(
        place,
        None if data_dir is None else Path(data_dir),
        offline,
        Placement(workers=workers, folder=place),
    )
    report = studies.run(table, place / studies.SAVED, where, Silent())
    if report.failures:
        raise BiogradError(failed(report, place))
    return set_file.load_set(place)


def failed(report: Report, folder: Path) -> str:
    """Return what is said at the end if trainings failed, "" if none did."""
    if not report.failures:
        return ""
    first, count = report.failures[0], len(report.failures)
    return (
        f"{count} of {report.trainings} trainings failed, the first {first['training']}: "
        f"{first['reason']}; the others are in {folder}: run it again to go on"
    )
