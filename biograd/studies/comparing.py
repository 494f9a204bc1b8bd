"""A comparison from Python: what ``biograd compare`` does on the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biograd import recipes, studies
from biograd.data.sources.own_data import named
from biograd.errors import BiogradError, RecipeError
from biograd.placement import Placement
from biograd.progress import Progress
from biograd.recipes import Table
from biograd.recipes.dataset_recipe import ENDINGS, is_function
from biograd.studies import Place, Report, search
from biograd.studies.grid import CONTROL
from biograd.studies.results import set_file
from biograd.studies.results.set_file import RunSet


def study(
    models: Sequence[str] = (),
    estimators: Sequence[str] = (),
    *,
    cells: Sequence[str] = (),
    decorrelate: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    baseline: str | None = None,
    control: bool = True,
    settings: Sequence[str] = (),
    task: str | None = None,
    title: str | None = None,
    tune: Sequence[str] = (),
    trials: int | None = None,
) -> Table:
    """Return a comparison as a study's file would hold it.

    Args:
        cells: ``MODEL:ESTIMATOR`` or ``MODEL:ESTIMATOR:DECORRELATION``, in place of a grid.

    Raises:
        RecipeError: no models, cells beside a grid, two budgets, or trials without a range.
    """
    if not models and not cells:
        raise RecipeError("--models: say what to compare, as in --models ann,spiking")
    if cells and (models or estimators or decorrelate):
        raise RecipeError("--cells: list cells, or give models and rules whose product is trained")
    budgets = {"epochs": epochs, "passes": passes, "seconds": seconds}
    given = {key: value for key, value in budgets.items() if value is not None}
    if len(given) > 1:
        raise RecipeError(f"--{' and --'.join(given)}: give one budget")
    set_already = [text.partition("=")[0].strip() for text in (*settings, *tune)]
    for name in set_already:
        if given and name in [f"training.{key}" for key in budgets]:
            raise RecipeError(f"--{next(iter(given))}: {name} is given as well: give one budget")
        if decorrelate and name == "decorrelation.rule":
            raise RecipeError("--decorrelate: decorrelation.rule is given as well: give one")
    models = [_whole(name) for name in _several(models)]
    estimators, decorrelate = _several(estimators), _several(decorrelate)
    datasets = [_whole(name) for name in _several(datasets)]
    axes = {
        "models": models,
        "estimators": estimators,
        "decorrelate": decorrelate,
        "datasets": datasets,
    }
    words = [", ".join(map(recipes.title, names)) for names in (*axes.values(), cells) if names]
    table: Table = {
        "description": title or " × ".join(words),
        "kind": "training",
        "seeds": [int(seed) for seed in seeds],
        "set": [f"training.{key}={value}" for key, value in given.items()]
        + ([] if task is None else [f"dataset.task.name={task}"])
        + list(settings),
    }
    if cells:
        table["cells"] = _listed(cells, datasets, control)
    else:
        lists = {key: list(names) for key, names in axes.items()}
        table["grid"] = lists | {"control": control}
    if trials is not None and not tune:
        raise RecipeError("--trials: say over what to search, as in --tune KEY=LOW..HIGH")
    ranges = [search.parse(text) for text in tune]
    twice = {key for key, _ in ranges if [other for other, _ in ranges].count(key) > 1}
    if twice:
        raise RecipeError(f"--tune {sorted(twice)[0]}: is given twice")
    if ranges:
        table["tune"] = {"parameters": dict(ranges)} | (
            {} if trials is None else {"trials": trials}
        )
    return table | ({"baseline": baseline} if baseline else {})


def _several(names: Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _whole(name: str) -> str:
    """Return a recipe's name; that of a file in full, so that the study runs from anywhere."""
    path = Path(name).expanduser()
    file = path.suffix in (".toml", *ENDINGS) and path.is_file()
    return str(path.resolve()) if file or (path.is_dir() and path.name != name) else name


def _listed(cells: Sequence[str], datasets: Sequence[str], control: bool) -> Table:
    """Return the table of cells that are listed, and a control for each of their models."""
    if len(datasets) > 1:
        raise RecipeError("--cells: takes one dataset")
    data = {"dataset": datasets[0]} if datasets else {}
    table: Table = {}
    for text in cells:
        parts = [part.strip() for part in text.split(":")]
        if len(parts) not in (2, 3) or not all(parts):
            raise RecipeError(f"--cells {text!r}: write MODEL:ESTIMATOR, as in spiking:weak")
        rule = [f"decorrelation.rule={parts[2]}"] if len(parts) == 3 else []
        name = " · ".join([Path(parts[0]).stem, *parts[1:]])
        if name in table:
            raise RecipeError(f"--cells {text!r}: is given twice")
        table[name] = {"model": _whole(parts[0]), "estimator": parts[1], "set": rule, **data}
    if control:
        models = dict.fromkeys(cell["model"] for cell in table.values())
        listed = {cell["model"] for cell in table.values() if cell["estimator"] == CONTROL}
        for model in models:
            if model not in listed:
                name = f"{Path(model).stem} · frozen hidden"
                table[name] = {"model": model, "estimator": CONTROL, **data}
    return table


def compare(
    models: Sequence[str] = (),
    estimators: Sequence[str] = (),
    *,
    folder: str | Path,
    cells: Sequence[str] = (),
    decorrelate: Sequence[str] = (),
    datasets: Sequence[str] = (),
    data: Any = None,
    task: str | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    baseline: str | None = None,
    control: bool = True,
    settings: Sequence[str] = (),
    tune: Sequence[str] = (),
    trials: int | None = None,
    workers: int = 1,
    data_dir: str | Path | None = None,
    offline: bool = False,
) -> RunSet:
    """Train every model with every rule and every seed, and return the runs as a set.

    What is in the folder already is not trained again.

    Args:
        models: shipped names or TOML files.
        estimators: names; empty: each model's own.
        folder: for the runs and the results.
        cells: ``MODEL:ESTIMATOR`` or ``MODEL:ESTIMATOR:DECORRELATION``, in place of a grid.
        decorrelate: rules of decorrelation, "off" among them; empty: each model's own.
        datasets: shipped names, TOML files, or files and folders of data; empty: digits.
        data: your own data in place of ``datasets``, as ``biograd.train`` takes them.
        task: what the targets ask for; None: what they tell.
        seeds: their number, or the seeds themselves.
        baseline: name of the cell to which the others are compared; None: the first.
        control: also train every model with frozen hidden layers.
        settings: ``KEY=VALUE`` overrides for every training.
        tune: ranges, ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=A|B``: settings of every
            cell are chosen there on a held-out part of the training data.
        trials: of the search in every cell.
        workers: trainings at a time; 1: in this process.

    Raises:
        RecipeError: the comparison is not valid.
        BiogradError: trainings failed; the others are in the folder.
    """
    place, own = Path(folder), dict[str, Any]()
    if data is not None:
        name = named(data)[0]
        own = {data if is_function(data) else f"{recipes.OWN}{name}": data}
        if datasets:
            raise RecipeError("datasets, data: give one of them")
        datasets = tuple(own)
    table = study(
        models,
        estimators,
        cells=cells,
        decorrelate=decorrelate,
        datasets=datasets,
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        epochs=epochs,
        baseline=baseline,
        control=control,
        settings=settings,
        task=task,
        tune=tune,
        trials=trials,
    )
    where = Place(
        place,
        None if data_dir is None else Path(data_dir),
        offline,
        Placement(workers=workers, folder=place),
        own=own,
    )
    report = studies.run(table, place / studies.SAVED, where, Progress())
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
        f"{first['reason']}; the others are in {folder}, and running it again tries those again"
    )
