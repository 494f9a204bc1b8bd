"""Objects are checked when they are made, with the words in which a table's keys are refused."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import biograd
from biograd import recipes
from biograd.checking import Count, Positive, Range, construct, convert
from biograd.decorrelation import Decorrelation
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS
from biograd.local import LocalLosses
from biograd.neurons import NEURONS, Leaky
from biograd.tasks import TASKS, Classes, Head, Reward

MADE: list[Any] = [
    *NEURONS.values(),
    *ESTIMATORS.values(),
    *TASKS.values(),
    Head,
    Decorrelation,
    LocalLosses,
    recipes.DatasetRecipe,
    recipes.DecorrelationRecipe,
    recipes.EncodingRecipe,
    recipes.LocalRecipe,
    recipes.MixerRecipe,
    recipes.ModelRecipe,
    recipes.NetworkRecipe,
    recipes.PopulationRecipe,
    recipes.ProjectionRecipe,
    recipes.TrainingRecipe,
]
NEEDED = {"outputs": 2, "source": "digits", "target": "a", "name": "a", "task": Classes(2)}
"""Arguments without a default."""


def hints(make: Any) -> dict[str, Any]:
    function = make if dataclasses.is_dataclass(make) else make.__init__
    known = typing.get_type_hints(function, include_extras=True)
    return {name: known[name] for name in inspect.signature(make).parameters}


def kinds(hint: Any) -> Iterator[Any]:
    """Yield the plain types of a hint, and its limits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from kinds(one)
    elif origin is Annotated:
        yield from kinds(arguments[0])
        yield from arguments[1:]
    else:
        yield Literal if origin is Literal else origin or hint


def wrong(hint: Any) -> Iterator[Any]:
    """Yield values that a hint does not allow."""
    found = [*kinds(hint)]
    plain = {one for one in found if isinstance(one, type) or one in (Any, Literal)}
    limits = [one for one in found if isinstance(one, Range)]
    if Any in plain:
        return
    yield object()
    if float in plain:
        yield from (math.nan, math.inf, -math.inf)
    if bool not in plain and {int, float} & plain:
        yield from (True, False)
    if int in plain and float not in plain:
        yield 2.5
    if limits and {int, float} & plain:
        yield from (value for value in (-1, -0.5, 0, 1e300) if all(value not in o for o in limits))
    if not {str, Literal} & plain or any(isinstance(one, Mapping) for one in found):
        yield "no such word"


CELLS = [
    pytest.param(make, name, value, id=f"{make.__name__}-{name}-{value!r:.12}")
    for make in MADE
    for name, hint in hints(make).items()
    for value in wrong(hint)
]


def test_every_kind_of_object_is_tried() -> None:
    assert len(CELLS) > 600
    assert {cell.values[0] for cell in CELLS} == {
        make for make in MADE if {*hints(make)} - {"args", "kwargs"}
    }


@pytest.mark.parametrize("make, name, value", CELLS)
def test_a_wrong_value_is_refused_by_name(make: Any, name: str, value: Any) -> None:
    parameters = inspect.signature(make).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty]
    given = {key: NEEDED[key] for key in needed} | {name: value}
    with pytest.raises(RecipeError) as direct:
        make(**given)
    said = str(direct.value)
    assert name in said and "\n" not in said
    with pytest.raises(RecipeError) as table:
        construct(make, given, "recipe.toml")
    assert said.split(": ", 1)[1] in str(table.value)


def test_a_right_value_is_taken_in_the_type_of_its_field() -> None:
    made = Leaky(threshold=2, refractory_ms=np.float32(3), time_constant_ms=[5, 6.5])  # type: ignore[arg-type]
    assert made == Leaky(threshold=2.0, refractory_ms=3.0, time_constant_ms=(5.0, 6.5))
    assert isinstance(made.threshold, float)
    assert recipes.NetworkRecipe(hidden=[np.int64(3)]).hidden == (3,)  # type: ignore[arg-type]
    assert Reward(2, reward=lambda outputs, targets: outputs[:, 0]).outputs == 2


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Leaky(threshold=-1), "Leaky: threshold = -1.0: must be > 0"),
        (lambda: biograd.WeakGradient(copies=0), "WeakGradient: copies = 0: must be >= 2"),
        (lambda: biograd.WeakGradient(sigma=-1), "WeakGradient: sigma = -1.0: must be > 0"),
        (lambda: Classes(3, class_weights=(1, -1, 1)), "Classes: class_weights = -1.0: must be"),
        (lambda: recipes.TrainingRecipe(momentum=True), "TrainingRecipe: momentum = True: must"),
    ],
)
def test_the_message_opens_with_the_class_and_the_field(make: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "hint, value, said",
    [
        (str | Positive, 1e31, "1e+31: must be 1e+30 at most"),
        (str | Positive, -1, "-1.0: must be > 0"),
        (str | int, 2.5, "2.5: must be text"),
        (Literal["trial"] | Count, 0, "0: must be >= 1"),
        (Literal["trial"] | Count, "trail", "'trail': did you mean"),
        (Count | Literal["trial"] | None, "trail", "'trail': did you mean"),
        (str | tuple[float, ...], ["a"], "'a': must be a number"),
    ],
)
def test_a_value_is_judged_by_the_type_that_it_fits(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"x = {said}")):
        convert(hint, value, "here", "x")
