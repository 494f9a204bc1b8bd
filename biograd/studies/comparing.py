"""A comparison from Python: what ``biograd compare`` does on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from biograd import devices, recipes, studies
from biograd.data.sources.own_data import named
from biograd.display import ProgressChoice, shown
from biograd.errors import BiogradError, RecipeError
from biograd.placement import Placement
from biograd.recipes import Table
from biograd.recipes.dataset_recipe import ENDINGS, is_function
from biograd.recipes.module_recipe import check_plain
from biograd.recipes.toml import at, leaves
from biograd.studies import Place, Report, search
from biograd.studies.grid import CONTROL
from biograd.studies.results import set_file
from biograd.studies.results.set_file import RunSet
from biograd.studies.trial_storage import check_storage
from biograd.user_code import is_named, named_metrics, of_object, whole


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
    loss: str | None = None,
    reset: str | None = None,
    metrics: Sequence[str] = (),
    model_args: Sequence[str] = (),
    title: str | None = None,
    tune: Sequence[str] = (),
    trials: int | None = None,
) -> Table:
    """Return a comparison as a study's file would hold it.

    Args:
        cells: ``MODEL:ESTIMATOR`` or ``MODEL:ESTIMATOR:DECORRELATION``, in place of a grid.
        loss, reset: names, or those of code.
        metrics: names, or those of code, ``[NAME=]FILE.py:NAME``.
        model_args: ``NAME=VALUE``, arguments of the user's modules.

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
        + ([] if loss is None or is_named(loss) else [f"training.loss={loss}"])
        + ([] if reset is None or is_named(reset) else [f"module.reset={reset}"])
        + [f"module.arguments.{text}" for text in model_args]
        + list(settings),
    }
    code = {"loss": loss, "reset": reset}
    table |= {key: whole(name) for key, name in code.items() if name and is_named(name)}
    measured = named_metrics(metrics)
    names = [one for one in measured.values() if not is_named(one)]
    table["set"] += [f"training.metrics={json.dumps(names)}"] if names else []
    own = [f"{name}={whole(one)}" for name, one in measured.items() if is_named(one)]
    table |= {"metrics": own} if own else {}
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
    if is_named(name):
        return whole(name)
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
        parts = _divided(text)
        if len(parts) not in (2, 3) or not all(parts):
            raise RecipeError(f"--cells {text!r}: write MODEL:ESTIMATOR, as in spiking:weak")
        rule = [f"decorrelation.rule={parts[2]}"] if len(parts) == 3 else []
        name = " · ".join([recipes.title(parts[0]), *parts[1:]])
        if name in table:
            raise RecipeError(f"--cells {text!r}: is given twice")
        table[name] = {"model": _whole(parts[0]), "estimator": parts[1], "set": rule, **data}
    if control:
        models = dict.fromkeys(cell["model"] for cell in table.values())
        listed = {cell["model"] for cell in table.values() if cell["estimator"] == CONTROL}
        for model in models:
            if model not in listed:
                name = f"{recipes.title(model)} · frozen hidden"
                table[name] = {"model": model, "estimator": CONTROL, **data}
    return table


def _divided(text: str) -> list[str]:
    """Return model, estimator and more of a cell; code has a colon of its own."""
    parts = [part.strip() for part in text.split(":")]
    first = parts[0]
    code = first.endswith(".py") or ("." in first and Path(first).suffix != ".toml")
    return [":".join(parts[:2]), *parts[2:]] if code else parts


def compare(
    models: Sequence[Any] = (),
    estimators: Sequence[str] = (),
    *,
    folder: str | Path,
    cells: Sequence[str] = (),
    decorrelate: Sequence[str] = (),
    datasets: Sequence[str] = (),
    data: Any = None,
    task: str | None = None,
    loss: str | None = None,
    reset: str | None = None,
    metrics: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
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
    allow_code: bool = False,
    device: str = "auto",
    storage: str | None = None,
    progress: ProgressChoice = None,
) -> RunSet:
    """Train every model with every rule and every seed, and return the runs as a set.

    What is in the folder already is not trained again.

    Args:
        models: shipped names, TOML files, text that names code, ``net.py:Net``, classes or
            functions that make a module, or modules, from whose weights then every seed begins.
        estimators: names; empty: each model's own.
        folder: for the runs and the results.
        cells: ``MODEL:ESTIMATOR`` or ``MODEL:ESTIMATOR:DECORRELATION``, in place of a grid.
        decorrelate: rules of decorrelation, "off" among them; empty: each model's own.
        datasets: shipped names, TOML files, or files and folders of data; empty: digits.
        data: your own data in place of ``datasets``, as ``biograd.train`` takes them.
        task: what the targets ask for; None: what they tell.
        loss, reset, metrics: of ``biograd.train``, names or text that names code.
        arguments: of the classes or functions.
        seeds: their number, or the seeds themselves.
        baseline: name of the cell to which the others are compared; None: the first.
        control: also train every model with frozen hidden layers.
        settings: ``KEY=VALUE`` overrides for every training.
        tune: ranges, ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=A|B``: settings of every
            cell are chosen there on a held-out part of the training data.
        trials: of the search in every cell.
        workers: trainings at a time; 1: in this process.  Others find a class by its file and name.
        allow_code: let recipes' files name the code of modules.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", CUDA if there is one; several workers
            divide the CUDA devices that are visible, unless one is named.
        storage: URL of a database for the trials of the searches, as "sqlite:///search.db", in
            which several processes may search together; None: the folder holds them.
        progress: as in ``train``; a function also hears of every "training" that is started, done
            or failed.

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
    names, objects = _objects(models, workers)
    table = study(
        names,
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
        loss=loss,
        reset=reset,
        metrics=metrics,
        tune=tune,
        trials=trials,
    )
    table["set"] += _assigned(arguments or {})
    where = Place(
        place,
        None if data_dir is None else Path(data_dir),
        offline,
        Placement(workers=workers, folder=place, device=devices.named(device)),
        own=own,
        models=objects,
        typed=typed(table),
        allow_code=allow_code,
        storage="" if storage is None else check_storage(storage),
    )
    with shown(progress, several=True) as display:
        report = studies.run(table, place / studies.SAVED, where, display)
    if report.failures:
        raise BiogradError(failed(report, place))
    return set_file.load_set(place)


def _assigned(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments of a class as ``KEY=VALUE``.

    Raises:
        RecipeError: a value that no file can hold.
    """
    check_plain(arguments, "arguments")
    flat = {key: at(arguments, key) for key in leaves(arguments)}
    return [
        f"module.arguments.{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in flat.items()
    ]


def typed(table: Table) -> frozenset[str]:
    """Return the names of code in a comparison whose models, data and the like were typed."""
    grid = table.get("grid", {})
    cells = table.get("cells", {}).values()
    names = [*grid.get("models", ()), *grid.get("datasets", ())]
    names += [cell[key] for cell in cells for key in ("model", "dataset") if key in cell]
    names += named_metrics(table.get("metrics", ())).values()
    return frozenset({*names, table.get("loss", ""), table.get("reset", "")})


def _objects(models: Any, workers: int) -> tuple[list[str], dict[str, Any]]:
    """Return what a study calls models that may be objects, and those by their names.

    Raises:
        RecipeError: two of one name, or one that other processes cannot find by file and name.
    """
    given = [models] if isinstance(models, str | nn.Module | type) or callable(models) else models
    names, objects = list[str](), dict[str, Any]()
    for one in given:
        if isinstance(one, str | Path):
            names.append(str(one))
            continue
        short = getattr(one, "__name__", type(one).__name__)
        name = f"{recipes.OWN}{short}" if workers == 1 else _by_file(one, short)
        if name in objects:
            raise RecipeError(f"models: two are called {short}: give one of them another name")
        names.append(name)
        if workers == 1:
            objects[name] = one
    return names, objects


def _by_file(one: Any, short: str) -> str:
    """Return the name by which another process finds a class or a function."""
    found = of_object(one)
    text = f"{found.path}:{found.code.name}"
    if isinstance(one, nn.Module) or found.path is None or not is_named(text):
        kind = "a module" if isinstance(one, nn.Module) else "in no file by a name of its own"
        raise RecipeError(
            f"models: {short} is {kind}, and other processes find a class by its file and name: "
            "give workers=1, or a class or a function of a file"
        )
    return text


def failed(report: Report, folder: Path) -> str:
    """Return what is said at the end if trainings failed, "" if none did."""
    if not report.failures:
        return ""
    first, count = report.failures[0], len(report.failures)
    return (
        f"{count} of {report.trainings} trainings failed, the first {first['training']}: "
        f"{first['reason']}; the others are in {folder}, and running it again tries those again"
    )
