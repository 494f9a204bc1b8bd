"""The recipe of a model: the network, its encoding, and how it learns by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from biograd.checking import Checked, Table, construct, convert
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
from biograd.recipes.toml import merge, override, read

MOVED = {"readout", "readout_time_constant_ms", "method"}
"""Keys of ``[neuron]`` in recipes and run files of earlier versions."""


@dataclasses.dataclass(frozen=True)
class ModelRecipe(Checked):
    """A model file: the network, its neurons and encoding, and how it learns by default."""

    description: str = ""
    estimator: str = "backprop"
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
    training: TrainingRecipe = dataclasses.field(default_factory=TrainingRecipe)
    estimators: Table = dataclasses.field(default_factory=dict)
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
) -> ModelRecipe:
    """Return the model recipe ``name`` (shipped name or path to a TOML file).

    Later wins: the file, its ``[dataset.<dataset>]`` table, ``over``, then ``assignments``.  Where
    these ask for another ``neuron.kind``, keys of the file that it does not have go.

    Raises:
        RecipeError: with the file, the key and the nearest valid word.
    """
    table, path = read(name, "models")
    _check_budget(table, path)
    for_dataset = convert(Table, table.pop("dataset", {}), path, "dataset")
    for known, changes in for_dataset.items():  # all are checked, whichever is used
        convert(Table, changes, path, f"dataset.{known}")
        construct(ModelRecipe, merge(table, changes), f"{path}: dataset.{known}")
    table = merge(table, for_dataset.get(dataset, {}))
    given = override(dict(over or {}), assignments)
    return construct(ModelRecipe, merge(_of_kind(table, given), given), path)


def _of_kind(table: Table, given: Table) -> Table:
    """Return a file's table without keys of its neuron that the kind asked for does not have."""
    asked, own = given.get("neuron"), table.get("neuron")
    kind = asked.get("kind") if isinstance(asked, Mapping) else None
    if kind is None or kind not in NEURONS or not isinstance(own, Mapping):
        return table
    known = {"kind", *MOVED, *(field.name for field in dataclasses.fields(NEURONS[kind]))}
    return {**table, "neuron": {key: value for key, value in own.items() if key in known}}


def _check_budget(table: Table, path: Path) -> None:
    """Refuse a file that gives epochs and, in the same place, what takes the place of epochs."""
    training = table.get("training")
    given = training if isinstance(training, dict) else {}
    for other in ("passes", "seconds"):
        if other in given and "epochs" in given:
            raise RecipeError(f"{path}: training: epochs and {other} are two budgets: give one")
