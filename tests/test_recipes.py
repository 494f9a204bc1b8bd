"""Recipes: what is refused, in which words, and what wins over what."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from biograd import recipes
from biograd.configuration import TrainingRequest, configure
from biograd.environments import ENVIRONMENTS
from biograd.errors import RecipeError
from biograd.recipes import DatasetRecipe, ModelRecipe, construct, merge, override

MODELS = recipes.names("models")
DATASETS = recipes.names("datasets")

BROKEN: list[tuple[str, list[str]]] = [
    # an unknown key, at the top and below, with the nearest word
    ("estimater = 'weak'", ["estimater", "did you mean 'estimator'?"]),
    ("[training]\nepoch = 3", ["training.epoch", "did you mean 'epochs'?"]),
    ("[network]\nqwxz = 3", ["network.qwxz", "known: activation"]),
    # a wrong type
    ("[training]\nepochs = 'three'", ["training.epochs", "'three'", "whole number"]),
    ("[training]\nepochs = 3.0", ["training.epochs", "whole number"]),
    ("[training]\nlearning_rate = '0.1'", ["training.learning_rate", "must be a number"]),
    ("[network]\nrecurrent = 1", ["network.recurrent", "true or false"]),
    ("description = 3", ["description", "must be text"]),
    ("[network]\nhidden = 30", ["network.hidden", "must be a list"]),
    ("[network]\nhidden = [30, 'x']", ["network.hidden", "whole number"]),
    ("network = 3", ["network", "a table"]),
    ("estimators = 3", ["estimators", "must be a table"]),
    # a bool is no number
    ("[training]\nepochs = true", ["training.epochs", "True"]),
    ("[training]\nlearning_rate = true", ["training.learning_rate", "True"]),
    # out of range; the open end of an interval, too
    ("[training]\nbatch_size = 0", ["training.batch_size = 0", ">= 1"]),
    ("[training]\nepochs = -1", ["training.epochs = -1", ">= 0"]),
    ("[training]\nlearning_rate = 0", ["training.learning_rate", "> 0"]),
    ("[network]\ndropout = 0.99", ["network.dropout", ">= 0 and <= 0.95"]),
    ("[network]\nhidden = [30, 0]", ["network.hidden", ">= 1"]),
    ("[decorrelation]\nkappa = 1.5", ["decorrelation.kappa", "<= 1"]),
    # not a number
    ("[training]\nlearning_rate = nan", ["training.learning_rate", "nan"]),
    # a word that is not among the choices
    ("[network]\nsubstrate = 'snntorhc'", ["network.substrate", "did you mean 'snntorch'?"]),
    ("[neuron]\nreset = 0", ["neuron.reset", "known: subtract, zero"]),
    # not TOML
    ("estimator = ", ["not readable as TOML"]),
]


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "words"), BROKEN, ids=[text for text, _ in BROKEN])
def test_a_broken_recipe_is_refused_in_one_line(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        recipes.load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message


def test_an_empty_recipe_is_the_default_and_a_full_one_is_read(tmp_path: Path) -> None:
    assert recipes.load_model(written(tmp_path, "")) == ModelRecipe()
    text = """
        description = "two layers"
        estimator = "weak"
        [network]
        hidden = [7, 5]
        gain = 2
        [estimators.weak]
        copies = 9
        [training]
        learning_rate = 0.5
    """
    recipe = recipes.load_model(written(tmp_path, text))
    assert recipe.network.hidden == (7, 5)
    assert recipe.network.gain == 2.0 and isinstance(recipe.network.gain, float)
    assert recipe.estimators == {"weak": {"copies": 9}}
    assert recipe.training.learning_rate == 0.5
    assert recipe.training.epochs == ModelRecipe().training.epochs
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.estimator = "other"  # type: ignore[misc]


def test_later_wins(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "[training]\nepochs = 1\nbatch_size = 1\nlearning_rate = 1.0\nweight_decay = 1.0\n"
        "[dataset.mnist.training]\nbatch_size = 2\nlearning_rate = 2.0\nweight_decay = 2.0\n"
        "[dataset.other.training]\nepochs = 9\n",
    )
    over = {"training": {"learning_rate": 3.0, "weight_decay": 3.0}}
    training = recipes.load_model(path, "mnist", over, ["training.weight_decay=4"]).training
    found = (training.epochs, training.batch_size, training.learning_rate, training.weight_decay)
    assert found == (1, 2, 3.0, 4.0)
    assert recipes.load_model(path, "other").training.epochs == 9
    assert recipes.load_model(path, "unheard-of").training.batch_size == 1


def test_overrides_of_a_dataset_are_checked_like_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "[dataset.mnist.training]\nepoch = 2\n")
    for dataset in ("mnist", "digits"):  # whichever is used
        with pytest.raises(RecipeError, match=r"training\.epoch: did you mean 'epochs'"):
            recipes.load_model(path, dataset)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a=1.5", {"a": 1.5}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a="1"', {"a": "1"}),
        ("a=weak", {"a": "weak"}),
        ("a = weak ", {"a": "weak"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
        ("a.b.c=2", {"a": {"b": {"c": 2}}}),
    ],
)
def test_assignments_are_read_as_toml_or_as_text(assignment: str, expected: Any) -> None:
    assert override({}, [assignment]) == expected


@pytest.mark.parametrize("assignment", ["", "a", "=1", " =1"])
def test_an_assignment_needs_a_key_and_a_value(assignment: str) -> None:
    with pytest.raises(RecipeError, match="write KEY=VALUE"):
        override({}, [assignment])


def test_the_last_assignment_wins_and_the_table_is_not_touched() -> None:
    table = {"training": {"epochs": 3, "seed": 1}}
    assert override(table, ["training.epochs=4", "training.epochs=5"]) == {
        "training": {"epochs": 5, "seed": 1}
    }
    assert table == {"training": {"epochs": 3, "seed": 1}}
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_an_assignment_is_checked_like_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    with pytest.raises(RecipeError, match=r"training\.epochs"):
        recipes.load_model(path, assignments=["training.epochs=many"])
    with pytest.raises(RecipeError, match="did you mean 'training'"):
        recipes.load_model(path, assignments=["trainig.epochs=1"])


@pytest.mark.parametrize("folder", ["models", "datasets"])
@pytest.mark.parametrize("name", ["nowhere", "nowhere.toml", "pyproject", "", "../models"])
def test_a_recipe_that_is_not_there_is_refused(folder: Any, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.read(name, folder)
    assert f"no {folder.removesuffix('s')} {name!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not readable as TOML"):
        recipes.load_model(path)


def test_a_constructor_is_checked_like_a_dataclass() -> None:
    class Rule:
        def __init__(self, copies: recipes.Count, sigma: recipes.Positive = 0.1) -> None:
            if copies == 13:
                raise ValueError("13 is unlucky")
            self.copies, self.sigma = copies, sigma

    assert construct(Rule, {"copies": 3}, "here").copies == 3
    for table, words in [
        ({}, "here: missing key rule.copies"),
        ({"copies": 0}, "here: rule.copies = 0: must be >= 1"),
        ({"copies": 3, "sigam": 1}, "here: unknown key rule.sigam: did you mean 'sigma'?"),
        ({"copies": 13}, "here: rule: 13 is unlucky"),
    ]:
        with pytest.raises(RecipeError) as caught:
            construct(Rule, table, "here", "rule")
        assert str(caught.value).startswith(words)


def test_a_constructor_that_takes_anything_has_no_keys() -> None:
    class Rule:
        def __init__(self, *args: object, **kwargs: object) -> None:
            assert not args and not kwargs

    assert isinstance(construct(Rule, {}, "here"), Rule)
    with pytest.raises(RecipeError, match="unknown key anything"):
        construct(Rule, {"anything": 1}, "here")


def test_a_nothing_is_allowed_only_where_it_says_so() -> None:
    @dataclasses.dataclass
    class Thing:
        maybe: recipes.Count | None = 1
        surely: recipes.Count = 1

    assert construct(Thing, {"maybe": None}, "here").maybe is None
    with pytest.raises(RecipeError, match="maybe = 0"):
        construct(Thing, {"maybe": 0}, "here")
    with pytest.raises(RecipeError, match="surely = None"):
        construct(Thing, {"surely": None}, "here")


def test_recipes_are_shipped() -> None:
    assert MODELS and DATASETS


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_is_valid_for_every_dataset(name: str) -> None:
    assert recipes.load_model(name).description
    table, _ = recipes.read(name, "models")
    for dataset in table.get("dataset", {}):
        assert dataset in DATASETS
        recipes.load_model(name, dataset)


@pytest.mark.parametrize("name", DATASETS)
def test_every_shipped_dataset_is_valid(name: str) -> None:
    recipe = recipes.load_dataset(name)
    assert recipe.description and recipe.licence
    if recipe.source in ENVIRONMENTS:
        return  # it knows itself what is seen and done
    assert recipe.shape and (recipe.classes > 1 or recipe.task)


def test_the_default_recipe_survives_its_own_schema() -> None:
    table = dataclasses.asdict(ModelRecipe())
    assert construct(ModelRecipe, table, "here") == ModelRecipe()
    fields = {field.name for field in dataclasses.fields(DatasetRecipe)}
    assert fields >= set(tomllib.loads("source = 'digits'"))


def test_another_kind_of_neuron_drops_the_keys_of_the_file_that_it_lacks() -> None:
    known = recipes.load_model("spiking").neuron
    found = recipes.load_model("spiking", assignments=["neuron.kind=integrator"]).neuron
    assert hasattr(known, "reset") and not hasattr(found, "reset")
    assert found.kind == "integrator" and found.time_constant_ms == known.time_constant_ms
    both = ["neuron.reset=zero", "neuron.kind=integrator"]  # what the user gives is never dropped
    with pytest.raises(RecipeError, match=r"unknown key neuron\.reset"):
        recipes.load_model("spiking", assignments=both)


# Whose mistake it is, and what is too large


@pytest.mark.parametrize(
    ("assignments", "guilty"),
    [
        (["training.epoch=3"], "--set training.epoch=3: unknown key"),
        (["training.epochs=3", "network.hidden=[0]"], "--set network.hidden=[0]: network.hidden"),
        (["neuron.kind=waek", "training.epochs=3"], "--set neuron.kind=waek: neuron.kind"),
        (["dataset.shap=1"], "--set dataset.shap=1: unknown key"),
        (["estimators.weak.copies=-3"], "--set estimators.weak.copies=-3: estimators.weak.copies"),
        (["decorrelation.rule=kapa"], "--set decorrelation.rule=kapa: decorrelation.rule"),
        (["training=3"], "--set training=3: training = 3"),
        (["neuron.kind=[]"], "--set neuron.kind=[]: neuron.kind = []"),
    ],
)
def test_a_mistake_in_an_assignment_is_its_own(assignments: list[str], guilty: str) -> None:
    request = TrainingRequest("spiking", "digits", assignments=tuple(assignments))
    with pytest.raises(RecipeError, match=re.escape(guilty)) as caught:
        configure(request)
    assert ".toml" not in str(caught.value)


def test_a_mistake_of_a_file_is_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "[training]\nepoch = 3")
    request = TrainingRequest(str(path), "digits", assignments=("training.batch_size=3",))
    with pytest.raises(RecipeError, match=re.escape(f"{path}: unknown key training.epoch")):
        configure(request)
    with pytest.raises(RecipeError, match="--estimator: estimator = 'waek'"):
        configure(TrainingRequest("spiking", "digits", estimator="waek"))


@pytest.mark.parametrize(
    "text",
    [
        "network.hidden = [99999999999999999999]",
        "network.gain = 1e31",
        "training.learning_rate = -1e31",
        f"encoding.gain = 1{400 * '0'}",
        f"training.epochs = 0x{6000 * 'f'}",
        f"training.epochs = {6000 * '9'}",
        f"shape.0 = 0x{6000 * 'f'}",
        "neuron.kind = []",
        f"description = {2000 * '['}",
        f"estimators.weak.copies = {70 * '['}1{70 * ']'}",
        f"{'a.' * 80}b = 1",
        f"description = '{9 * 2**20 * 'a'}'",
        "training.learning_rate = nan",
    ],
    ids=lambda text: text[:30],
)
def test_numbers_depth_and_size_have_bounds(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError, match=re.escape(str(path))) as caught:
        recipes.load_model(path)
    assert len(str(caught.value)) < 400 + len(str(path)) and "\n" not in str(caught.value)
    key, _, value = text.partition(" = ")
    if key != "description":
        with pytest.raises(RecipeError):
            recipes.load_model("ann", assignments=[f"{key}={value}"])


def test_no_file_has_so_long_a_name() -> None:
    with pytest.raises(RecipeError, match="no file has a name of more than 255 bytes"):
        recipes.read("é" * 140 + ".toml", "models")
