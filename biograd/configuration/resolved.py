"""What a run is: the request of a user, resolved into a configuration that can be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from biograd import decorrelation, devices, estimators, local, recipes, tasks, user_code
from biograd.configuration.own_parts import OwnParts, typed
from biograd.configuration.training_request import TrainingRequest
from biograd.data import Dataset
from biograd.data import load as load_data
from biograd.data.sources.own_data import named
from biograd.encoding import ENCODINGS
from biograd.engine.settings import unread
from biograd.errors import CapabilityError, RecipeError, RunFileError, word
from biograd.recipes import DatasetRecipe, EncodingRecipe, ModelRecipe
from biograd.recipes.model import check_read
from biograd.recipes.toml import merged, without
from biograd.substrate.return_values import Outputs
from biograd.training.optimisers import check_optimiser
from biograd.user_code import UserCode


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
    code: Mapping[str, UserCode] = dataclasses.field(default_factory=dict)
    """What the user's ``model``, ``loss``, ``reset`` and ``metric.NAME`` came from, as far as they
    are code."""
    stages: tuple[Stage, ...] = ()
    """What came before ``biograd resume --epochs`` gave the run the budget that it has now."""

    @staticmethod
    def earlier(table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a table as today's: once every run had a loss of classes, whatever its task."""
        try:
            training, task = table["recipe"]["training"], table["data"]["task"]
            if training["loss"] == "cross_entropy" and task["name"] != "classes":
                training = {**training, "loss": None}
                table = {**table, "recipe": {**table["recipe"], "training": training}}
        except (KeyError, TypeError):  # not there, or refused by its own name
            pass
        if "sites" not in table or not isinstance(table.get("recipe"), Mapping):
            return table
        rest, recipe = {k: v for k, v in table.items() if k != "sites"}, table["recipe"]
        if table["sites"] is not None:  # they stood beside the recipe
            recipe = {**recipe, "module": {**recipe.get("module", {}), "sites": table["sites"]}}
        return {**rest, "recipe": recipe}

    @property
    def sites(self) -> Mapping[str, tuple[str, ...]] | None:
        """The layers of every site of a module of the user's; None: all with weights."""
        given = self.recipe.module.sites
        if given is None or isinstance(given, Mapping):
            return given
        return {name: (name,) for name in given}

    @property
    def outputs(self) -> Outputs | None:
        """What of a module's return value its outputs are; None: all of it."""
        given = self.recipe.module.outputs
        return None if given is None else Outputs(given.part, given.time_first, given.over_time)

    @property
    def asks(self) -> str:
        """The options that bring the user's own code back, as they are typed."""
        named = {part: code for part, code in self.code.items() if user_code.is_named(str(code))}
        method = self.recipe.module.reset
        reset = f" --reset {word(method)}" if method and not method.startswith("reset") else ""
        return "".join(f" {typed(part, code)}" for part, code in named.items()) + reset

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

    def here(self, where: str = "--device") -> Configuration:
        """Return the configuration with a device of this machine.

        Args:
            where: opens the message.

        Raises:
            RecipeError: the device is not here.
            CapabilityError: it does not compute in the network's type.
        """
        found = devices.present(self.device, where)
        if found == "mps" and self.recipe.network.dtype == "float64" and not self.module:
            raise CapabilityError(
                "network.dtype = 'float64': MPS does not compute in 64 bits: use --device cpu"
            )
        return dataclasses.replace(self, device=found)

    def read(self, own: Any = None) -> Dataset:
        """Return the data, complete and checked.

        Args:
            own: the user's own, which no file can bring back.

        Raises:
            RecipeError, DataError: see ``data.load``.
        """
        return load_data(
            self.data,
            name=self.dataset,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            offline=self.offline,
            seed=self.seed,
            own=own,
            timed=self.encoded_in_time,
            dt_ms=self.recipe.encoding.dt_ms,
        )

    @property
    def encoded_in_time(self) -> bool:
        """Whether the encoding says that the data have a time axis."""
        return ENCODINGS.find(self.recipe.encoding.kind, f"{self.model}: encoding.kind").timed

    def offered(self) -> Configuration:
        """Return the configuration of a run file, whose own addresses are not fetched.

        A file may come from anybody: only the addresses of shipped recipes are asked for it.
        """
        shipped = {
            url
            for name in recipes.names("datasets")
            for url in recipes.dataset_table(name)[0].get("urls", ())
        }
        known = tuple(url for url in self.data.urls if url in shipped)
        if known == self.data.urls:
            return self
        data = dataclasses.replace(self.data, urls=known)
        return dataclasses.replace(self, data=data, offline=self.offline or not known)

    def settled(self, dataset: Dataset) -> Configuration:
        """Return the configuration with the name of the task that the data set."""
        task = {**self.data.task, "name": dataset.task_name}
        return dataclasses.replace(self, data=dataclasses.replace(self.data, task=task))

    def table(self) -> dict[str, Any]:
        """Return the configuration as a table that ``of`` reads, less keys that nothing reads."""
        found, idle = dataclasses.asdict(self), list(unread(self.recipe, module=self.module))
        timed = self.data.timed or self.encoded_in_time
        if self.module and not timed:  # by its steps events are binned
            binned = self.recipe.encoding.dt_ms != EncodingRecipe().dt_ms
            idle.append("encoding.kind" if binned else "encoding")
        return found | {"recipe": without(found["recipe"], idle)}

    @classmethod
    def of(cls, table: Mapping[str, Any], where: object) -> Configuration:
        """Return the configuration of a run file.

        Raises:
            RunFileError: the table is not one, or that of ``biograd.record``.
        """
        if set(table) == {"loop"}:
            raise RunFileError(
                f"{where}: was recorded in a loop of one's own (biograd.record): what trained it "
                "is not in the file, so that nothing can be trained or tried again from it"
            )
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
    if not 0 <= request.seed < 2**63:
        raise RecipeError(f"seed: {request.seed.bit_length()} bits: must be from 0 to 2^63 - 1")
    asked = (*request.common, *request.assignments)
    to_data = [a.removeprefix("dataset.") for a in asked if a.startswith("dataset.")]
    to_model = [a for a in request.assignments if not a.startswith("dataset.")]
    common = [a for a in request.common if not a.startswith("dataset.")]
    name, dataset = _dataset(request, to_data)
    parts = request.parts()
    model, where = _title(request, parts)
    own = [*_options(request, parts), *recipes.settings(to_model)]
    laid = [*recipes.settings(common), *own]
    recipes.blamed(lambda over: _recipe(request, name, over), laid, where)
    recipe = _recipe(request, name, merged(laid), merged(own))
    _check_budget(request, [*common, *to_model], recipe)
    _check_rules(to_model, recipe.estimator)
    return Configuration(
        model=model,
        recipe=_settled(recipe, parts),
        dataset=name,
        data=dataset,
        estimator=recipe.estimator,
        settings=recipe.estimators.get(recipe.estimator, {}),
        seed=request.seed,
        device=devices.named(request.device),
        data_dir=None if request.data_dir is None else str(request.data_dir.resolve()),
        offline=request.offline,
        control=request.control,
        module=parts.model is not None,
        code=parts.known,
    )


def _title(request: TrainingRequest, parts: OwnParts) -> tuple[str, list[object]]:
    """Return what a model is called, and what messages about its file begin with."""
    if isinstance(request.model, str):
        _table, path, title = recipes.model_table(request.model)
        return title, [path, request.model]
    if isinstance(request.model, nn.Module):
        return type(request.model).__name__, []
    name = parts.code["model"].code.name.rpartition(".")[2]
    return name if name.isidentifier() else "module", []


def _settled(recipe: ModelRecipe, parts: OwnParts) -> ModelRecipe:
    """Return the recipe as a run file has it: code by its name, biograd's metrics in a key."""
    names = [name for name, one in parts.metrics.items() if one == name]
    metrics = tuple(dict.fromkeys((*recipe.training.metrics, *names)))
    training = dataclasses.replace(recipe.training, metrics=metrics)
    recipe = dataclasses.replace(recipe, training=training)
    if "model" not in parts.code or not recipe.module.source:
        return recipe
    module = dataclasses.replace(recipe.module, source=str(parts.code["model"].code))
    return dataclasses.replace(recipe, module=module)


def _options(request: TrainingRequest, parts: OwnParts) -> recipes.Laid:
    """Return what a request asks for in place of the recipe's, less its assignments."""
    loss = str(parts.code["loss"].code) if "loss" in parts.code else request.loss
    reset = request.reset if isinstance(parts.reset, str) else None
    asked: dict[str, tuple[object, recipes.Table]] = {
        "--estimator": (request.estimator, {"estimator": request.estimator}),
        "--epochs": (request.epochs, {"training": {"epochs": request.epochs}}),
        "--batch-size": (request.batch_size, {"training": {"batch_size": request.batch_size}}),
        "--loss": (loss, {"training": {"loss": loss}}),
        "--reset": (reset, {"module": {"reset": reset}}),
    }
    found = [(name, table) for name, (value, table) in asked.items() if value is not None]
    return [*found, *((name, dict(table)) for name, table in request.laid.items())]


def _recipe(
    request: TrainingRequest, dataset: str, over: dict[str, Any], given: recipes.Table | None = None
) -> ModelRecipe:
    """Return the recipe of a model, all that it names looked up.

    Args:
        given: what must have an effect of what is laid over the file.
    """
    model = request.model
    if not isinstance(model, str):
        model = getattr(model, "__name__", type(model).__name__)
        recipe = recipes.construct(ModelRecipe, over, model)
        check_read(given or {}, _of_object(recipe, request), "--set")
    else:
        recipe = recipes.load_model(model, dataset, over, unread=unread, given=given)
    for other, table in {recipe.estimator: {}, **recipe.estimators}.items():
        estimators.make(other, table, model)
    decorrelation.make(recipe.decorrelation, model)
    local.make(recipe.local, model)
    _check_parts(recipe, request)
    if recipe.training.optimiser_settings:
        check_optimiser(recipe.training)
    return recipe


def _of_object(recipe: ModelRecipe, request: TrainingRequest) -> dict[str, str]:
    """Return the keys that nothing reads where the module, or what makes it, is an object."""
    found = unread(recipe, module=True) | {"module.source": "beside a module that is given"}
    made = {"module.arguments": "on a module that is made already"}
    return found | (made if isinstance(request.model, nn.Module) else {})


def _check_parts(recipe: ModelRecipe, request: TrainingRequest) -> None:
    """Refuse code that a recipe's keys name, a loss that nobody has, and an idle reset."""
    loss, reset = recipe.training.loss, recipe.module.reset
    for key, name in (("training.loss", loss), ("module.reset", reset)):
        option = key.partition(".")[2]
        if name and user_code.is_named(name) and getattr(request, option) is None:
            raise RecipeError(f"{key} = {name!r}: code is given by --{option}, not by a key")
    if loss is not None and not user_code.is_named(loss) and not callable(request.loss):
        tasks.check_loss(loss)
    if isinstance(request.model, str) and recipe.module.source != request.code:
        raise RecipeError(f"module.source = {recipe.module.source!r}: code is given by --model")
    if isinstance(request.model, str) and not request.code and "sites" in request.laid:
        raise RecipeError("sites: have no effect on a network of biograd, which has its own")
    if isinstance(request.model, str) and not request.code and "outputs" in request.laid:
        raise CapabilityError("outputs: only for a module of yours: recipes' return nothing else")
    if request.reset is not None and isinstance(request.model, str) and not request.code:
        raise CapabilityError("reset: only for a module of yours: recipes' networks keep no state")


def _dataset(request: TrainingRequest, assignments: list[str]) -> tuple[str, DatasetRecipe]:
    """Return what the data are called, and their recipe."""
    task = {"name": request.task} if isinstance(request.task, str) else dict(request.task or {})
    if request.own is None:
        title = recipes.dataset_table(request.dataset)[2]
        where = recipes.dataset_table(request.dataset)[1:2]

        def make(over: dict[str, Any]) -> DatasetRecipe:
            return recipes.load_dataset(request.dataset, over=over)
    else:
        title, table = named(request.own)
        where = ("data",)

        def make(over: dict[str, Any]) -> DatasetRecipe:
            return recipes.construct(DatasetRecipe, recipes.merge(table, over), "data")

    recipe = recipes.blamed(make, recipes.settings(assignments, "dataset."), where)
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


def _check_rules(assignments: list[str], estimator: str) -> None:
    """Refuse settings of another rule than the one that learns."""
    for text in assignments:
        table, _, rest = text.partition("=")[0].strip().partition(".")
        if table == "estimators" and rest.partition(".")[0] != estimator:
            raise RecipeError(f"--set {text}: has no effect: the estimator is {estimator!r}")
