"""The recipe of a model: the network, its encoding, and how it learns by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from biograd.checking import Checked, Table, construct, convert
from biograd.contracts import ActivityBounds
from biograd.errors import RecipeError
from biograd.neurons import NEURONS, Leaky
from biograd.recipes.architecture import (
    MixerRecipe,
    NetworkRecipe,
    NeuronRecipe,
    PopulationRecipe,
    ProjectionRecipe,
)
from biograd.recipes.encoding_recipe import EncodingRecipe
from biograd.recipes.learning import DecorrelationRecipe, LocalRecipe, TrainingRecipe
from biograd.recipes.module_recipe import ModuleRecipe, model_table
from biograd.recipes.recording_recipe import RecordingRecipe
from biograd.recipes.toml import leaves, merge, override, without

MOVED = {"readout", "readout_time_constant_ms", "method"}
"""Keys of ``[neuron]`` in recipes and run files of earlier versions."""


@dataclasses.dataclass(frozen=True)
class ModelRecipe(Checked):
    """A model file: the network, its neurons and encoding, and how it learns by default."""

    description: str = ""
    estimator: str = "backprop"
    module: ModuleRecipe = dataclasses.field(default_factory=ModuleRecipe)
    network: NetworkRecipe = dataclasses.field(default_factory=NetworkRecipe)
    mixer: MixerRecipe = dataclasses.field(default_factory=MixerRecipe)
    neuron: NeuronRecipe = dataclasses.field(default_factory=Leaky)
    population: PopulationRecipe = dataclasses.field(default_factory=PopulationRecipe)
    populations: Mapping[str, PopulationRecipe] = dataclasses.field(default_factory=dict)
    """Of a circuit, by name, in the order in which a step runs through them; the readout listens
    to the last."""
    projections: Mapping[str, ProjectionRecipe] = dataclasses.field(default_factory=dict)
    encoding: EncodingRecipe = dataclasses.field(default_factory=EncodingRecipe)
    decorrelation: DecorrelationRecipe = dataclasses.field(default_factory=DecorrelationRecipe)
    local: LocalRecipe = dataclasses.field(default_factory=LocalRecipe)
    activity: ActivityBounds = dataclasses.field(default_factory=ActivityBounds)
    """Bounds of hidden units' activity, whose cost is a part of the loss."""
    training: TrainingRecipe = dataclasses.field(default_factory=TrainingRecipe)
    recording: RecordingRecipe = dataclasses.field(default_factory=RecordingRecipe)
    estimators: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    """Settings by estimator name: ``[estimators.weak] copies = 17``."""
    dataset: Table = dataclasses.field(default_factory=dict)
    """Overrides by dataset name: ``[dataset.mnist.network] hidden = [128, 128]``."""

    @staticmethod
    def earlier(table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a table as today's: ``[neuron]`` once held what is read, and ``method``."""
        neuron = table.get("neuron")
        if not isinstance(neuron, Mapping) or not MOVED & set(neuron):
            return table
        rest = {key: value for key, value in neuron.items() if key not in MOVED}
        if neuron.get("method") == "event":
            # exact spike times never read them
            rest = {k: v for k, v in rest.items() if k not in ("surrogate", "slope", "reset")}
            rest["kind"] = "event_driven"
        read = {k: v for k, v in neuron.items() if k in MOVED - {"method"}}
        network = table.get("network", {})
        return {**table, "neuron": rest, "network": {**read, **network}}


def load_model(
    name: str | Path,
    dataset: str = "",
    over: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    unread: Unread | None = None,
    given: Mapping[str, Any] | None = None,
) -> ModelRecipe:
    """Return the model recipe ``name`` (shipped name, path to a TOML file, or name of code).

    Later wins: the file, its ``[dataset.<dataset>]`` table, ``over``, then ``assignments``.  Where
    these ask for another ``neuron.kind``, keys of the file that it does not have go, and so do
    those that they leave without effect.

    Args:
        unread: says which keys nothing reads; whoever gives one in the file is told so.
        given: what of ``over`` must have an effect, too.

    Raises:
        RecipeError: with the file, the key and the nearest valid word, or why it has no effect.
    """
    table, path, _title = model_table(name)
    _check_budget(table, path)
    for_dataset = convert(Table, table.pop("dataset", {}), path, "dataset")
    for known, changes in for_dataset.items():  # all are checked, whichever is used
        convert(Table, changes, path, f"dataset.{known}")
        made = construct(ModelRecipe, merge(table, changes), f"{path}: dataset.{known}")
        if unread is not None:
            check_read(changes, unread(made), f"{path}: dataset.{known}")
    laid = override(dict(over or {}), assignments)
    last = for_dataset.get(dataset, {})
    whole = merge(_of_kind(merge(table, last), laid), laid)
    recipe = construct(ModelRecipe, whole, path)
    if unread is None:
        return recipe
    idle = unread(recipe)
    check_read(given or {}, idle, "--set")
    alone = unread(construct(ModelRecipe, table, path))
    check_read(table, {key: why for key, why in idle.items() if covered(key, alone)}, path)
    return construct(ModelRecipe, without(whole, list(idle)), path)


Unread = Callable[[ModelRecipe], Mapping[str, str]]
"""Keys of a recipe that nothing reads, dotted, each with the reason; of a whole table its name."""


def check_read(given: Mapping[str, Any], idle: Mapping[str, str], where: object) -> None:
    """Refuse a key that is given and that nothing reads.

    Raises:
        RecipeError: with the key and the reason.
    """
    for key in leaves(given):
        reason = covered(key, idle)
        if reason:
            raise RecipeError(f"{where}: {key}: has no effect {reason}")


def covered(key: str, idle: Mapping[str, str]) -> str:
    """Return why a key, or a table that holds it, is not read; "" if it is."""
    parts = key.split(".")
    tables = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((idle[table] for table in tables if table in idle), "")


def _of_kind(table: Table, given: Table) -> Table:
    """Return a file's table without keys of its neuron that the kind asked for does not have."""
    asked, own = given.get("neuron"), table.get("neuron")
    kind = asked.get("kind") if isinstance(asked, Mapping) else None
    if not isinstance(kind, str) or kind not in NEURONS or not isinstance(own, Mapping):
        return table
    known = {"kind", *MOVED, *(field.name for field in dataclasses.fields(NEURONS[kind]))}
    return {**table, "neuron": {key: value for key, value in own.items() if key in known}}


def _check_budget(table: Table, path: object) -> None:
    """Refuse a file that gives epochs and, in the same place, what takes the place of epochs."""
    training = table.get("training")
    given = training if isinstance(training, dict) else {}
    for other in ("passes", "seconds"):
        if other in given and "epochs" in given:
            raise RecipeError(f"{path}: training: epochs and {other} are two budgets: give one")
