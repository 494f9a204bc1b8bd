"""What a run is: the request of a user, resolved into a configuration that can be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from biograd import decorrelation, estimators, local, recipes
from biograd.data import Dataset
from biograd.data import load as load_data
from biograd.data.sources.own_data import named
from biograd.encoding import ENCODINGS
from biograd.errors import RecipeError, RunFileError
from biograd.recipes import DatasetRecipe, ModelRecipe


@dataclasses.dataclass(frozen=True)
class TrainingRequest:
    """What the user asked for; None means the recipe's value."""

    model: str | nn.Module = "spiking"
    dataset: str = "digits"
    estimator: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    force: bool = False
    assignments: tuple[str, ...] = ()
    data_dir: Path | None = None
    offline: bool = False
    control: bool = False
    own: Any = None
    """Own data in place of ``dataset``: arrays, Datasets, or typed text that names code."""
    task: str | Mapping[str, Any] | None = None
    repeatable: bool = False
    """Refuse data that do not repeat."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """The beginning of a run that was later trained for another number of epochs.

    Attributes:
        epochs: what its budget was, which a schedule of the learning rate follows.
        steps: how far it went with that.
    """

    epochs: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Everything that decides a run; written into its file."""

    model: str
    recipe: ModelRecipe
    dataset: str
    data: DatasetRecipe
    estimator: str
    settings: dict[str, Any]
    seed: int
    device: str
    data_dir: str | None = None
    offline: bool = False
    control: bool = False
    module: bool = False
    """The network is a module of the user's, which no recipe can build again."""
    stages: tuple[Stage, ...] = ()
    """What came before ``biograd resume --epochs`` gave the run the budget that it has now."""

    def longer(self, epochs: int, step: int) -> Configuration:
        """Return the configuration of the run trained to ``epochs``, from ``step`` on."""
        before = self.recipe.training
        training = dataclasses.replace(before, epochs=epochs)
        changed = epochs != before.epochs and step > 0
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, training=training),
            stages=(*self.stages, *([Stage(before.epochs, step)] if changed else [])),
        )

    def given(self, own: Any) -> Configuration:
        """Return the configuration of the same run on data that are given anew."""
        if own is None:
            return self
        _title, table = named(own)
        place = {"path": "", "paths": {}, **table}
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **place))

    def read(self, own: Any = None) -> Dataset:
        """Return the data, complete and checked.

        Args:
            own: the user's own, which no file can bring back.

        Raises:
            RecipeError, DataError: see ``data.load``.
        """
        encoding = self.recipe.encoding
        kind = ENCODINGS.find(encoding.kind, f"{self.model}: encoding.kind")
        return load_data(
            self.data,
            name=self.dataset,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            offline=self.offline,
            seed=self.seed,
            own=own,
            timed=kind.timed,
            dt_ms=encoding.dt_ms,
        )

    def settled(self, dataset: Dataset) -> Configuration:
        """Return the configuration with the name of the task that the data set."""
        task = {**self.data.task, "name": dataset.task_name}
        return dataclasses.replace(self, data=dataclasses.replace(self.data, task=task))

    def table(self) -> dict[str, Any]:
        """Return the configuration as a table that ``of`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, table: Mapping[str, Any], where: object) -> Configuration:
        """Return the configuration of a run file.

        Raises:
            RunFileError: the table is not one.
        """
        try:
            return recipes.construct(cls, table, where)
        except RecipeError as error:
            raise RunFileError(f"{error} (the run's configuration)") from error


def configure(request: TrainingRequest) -> Configuration:
    """Return the configuration of a request: recipes read, overrides applied, all checked.

    Assignments ``dataset.KEY=VALUE`` go to the dataset recipe, the others to the model recipe.

    Raises:
        RecipeError: one line with file, key and nearest valid word.
    """
    to_data = [a.removeprefix("dataset.") for a in request.assignments if a.startswith("dataset.")]
    to_model = [a for a in request.assignments if not a.startswith("dataset.")]
    name, dataset = _dataset(request, to_data)
    budget = {"epochs": request.epochs, "batch_size": request.batch_size}
    over: dict[str, Any] = {"training": {k: v for k, v in budget.items() if v is not None}}
    if request.estimator is not None:
        over["estimator"] = request.estimator
    if isinstance(request.model, nn.Module):
        table = recipes.override(recipes.merge({}, over), to_model)
        recipe = recipes.construct(ModelRecipe, table, "--set")
        model = type(request.model).__name__
    else:
        recipe = recipes.load_model(request.model, name, over, to_model)
        model = Path(request.model).stem
    _check_budget(request, to_model, recipe)
    settings = recipe.estimators.get(recipe.estimator, {})
    for other, table in {**recipe.estimators, recipe.estimator: settings}.items():
        estimators.make(other, table, request.model)
    decorrelation.make(recipe.decorrelation, request.model)
    local.make(recipe.local, request.model)
    return Configuration(
        model=model,
        recipe=recipe,
        dataset=name,
        data=dataset,
        estimator=recipe.estimator,
        settings=settings,
        seed=request.seed,
        device=check_device(request.device),
        data_dir=None if request.data_dir is None else str(request.data_dir.resolve()),
        offline=request.offline,
        control=request.control,
        module=isinstance(request.model, nn.Module),
    )


def _dataset(request: TrainingRequest, assignments: list[str]) -> tuple[str, DatasetRecipe]:
    """Return what the data are called, and their recipe."""
    task = {"name": request.task} if isinstance(request.task, str) else dict(request.task or {})
    if request.own is None:
        title = recipes.dataset_table(request.dataset)[2]
        recipe = recipes.load_dataset(request.dataset, assignments)
    else:
        title, table = named(request.own)
        recipe = recipes.construct(DatasetRecipe, recipes.override(table, assignments), "data")
    return title, dataclasses.replace(recipe, task={**recipe.task, **task})


def _check_budget(request: TrainingRequest, assignments: list[str], recipe: ModelRecipe) -> None:
    """Refuse epochs that are asked for beside another budget, which would take their place."""
    asked = [] if request.epochs is None else [f"--epochs {request.epochs}"]
    asked += [f"--set {a}" for a in assignments if a.partition("=")[0].strip() == "training.epochs"]
    unit, amount = recipe.training.budget
    if asked and unit != "epochs":
        raise RecipeError(
            f"{asked[0]}: training.{unit} = {amount} takes the place of epochs: leave out one of "
            "the two"
        )


def check_device(name: str, where: str = "--device cuda") -> str:
    """Return the device of ``auto``, ``cpu`` or ``cuda``; ``where`` opens the message.

    Raises:
        RecipeError: no such device, here or at all.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{where}: no CUDA device is available here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: (known: auto, cpu, cuda)")
    return name
